"""Login and logout under a prefix; Flower loses the prefix and `next` (mher/flower#703, mher/flower#1322)."""

from __future__ import annotations

import re
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from celery import Celery
from flower.views.auth import GithubLoginHandler, get_next_url
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.options import OptionParser

from flower_proxy.app import FlowerProxy
from tests.http.conftest import PREFIX, Site

PROVIDER = "https://provider.example/authorize"
SETTINGS = {"auth": "me@host.example", "auth_provider": f"{__name__}.Provider", "cookie_secret": "example"}


class Provider(GithubLoginHandler):
    """Flower's GitHub login, without the two requests to GitHub."""

    _OAUTH_AUTHORIZE_URL = PROVIDER

    async def get_authenticated_user(self, redirect_uri: str, code: str) -> dict[str, str]:
        return {"access_token": code}

    async def _on_auth(self, user: dict[str, str]) -> None:
        self.set_secure_cookie("user", "me@host.example")
        self.redirect(get_next_url(self))


class Jar:
    """The cookies of a browser, for one host."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.cookies: dict[str, str] = {}
        self.attributes: list[dict[str, str]] = []

    def get(self, path: str, **headers: str) -> HTTPResponse:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = self.site.fetch(path, headers={"Cookie": cookie, **headers})
        for line in response.headers.get_list("Set-Cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
                self.attributes.append({"name": name, **morsel})
        return response

    def log_in(self, query: str = "") -> HTTPResponse:
        """Log in at the provider; return the redirect back to the application."""
        out = self.get(f"/login{query}")
        assert out.code == 302
        assert out.headers["Location"].startswith(PROVIDER)
        state = parse_qs(urlsplit(out.headers["Location"]).query)["state"][0]
        return self.get(f"/login?code=1&state={state}")


@pytest.fixture
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
def jar(site: Site) -> Jar:
    return Jar(site)


def test_unauthenticated_clients_are_redirected_to_the_login_and_back(site: Site, jar: Jar) -> None:
    refused = jar.get("/tasks?state=FAILURE&name=a")
    assert refused.code == 302
    login = refused.headers["Location"]
    assert login.startswith(f"{PREFIX}/login?next=")
    back = jar.log_in("?" + urlsplit(login).query)
    assert back.headers["Location"] == f"{PREFIX}/tasks?state=FAILURE&name=a"
    assert jar.get("/tasks?state=FAILURE&name=a").code == 200


@pytest.mark.parametrize("kind", ["unforwarded"], indirect=True)
def test_login_redirects_are_relative_if_the_prefix_is_unknown(jar: Jar) -> None:
    assert jar.get("/task/1").headers["Location"] == "../login?next=%2Ftask%2F1"
    assert jar.log_in("?next=%2Ftask%2F1").headers["Location"] == "./task/1"
    # Without Path, browsers use the directory of /login, which is the prefix
    assert {cookie["path"] for cookie in jar.attributes} == {""}


def test_login_without_next_redirects_to_the_first_page(jar: Jar) -> None:
    assert jar.log_in().headers["Location"] == f"{PREFIX}/"


def test_next_is_not_kept_for_another_login(jar: Jar) -> None:
    jar.log_in("?next=/tasks")
    assert jar.log_in().headers["Location"] == f"{PREFIX}/"


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "https://evil.example",
        "\t//evil.example",
        "/\t/evil.example",
        "/\r\n/evil.example",
        "%2F%2Fevil.example",
        "javascript:alert(1)",
    ],
)
def test_next_stays_on_the_site(jar: Jar, target: str) -> None:
    for text in (target, quote(target, safe="")):
        location = jar.log_in(f"?next={quote(text, safe='')}").headers["Location"]
        assert location.startswith(f"{PREFIX}/")
        assert "evil" not in location or not urlsplit(location).netloc


def test_cookies_have_the_prefix_as_path_and_are_http_only(jar: Jar) -> None:
    """Flower's cookies have the path / and no Secure attribute."""
    jar.log_in("?next=/tasks")
    assert {cookie["path"] for cookie in jar.attributes} == {PREFIX}
    assert not any(cookie["secure"] for cookie in jar.attributes)
    assert all(cookie["name"].startswith("flower_") for cookie in jar.attributes)
    user = next(cookie for cookie in jar.attributes if cookie["name"].startswith("flower_user_"))
    assert user["httponly"]
    assert user["samesite"] == "Lax"


def test_cookies_are_secure_over_https(jar: Jar) -> None:
    jar.get("/login", **{"X-Forwarded-Proto": "https"})
    assert jar.attributes
    assert all(cookie["secure"] for cookie in jar.attributes)


def test_cookies_of_two_instances_on_one_host_do_not_clash(site: Site, jar: Jar) -> None:
    other = "/other" if site.kind == "stripped" else "/outer"
    jar.get("/login")
    first = set(jar.cookies)
    jar.get("/login", **{"X-Forwarded-Prefix": other})
    assert first.isdisjoint(set(jar.cookies) - first)
    assert len(jar.cookies) == 2 * len(first)


def test_the_user_cookie_of_another_application_is_ignored(jar: Jar) -> None:
    jar.log_in()
    jar.cookies["user"] = "theirs"
    assert jar.get("/tasks").code == 200


def test_another_replica_accepts_the_session(site: Site, jar: Jar, io_loop: IOLoop, options: OptionParser) -> None:
    """It has the same cookie secret."""
    jar.log_in()
    capp = Celery(broker="memory://")
    replica = FlowerProxy(capp=capp, options=options)
    name, user = next((name, value) for name, value in jar.cookies.items() if name.startswith("flower_user"))
    page = site.page("/tasks", headers={"Cookie": f"{name}={user}"})
    (token,) = re.findall(r'<meta name="flower-token" content="([^"]+)">', page)
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(replica)
    server.add_sockets(sockets)
    other = Site(site.kind, replica, AsyncHTTPClient(), io_loop, sockets[0].getsockname()[1])
    # nginx forwards the public host to both
    host = urlsplit(site.origin).netloc
    headers = {"Host": host, "Cookie": f"{name}={user}", "X-XSRFToken": token, "Sec-Fetch-Site": "same-origin"}
    try:
        assert other.fetch("/tasks", headers=headers).code == 200
        assert other.fetch("/api/worker/shutdown/absent", method="POST", headers=headers).code == 404
    finally:
        server.stop()
        io_loop.run_sync(replica.close)
        capp.close()


def test_logout_ends_the_session(jar: Jar) -> None:
    jar.log_in()
    page = jar.get("/logout")
    assert page.code == 200
    assert f'href="{PREFIX}/"'.encode() in page.body
    assert jar.get("/tasks").code == 302


# Sessions


def cookies(jar: Jar) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.cookies.items())}


@pytest.mark.parametrize(
    "target",
    [
        "/logout",
        "/logout?x=1",
        "/login",
        "/login/",
        "/login?next=/logout",
    ],
)
def test_login_does_not_redirect_to_login_or_logout(jar: Jar, target: str) -> None:
    """Such a link would log the user out, or redirect to the login forever."""
    assert jar.log_in(f"?next={quote(target, safe='')}").headers["Location"] == f"{PREFIX}/"


@pytest.mark.parametrize("settings", [{**SETTINGS, "auth": "you@host.example"}])
def test_the_session_of_a_removed_address_is_denied(jar: Jar) -> None:
    """The session was created by another run, with the same cookie secret and other users."""
    jar.log_in()
    assert any(name.startswith("flower_user_") for name in jar.cookies)
    for path in ("/tasks", "/api/workers", "/metrics"):
        assert jar.get(path).headers["Location"].startswith(f"{PREFIX}/login?next=")


@pytest.mark.parametrize(
    "forged",
    [
        "me@host.example",
        "",
        "2|1:0|10:1795207964|4:user|20:bWVAaG9zdC5leGFtcGxl|" + "0" * 64,
    ],
)
def test_forged_sessions_are_ignored(jar: Jar, forged: str) -> None:
    jar.log_in()
    (name,) = [name for name in jar.cookies if name.startswith("flower_user_")]
    jar.cookies = {name: forged}
    assert jar.get("/tasks").code == 302


def test_other_signed_values_are_not_sessions(jar: Jar) -> None:
    jar.get("/login?next=/tasks")
    (user,) = {name.replace("_next_", "_user_") for name in jar.cookies if "_next_" in name}
    for name in list(jar.cookies):
        jar.cookies[user] = jar.cookies[name]
        assert jar.get("/tasks").code == 302


def test_the_page_of_a_failed_login_has_no_user_menu(jar: Jar) -> None:
    response = jar.get("/login?code=1&state=forged")
    assert response.code == 403
    assert b"State tokens do not match" in response.body
    assert b"Log out" not in response.body


@pytest.mark.parametrize("settings", [{**SETTINGS, "basic_auth": ["demo:secret"]}])
def test_password_and_oauth_are_both_required(jar: Jar) -> None:
    """As in Flower; the login page requires the password too."""
    for path in ("/tasks", "/login", "/login?code=1&state=1", "/api/workers"):
        assert jar.get(path).code == 401
    authorization = {"Authorization": "Basic ZGVtbzpzZWNyZXQ="}
    assert jar.get("/tasks", **authorization).code == 302
    out = jar.get("/login", **authorization)
    state = parse_qs(urlsplit(out.headers["Location"]).query)["state"][0]
    assert jar.get(f"/login?code=1&state={state}", **authorization).code == 302
    assert jar.get("/tasks").code == 401
    assert b">me@host.example<" in jar.get("/tasks", **authorization).body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_denied_instead_of_redirected(site: Site, method: str) -> None:
    body = "" if method in ("POST", "PUT") else None
    response = site.fetch("/api/task/revoke/1", method=method, body=body)
    assert (response.code, response.body) == (403, b"authentication required\n")


def test_cross_site_requests_cannot_use_the_session(site: Site, jar: Jar) -> None:
    jar.log_in()
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        response = site.fetch("/api/task/revoke/1", method="POST", headers={**cookies(jar), **headers})
        assert response.code == 403
    assert site.fetch("/api/task/revoke/1", method="POST", headers=cookies(jar)).code == 200


def test_every_cookie_is_http_only_and_expires(jar: Jar) -> None:
    """Flower's _xsrf cookie is readable by scripts."""
    jar.log_in("?next=/tasks")
    kept = [cookie for cookie in jar.attributes if jar.cookies.get(cookie["name"])]
    assert {cookie["name"].rpartition("_")[0] for cookie in kept} == {"flower_user"}
    for cookie in jar.attributes:
        assert cookie["expires"]
        assert not cookie["domain"]
        if jar.cookies.get(cookie["name"]):
            assert cookie["httponly"]
            assert cookie["samesite"] == "Lax"
