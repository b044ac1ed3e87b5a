"""The configurations that ``flower-proxy config`` prints, run in real proxies with other ports, paths and names."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.support.browser import Browser
from tests.support.configurations import documents, printed
from tests.support.doctor import ask
from tests.support.examples import (
    CASES,
    FILES,
    FORWARD_AUTH,
    PROXY_BASIC_AUTH,
    SHARED_HTPASSWD,
    WITH_TLS,
    Example,
    deployed,
    flower_options,
    read,
    served,
)
from tests.support.journey import Journey
from tests.support.processes import basic, program, request
from tests.support.programs import COLLEAGUE, CREDENTIALS, USER
from tests.support.setups import Flowers
from tests.support.standins import HostApplication, IdentityProvider, Mirror, NamelessProvider, serving

# Tabs are buttons too, but not of the class .btn
USER_NAME, CONTROL_BUTTONS = ".app-nav-secondary .nav-link.text-break", "#main-content .btn"


def grouped(names: Iterable[str]) -> list[Any]:
    """Return these as parameters; the tests of configurations with the same options of Flower share its servers."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"proxies {flower_options(name)}")) for name in names]


@pytest.fixture(scope="module", params=grouped(CASES))
def example(
    request: pytest.FixtureRequest, flowers: Flowers, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    with deployed(request.param, flowers, files, tmp_path_factory.mktemp("example")) as example:
        yield example


def test_every_page_works_through_the_proxy(example: Example, browser: Browser, tmp_path: Path) -> None:
    assert not Journey(browser, example.place, screenshots=tmp_path).faults()


@pytest.mark.parametrize("example", grouped(name for name in FILES if name != "nginx/auth_request.conf"), indirect=True)
def test_check_passes_for_every_example(example: Example) -> None:
    found = ask(f"{example.place.url}/", "--insecure")
    assert (found.exit_code, found.wrong, found.named("skipped")) == (0, [], []), found


def test_the_prefix_without_slash_redirects_to_the_prefix_with_slash(example: Example) -> None:
    answer = example.ask("/flower?a=b")
    assert answer.status == 308
    assert urljoin("/flower", answer.headers["Location"]) == "/flower/?a=b"


@pytest.mark.parametrize(
    "path",
    ["/flower/metrics", "/flower//metrics", "/flower/%6detrics", "/flower/x/../metrics"],
)
def test_metrics_are_denied_to_other_hosts(example: Example, path: str) -> None:
    # Some proxies do not resolve dot segments; then Flower answers 404
    assert example.ask(path, source="127.0.0.2").status in ((403, 404) if ".." in path else (403,))


def test_other_paths_that_end_in_metrics_are_not_denied(example: Example) -> None:
    assert example.ask("/flower/task/metrics", source="127.0.0.2").status == 404


def test_metrics_are_denied_under_a_repeated_prefix(example: Example) -> None:
    answer = example.ask("/flower/flower/metrics", source="127.0.0.2")
    # Either a redirect to the path that is denied, or a denial
    assert answer.headers.get("Location") == "/flower/metrics" or answer.status == 403


def test_metrics_are_allowed_from_loopback(example: Example) -> None:
    answer = example.ask("/flower/metrics")
    assert answer.status == 200
    assert "flower_worker_online" in answer.text


def test_percent_encoded_names_are_passed_unchanged(example: Example) -> None:
    answer = example.ask("/flower/task/a%2F%2Fb%25c")
    assert answer.status == 404
    assert "a//b%c" in answer.text


@pytest.mark.parametrize("names_headers", [False, True], ids=["", "named-in-connection"])
@pytest.mark.parametrize("name", CASES)
def test_client_supplied_forwarded_headers_are_overwritten(
    name: str, names_headers: bool, files: dict[str, str], tmp_path: Path
) -> None:
    spoofed = {f"X-Forwarded-{suffix}": "spoofed" for suffix in ("For", "Proto", "Host", "Port", "Prefix")}
    spoofed |= {"X-Script-Name": "spoofed", "Forwarded": "host=spoofed", "Cookie": IdentityProvider.SESSION}
    _, options = read(name)
    if "auth_header" in options:
        spoofed["X-Forwarded-User"] = "spoofed"
    # Flower distinguishes browsers, which send keep-alive, from a proxy that sets X-Forwarded-Host. A proxy may remove
    # the headers that Connection names (RFC 9110, section 7.6.1), but not those that it sets itself. Removing the
    # user's name only denies access.
    named = spoofed.keys() - {"Cookie", "X-Forwarded-User"}
    spoofed["Connection"] = ", ".join(named) if names_headers else "keep-alive"
    socket_path = tmp_path / "mirror.sock" if "unix_socket" in options else None
    with serving(Mirror, socket_path) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        host = f"localhost:{public.port}"
        answer = request(public, "/flower/", headers={"Host": host, **basic(CREDENTIALS), **spoofed})
    forwarded = json.loads(answer.text)
    assert "spoofed" not in answer.text
    assert forwarded["host"] == forwarded["x-forwarded-host"] == host
    assert forwarded["x-forwarded-for"] == "127.0.0.1"
    assert forwarded["x-forwarded-proto"] == ("https" if public.tls else "http")
    assert forwarded["x-forwarded-prefix"] == "/flower"
    assert "keep-alive" not in forwarded.get("connection", "").lower()
    user = IdentityProvider.USER if name in FORWARD_AUTH else USER if name in PROXY_BASIC_AUTH else None
    assert forwarded.get("x-forwarded-user") == user
    # The proxy removes the credentials if it checks them in place of Flower
    assert ("authorization" in forwarded) == (user is None)


@pytest.mark.parametrize("name", [*FORWARD_AUTH, *PROXY_BASIC_AUTH])
def test_unknown_hosts_are_refused_where_the_proxy_authenticates(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    """DNS rebinding: a cross-site page resolves its own name to the proxy's address."""
    headers = {"Host": "attacker.example", "Cookie": IdentityProvider.SESSION, **basic(CREDENTIALS)}
    with serving(Mirror) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        try:
            text = request(public, "/flower/", headers=headers).text
        except http.client.RemoteDisconnected:
            text = ""
    assert "x-forwarded-host" not in text


def test_the_proxys_idle_timeout_is_shorter_than_flowers(tmp_path: Path) -> None:
    """Flower closes idle connections after 75 s; proxies do not retry a POST that is sent at that moment."""
    (traefik,) = documents(printed("traefik --url_prefix=flower"))
    assert traefik["http"]["serversTransports"]["flower"]["forwardingTimeouts"] == {"idleConnTimeout": "60s"}
    (tmp_path / "Caddyfile").write_text(printed("caddy --url_prefix=flower"))
    adapt = [program("caddy"), "adapt", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    adapted = subprocess.run(adapt, capture_output=True, text=True, check=True).stdout
    assert re.findall(r'"idle_timeout":(\d+)', adapted) == [str(60 * 10**9)]


@pytest.mark.parametrize("connection", ["close", "X-Forwarded-For, Close"])
@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
def test_connection_close_closes_the_connection(
    target: str, connection: str, files: dict[str, str], tmp_path: Path
) -> None:
    """Apache used to keep it open for KeepAliveTimeout and to omit Connection: close."""
    with (
        serving(Mirror) as mirror,
        served(f"{target} --url_prefix=flower", mirror, files, tmp_path / "proxy") as (public, _),
        contextlib.closing(http.client.HTTPConnection("localhost", public.port)) as client,
    ):
        client.sock = public.connect()
        for headers, stays_open in (({}, True), ({"Connection": connection}, False)):
            client.request("GET", "/flower/", headers=headers)
            with client.getresponse() as answer:
                forwarded = json.loads(answer.read())
            assert forwarded["x-forwarded-for"] == "127.0.0.1"
            assert (client.sock is not None) is stays_open


@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
@pytest.mark.parametrize("words", ["", "--strip"], ids=["kept", "stripped"])
def test_special_characters_of_the_prefix_match_literally(
    target: str, words: str, files: dict[str, str], tmp_path: Path
) -> None:
    name = f"{target} --url_prefix=/a.b/flower-~1+@=_ {words}"
    with serving(Mirror) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        host = {"Host": f"localhost:{public.port}"}
        forwarded = json.loads(request(public, "/a.b/flower-~1+@=_/task/a%2Fb?c=d", headers=host).text)
        assert request(public, "/a.b/flower-~1+@=_/metrics", headers=host, source="127.0.0.2").status == 403
        for other in ("/aXb/flower-~1+@=_/", "/a.b/flower-~11@=_/", "/a.b/flower-~1+@=_x", "/a.b/"):
            assert "x-forwarded-host" not in request(public, other, headers=host).text
    assert forwarded["path"] == ("" if words else "/a.b/flower-~1+@=_") + "/task/a%2Fb?c=d"
    assert forwarded["x-forwarded-prefix"] == "/a.b/flower-~1+@=_"


@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
def test_no_prefix_is_forwarded_at_the_root(target: str, files: dict[str, str], tmp_path: Path) -> None:
    spoofed = {"X-Forwarded-Prefix": "/spoofed", "X-Script-Name": "/spoofed"}
    with serving(Mirror) as mirror, served(target, mirror, files, tmp_path / "proxy") as (public, _):
        # Caddy selects the site by the host name
        host = {"Host": f"localhost:{public.port}"}
        forwarded = json.loads(request(public, "/task/a%2Fb", headers={**host, **spoofed}).text)
        refused = request(public, "/metrics", headers=host, source="127.0.0.2")
    assert forwarded["path"] == "/task/a%2Fb"
    assert "x-forwarded-prefix" not in forwarded
    assert "x-script-name" not in forwarded
    assert refused.status == 403


def test_scripts_are_compressed(example: Example) -> None:
    answer = example.ask("/flower/static/js/flower.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize("example", grouped(WITH_TLS), indirect=True)
def test_plain_http_redirects_to_https(example: Example) -> None:
    answer = request(example.plain, "/flower/?a=b")
    assert (answer.status, answer.headers["Location"]) == (308, "https://localhost/flower/?a=b")


@pytest.mark.parametrize("example", grouped(FORWARD_AUTH), indirect=True)
def test_unauthenticated_users_are_redirected_to_the_identity_provider(example: Example) -> None:
    answer = request(example.public, "/flower/tasks", headers=basic(CREDENTIALS))
    assert (answer.status, answer.headers["Location"]) == (302, "/oauth2/start?rd=/flower/tasks")


@pytest.mark.parametrize("example", grouped(FORWARD_AUTH), indirect=True)
def test_pages_show_the_user_named_by_the_identity_provider(example: Example, browser: Browser) -> None:
    browser.open(example.place.url)
    browser.wait(lambda: browser.text(USER_NAME), what="the user name")
    assert browser.text(USER_NAME).split() == [IdentityProvider.USER]


@pytest.mark.parametrize("example", grouped(FORWARD_AUTH), indirect=True)
def test_a_spoofed_user_header_is_overwritten(example: Example) -> None:
    page = example.ask("/flower/", headers={"X-Forwarded-User": "mallory"}).text
    assert IdentityProvider.USER in page
    assert "mallory" not in page


@pytest.mark.parametrize("name", FORWARD_AUTH)
def test_a_spoofed_user_header_is_removed_if_the_identity_provider_names_no_user(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    """oauth2-proxy names no user without --set-xauthrequest."""
    headers = {"Cookie": NamelessProvider.SESSION, "X-Forwarded-User": "mallory"}
    with (
        serving(Mirror) as mirror,
        served(name, mirror, files, tmp_path / "proxy", provider=NamelessProvider) as (public, _),
    ):
        forwarded = json.loads(request(public, "/flower/", headers=headers).text)
    assert not forwarded.get("x-forwarded-user")


@pytest.mark.parametrize("example", grouped(SHARED_HTPASSWD), indirect=True)
def test_one_login_serves_both_the_proxy_and_flower(example: Example, browser: Browser) -> None:
    Journey(browser, example.place).log_in()
    browser.open(example.place.url)
    browser.wait(lambda: browser.text(USER_NAME), what="the user name")
    assert browser.text(USER_NAME).split() == [USER]
    assert {request.status for request in browser.traffic() if request.type == "Document"} <= {200, 308}


@pytest.mark.parametrize("example", grouped(SHARED_HTPASSWD), indirect=True)
@pytest.mark.parametrize("credentials", ["demo:wrong", "demo:", "unknown:secret", ""])
def test_the_proxy_denies_requests_without_valid_credentials(example: Example, credentials: str) -> None:
    answer = request(example.public, "/flower/api/workers", headers=basic(credentials) if credentials else {})
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="flower"')
    assert answer.headers["Server"].startswith(("nginx", "Apache"))


@pytest.mark.parametrize(
    ("name", "viewer", "credentials"),
    [
        pytest.param("nginx/auth_request.conf", IdentityProvider.USER, CREDENTIALS, id="forward-auth"),
        pytest.param("nginx/auth_basic.conf", "bob", COLLEAGUE, id="basic-auth"),
    ],
)
def test_viewers_get_no_buttons_and_their_control_actions_are_denied(
    name: str, viewer: str, credentials: str, flowers: Flowers, files: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    with deployed(name, flowers, files, tmp_path, [f"--viewers={viewer}"]) as example:
        journey = Journey(browser, example.place)
        journey.log_in(credentials)
        journey.open_with_slash()
        journey.open_worker()
        assert browser.text(USER_NAME) == f"{viewer} (read-only)"
        assert not browser.find_all(CONTROL_BUTTONS)
        worker_name = browser.text("#workername")
        answer = example.ask(f"/flower/api/worker/pool/grow/{worker_name}", method="POST", headers=basic(credentials))
        assert answer.status == 403
        assert "read-only access" in answer.text


@pytest.mark.parametrize("example", grouped([*FORWARD_AUTH, *SHARED_HTPASSWD, *PROXY_BASIC_AUTH]), indirect=True)
def test_users_with_control_access_get_buttons(example: Example, browser: Browser) -> None:
    journey = Journey(browser, example.place)
    journey.log_in()
    journey.open_with_slash()
    journey.open_worker()
    assert browser.find_all(CONTROL_BUTTONS)


@pytest.mark.parametrize("name", PROXY_BASIC_AUTH)
def test_flower_accepts_the_proxys_users_although_its_own_differ(
    name: str, flowers: Flowers, files: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    """Behind a proxy with other users, stock Flower answers every login with 401."""
    with deployed(name, flowers, files, tmp_path, ["--basic_auth=other:password"]) as example:
        assert not Journey(browser, example.place, screenshots=tmp_path).faults()
        assert browser.text(USER_NAME) == USER
        page = example.ask("/flower/", headers={"X-Forwarded-User": "mallory"}).text
        assert "mallory" not in page


@pytest.mark.parametrize("example", grouped(["nginx/host-application.conf"]), indirect=True)
def test_the_host_application_keeps_its_page_and_cookie(example: Example, browser: Browser) -> None:
    browser.open(example.place.origin)
    assert browser.text("body") == HostApplication.PAGE
    assert not Journey(browser, example.place).faults()
    name, value = HostApplication.COOKIE
    cookie = browser.driver.get_cookie(name)
    assert cookie is not None
    assert cookie["value"] == value
