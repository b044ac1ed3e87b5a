"""The access policy of every route: authentication, rate limits, CSRF, CORS, hosts, user headers and secrets."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.ioloop import IOLoop
from tornado.options import OptionParser
from tornado.routing import PathMatches
from tornado.web import RequestHandler

from flower_proxy.app import FlowerProxy
from flower_proxy.auth.authenticator import LoginFailure
from flower_proxy.auth.policy import Permission
from flower_proxy.settings.options import OPTIONS
from flower_proxy.web.flower_handlers import proxied
from tests.http.conftest import OPEN, PREFIX, Site
from tests.http.test_login import PROVIDER, Jar, Provider

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# All public routes, with the status of their responses
OPEN_ROUTES = {
    r"/(robots\.txt)$": 404,
    r"/(favicon\.ico)$": 200,
    r"/static/(.*)$": 404,
    "/healthcheck$": 200,
    # No broker is connected in these tests
    "/ready$": 503,
}
WORKER, TASK = "planted@host", "planted-task"
PASSWORD = {"basic_auth": ["demo:secret"]}
OAUTH = {"auth": "me@host.example", "auth_provider": f"{Provider.__module__}.Provider", "cookie_secret": "example"}
HEADER = {"auth_header": "X-Forwarded-User"}
DEMO: dict[str, Any] = {"auth_username": "demo", "auth_password": "secret"}
CHALLENGE = 'Basic realm="flower", charset="UTF-8"'
UNREGISTERED = ["/nothing", "/nothing/here", "/static", "/metrics/", "/api", "/.git/config", "/%2e%2e/etc", "/login/x"]


def basic(text: str | bytes) -> dict[str, str]:
    """Return the Authorization header for this user:password."""
    encoded = base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
    return {"Authorization": f"Basic {encoded}"}


def example(pattern: str) -> str:
    """Return a path that matches a route of Flower or Tornado."""
    path = pattern.removesuffix("$").removesuffix("/?").replace("\\", "")
    return re.sub(r"\((\.[*+]|[^)]*)\)", lambda group: "some" if group[1][0] == "." else group[1], path)


def routes(app: FlowerProxy) -> dict[str, str]:
    """Return every pattern of the application, with a matching path."""
    matchers = [rule.matcher for rule in app.wildcard_router.rules]
    patterns = [matcher.regex.pattern for matcher in matchers if isinstance(matcher, PathMatches)]
    assert len(patterns) == len(matchers)
    paths = {pattern: example(pattern) if pattern != ".*$" else "/nothing" for pattern in patterns}
    assert all(re.match(pattern, path) for pattern, path in paths.items())
    return paths


def holds_data(response: HTTPResponse) -> bool:
    """Return whether a response contains a part of a page or its data."""
    shown = response.body.decode("latin-1") + str(list(response.headers.get_all()))
    return any(word in shown for word in ("<!doctype html", "flower-token", WORKER, TASK, "flower_events_total"))


def ask(site: Site, path: str, method: str, **kwargs: Any) -> HTTPResponse:
    body = "" if method in ("POST", "PUT", "PATCH") else None
    return site.fetch(path, method=method, body=body, **kwargs)


def text_of(response: HTTPResponse) -> str:
    return str(response.body.decode(errors="replace"))


@pytest.fixture
def settings() -> dict[str, Any]:
    return PASSWORD


@pytest.fixture
def worker_and_task(event: Callable[..., None]) -> None:
    """A worker and a task whose names must not be disclosed."""
    event("worker-online", hostname=WORKER)
    event("task-received", hostname=WORKER, uuid=TASK, name="planted.add")


@pytest.fixture
def send_lines(site: Site, http_client: AsyncHTTPClient, io_loop: IOLoop) -> Callable[..., HTTPResponse]:
    """Request a page with several lines of one header."""

    def send(name: str, *values: str) -> HTTPResponse:
        headers = HTTPHeaders({"X-Forwarded-Prefix": PREFIX} if site.kind == "stripped" else {})
        for value in values:
            headers.add(name, value)
        url = f"{site.origin}{PREFIX if site.kind == 'kept' else ''}/tasks"
        response: HTTPResponse = io_loop.run_sync(lambda: http_client.fetch(url, headers=headers, raise_error=False))
        return response

    return send


# All routes


@pytest.mark.usefixtures("worker_and_task")
@pytest.mark.parametrize(
    ("settings", "refusals"),
    [
        pytest.param({}, {401}, id="generated-password"),
        pytest.param(PASSWORD, {401}, id="password"),
        pytest.param(OAUTH, {302, 403}, id="oauth"),
        pytest.param({**OAUTH, **PASSWORD}, {401}, id="oauth-and-password"),
        pytest.param(HEADER, {403}, id="header"),
        pytest.param({**HEADER, **PASSWORD}, {401}, id="header-or-password"),
        pytest.param({**PASSWORD, "metrics_auth": "prometheus:scrape"}, {401}, id="metrics-password"),
        pytest.param({**PASSWORD, "cors_origins": ["https://dashboard.example"]}, {401}, id="cors"),
    ],
)
@pytest.mark.parametrize("kind", ["kept", "unforwarded"], indirect=True)
def test_unauthenticated_requests_are_denied(site: Site, settings: dict[str, Any], refusals: set[int]) -> None:
    """Every route for every method, and unregistered paths; Flower leaves /metrics public (mher/flower#1342)."""
    paths = routes(site.app)
    provided = {"/login/?$"} if "auth" in settings and "basic_auth" not in settings else set()
    answered: dict[str, set[int]] = {}
    for pattern, path in [*paths.items(), *((path, path) for path in UNREGISTERED)]:
        for method in METHODS:
            response = ask(site, path, method)
            if pattern in OPEN_ROUTES:
                codes = (OPEN_ROUTES[pattern],) if method in ("GET", "HEAD") else (204, 405)
                assert response.code in codes, (method, path)
                assert not holds_data(response), (method, path)
            elif pattern not in provided:
                assert response.code in refusals, (method, path, response.code)
                assert not holds_data(response), (method, path)
                if response.code == 302:
                    assert response.headers["Location"].endswith("login?next=" + quote(path, safe=""))
            answered.setdefault(pattern, set()).add(response.code)
    assert {pattern for pattern, codes in answered.items() if not codes <= refusals} == set(OPEN_ROUTES) | provided


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_paths_without_the_prefix_require_authentication(site: Site) -> None:
    """With `--url_prefix`, the same pages are served without it."""
    site.kind = "unforwarded"
    for pattern, path in routes(site.app).items():
        assert (site.fetch(path).code == 401) is (pattern not in OPEN_ROUTES), path


def test_only_the_listed_routes_are_public(app: FlowerProxy) -> None:
    rules = [(rule.matcher, rule.target) for rule in app.wildcard_router.rules]
    handlers = {matcher.regex.pattern: proxied(target, app.options, "") for matcher, target in rules}
    opened = [route for route, handler in handlers.items() if getattr(handler, "permission", None) is Permission.PUBLIC]
    assert sorted(opened) == sorted(OPEN_ROUTES)


@pytest.mark.parametrize("settings", [OAUTH])
def test_the_login_page_only_redirects_to_the_provider(site: Site) -> None:
    response = site.fetch("/login")
    assert response.code == 302
    assert response.headers["Location"].startswith(PROVIDER)
    assert site.fetch("/login", method="POST").code == 405


class NewRoute(RequestHandler):
    """A route as a later Flower may add: it checks no authentication itself."""

    def get(self) -> None:
        self.write(f"{WORKER} {json.dumps(dict(self.request.headers))}")


@pytest.fixture
def new_route(app: FlowerProxy) -> str:
    app.add_handlers(r".*", [("/new", NewRoute)])
    return "/new"


def test_new_routes_require_authentication(site: Site, new_route: str) -> None:
    assert site.fetch(new_route).code == 401
    assert WORKER in text_of(site.fetch(new_route, **DEMO))


@pytest.mark.parametrize("method", ["PROPFIND", "TRACE", "get", "X"])
def test_unknown_methods_are_not_allowed(site: Site, method: str) -> None:
    response = site.fetch("/tasks", method=method, allow_nonstandard_methods=True)
    assert response.code == 405
    assert not holds_data(response)


@pytest.mark.usefixtures("worker_and_task")
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/task/%ff", {}, id="path-not-utf8"),
        pytest.param("/api/task/revoke/%ff", {"Content-Type": "application/x-www-form-urlencoded"}, id="api"),
        pytest.param("/tasks/datatable", {"Content-Type": "multipart/form-data"}, id="multipart-without-boundary"),
    ],
)
def test_malformed_requests_are_answered_with_400_without_data(site: Site, path: str, headers: dict[str, str]) -> None:
    response = site.fetch(path, method="POST", headers=headers, body="x")
    assert response.code == 400
    assert not holds_data(response)


# Passwords


@pytest.mark.parametrize("path", ["/", "/tasks", "/api/workers", "/metrics", "/logout", "/nothing"])
def test_401_responses_have_a_challenge_and_the_password_is_accepted(site: Site, path: str) -> None:
    """Pages and API alike send it, for clients that wait for a challenge; Flower's API sends none."""
    refused = site.fetch(path)
    assert (refused.code, refused.headers["WWW-Authenticate"]) == (401, CHALLENGE)
    assert site.fetch(path, **DEMO).code == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        pytest.param("Basic ZGVtbzpzZWNyZXQ=", 200, id="right"),
        pytest.param("basic ZGVtbzpzZWNyZXQ=", 200, id="scheme-in-lower-case"),
        pytest.param("BASIC  ZGVtbzpzZWNyZXQ=", 200, id="scheme-in-capitals-two-spaces"),
        pytest.param("Basic ZGVtbzp3cm9uZw==", 401, id="wrong-password"),
        pytest.param("Basic b3RoZXI6c2VjcmV0", 401, id="wrong-user"),
        pytest.param("Basic RGVtbzpzZWNyZXQ=", 401, id="user-in-another-case"),
        pytest.param("Basic =", 401, id="only-padding"),
        pytest.param("Basic", 401, id="scheme-only"),
        pytest.param("", 401, id="empty"),
        pytest.param("Basic Og==", 401, id="colon-only"),
        pytest.param("Basic ZGVtbzo=", 401, id="no-password"),
        pytest.param("Basic OnNlY3JldA==", 401, id="no-user"),
        pytest.param("Basic ZGVtbw==", 401, id="user-only"),
        pytest.param("Basic !!!", 401, id="not-base64"),
        pytest.param("Basic !ZGVtbzpzZWNyZXQ=", 401, id="character-before-base64"),
        pytest.param("Basic ZGVtbzpzZWNyZXQ", 401, id="padding-missing"),
        pytest.param("Basic ZGVtbzpzZWNyZXQ= x", 401, id="trailing-text"),
        pytest.param("Basic ZGVtbzpzZWNyZXQ=, Basic ZGVtbzpzZWNyZXQ=", 401, id="twice-in-one-line"),
        pytest.param("Basic ZGVtbzpzw6ljcmV0", 401, id="not-ascii"),
        pytest.param("Basic ZGVtbzpz6WNyZXQ=", 401, id="not-utf-8"),
        pytest.param("Bearer ZGVtbzpzZWNyZXQ=", 401, id="another-scheme"),
        pytest.param("ZGVtbzpzZWNyZXQ=", 401, id="no-scheme"),
    ],
)
@pytest.mark.parametrize("path", ["/tasks", "/api/workers"])
def test_only_valid_basic_credentials_are_accepted(site: Site, path: str, authorization: str, status: int) -> None:
    """Flower answers a lower-case scheme with 401, and non-ASCII credentials with 500."""
    assert site.fetch(path, headers={"Authorization": authorization}).code == status


@pytest.mark.parametrize("settings", [{"basic_auth": ["j\xf6rg:s\xe9cret \u2013 1"]}])
def test_non_ascii_passwords_work(site: Site) -> None:
    """Flower answers every login with 500 if its options contain a non-ASCII password."""
    assert site.fetch("/tasks", headers=basic("j\xf6rg:s\xe9cret \u2013 1")).code == 200
    assert site.fetch("/tasks", headers=basic("j\xf6rg:s\xe9cret - 1")).code == 401
    assert site.fetch("/tasks", headers=basic("j\xf6rg:s\xe9cret".encode("latin-1"))).code == 401


@pytest.mark.parametrize("path", ["/tasks", "/api/workers"])
@pytest.mark.parametrize("settings", [{"basic_auth": ["user:p,ss"]}])
def test_a_password_with_a_comma_is_not_split(site: Site, path: str) -> None:
    """Flower accepts ``user:p`` and the bare ``ss``, and rejects the real password."""
    assert site.fetch(path, headers=basic("user:p,ss")).code == 200
    for half in ("user:p", "ss", ":ss", "ss:"):
        assert site.fetch(path, headers=basic(half)).code == 401


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        pytest.param("user:p,ss", 2, id="comma-in-a-password"),
        pytest.param("", 1, id="empty"),
        pytest.param("user:pass,", 2, id="trailing-comma"),
        pytest.param(",user:pass", 1, id="leading-comma"),
        pytest.param("user:pass,,other:pass", 2, id="two-commas"),
        pytest.param(":pass", 1, id="no-user"),
        pytest.param("user:", 1, id="no-password"),
    ],
)
def test_malformed_credentials_prevent_the_start(text: str, entry: int) -> None:
    """Flower accepts ``Authorization: Basic =`` for an empty entry. The message contains no password."""
    with pytest.raises(ValueError, match=f"entry {entry} ") as error:
        OPTIONS["basic_auth"].parse([text])
    assert not re.search("ss|:p", str(error.value).replace("user:password", "").replace("password", ""))


def test_multiple_authorization_headers_are_rejected(send_lines: Callable[..., HTTPResponse]) -> None:
    """Proxies and applications may disagree about which one is valid."""
    right, wrong = basic("demo:secret")["Authorization"], basic("demo:wrong")["Authorization"]
    assert send_lines("Authorization", right).code == 200
    for lines in ((right, right), (right, wrong), (wrong, right), (right, "Bearer x")):
        assert send_lines("Authorization", *lines).code == 401


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        pytest.param(PASSWORD, (200, 401), id="password-on-both"),
        pytest.param(OPEN, (200, 200), id="password-at-the-proxy-only"),
    ],
)
def test_credentials_forwarded_by_nginx_are_verified(site: Site, statuses: tuple[int, int]) -> None:
    """With the same users in both, one login suffices; otherwise the proxy must remove the header."""
    assert (site.fetch("/tasks", **DEMO).code, site.fetch("/tasks", headers=basic("nginx:user")).code) == statuses


@pytest.mark.parametrize("settings", [OAUTH])
def test_forwarded_authorization_does_not_disable_csrf_protection(site: Site) -> None:
    """In Flower, any Authorization header disables the check of the token."""
    jar = Jar(site)
    jar.log_in()
    cookie = "; ".join(f"{name}={value}" for name, value in jar.cookies.items())
    headers = {"Cookie": cookie, **basic("nginx:user")}
    assert site.fetch("/tasks", headers=headers).code == 200
    forged = {**headers, "Origin": "https://evil.example"}
    assert site.fetch("/api/task/revoke/1", method="POST", headers=forged).code == 403


# The generated password


@pytest.mark.parametrize("settings", [{}, {"basic_auth": []}, {"metrics_auth": "prometheus:scrape"}])
def test_a_password_is_generated_if_no_users_are_configured(site: Site) -> None:
    """Flower then requires no authentication, on all interfaces."""
    generated = site.app.access.generated
    assert generated is not None
    user, password = generated
    assert (user, len(password) >= 16) == ("flower", True)
    assert site.fetch("/tasks").code == 401
    assert site.fetch("/tasks", headers=basic(f"{user}:{password[:-1]}")).code == 401
    assert site.fetch("/tasks", headers=basic(f"{user}:{password}")).code == 200


def test_each_start_generates_another_password(options: OptionParser, io_loop: IOLoop) -> None:
    options.basic_auth = []
    capp = Celery(broker="memory://")
    generated = set()
    for _ in range(2):
        app = FlowerProxy(capp=capp, options=options)
        generated.add(app.access.generated)
        app.stop()
        app.executor.shutdown()
    assert len(generated) == 2


@pytest.mark.parametrize("settings", [PASSWORD, OAUTH, HEADER, OPEN])
def test_no_password_is_generated_if_authentication_is_configured(app: FlowerProxy) -> None:
    assert app.access.generated is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"no_auth": True, **PASSWORD}, "--no_auth: .*--basic_auth ", id="no-auth-password"),
        pytest.param({"no_auth": True, "basic_auth_file": "f"}, "--no_auth: .*--basic_auth_file ", id="no-auth-file"),
        pytest.param({"no_auth": True, "auth_file": "f"}, "--no_auth: .*--auth_file ", id="no-auth-hashes"),
        pytest.param({"no_auth": True, **OAUTH}, "--no_auth: .*--auth ", id="no-auth-oauth"),
        pytest.param({"no_auth": True, **HEADER}, "--no_auth: .*--auth_header ", id="no-auth-header"),
        pytest.param({"no_auth": True, "viewers": ["bob"]}, "--no_auth: .*--viewers ", id="no-auth-viewers"),
        pytest.param({**PASSWORD, "viewers": ["bob"]}, "--viewers: 'bob'", id="unknown-viewer"),
        pytest.param({"viewers": ["bob"]}, "--viewers: 'bob'", id="viewer-without-users"),
        pytest.param(
            {**PASSWORD, "metrics_open": True, "metrics_auth": "p:s"}, "--metrics_open: .*--metrics_auth", id="metrics"
        ),
        pytest.param({**PASSWORD, "metrics_auth": "demo:other"}, "--metrics_auth: 'demo'", id="metrics-user-of-pages"),
        pytest.param({**PASSWORD, "metrics_address": "::1"}, "--metrics_address: .*--metrics_port", id="metrics-port"),
        pytest.param({"auth": "me@host.example"}, "--auth: .*--auth_provider", id="oauth-without-provider"),
        pytest.param({"auth_provider": "x.Y"}, "--auth_provider: .*--auth", id="provider-without-oauth"),
        pytest.param({"basic_auth": ["demo:secret", ""]}, "--basic_auth: entry 2", id="empty-entry"),
        pytest.param({"basic_auth": ["demo"]}, "--basic_auth: entry 1", id="no-password"),
        pytest.param({"basic_auth_file": "/nonexistent"}, "--basic_auth_file: '/nonexistent'", id="no-file"),
        pytest.param({**PASSWORD, "cors_origins": ["*"]}, r"'\*' is not an origin", id="cors-wildcard"),
        pytest.param({**OPEN, "allowed_hosts": ["*"]}, r"'\*' is not a host name", id="host-wildcard"),
    ],
)
def test_contradictory_or_invalid_options_prevent_the_start(options: OptionParser, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FlowerProxy(capp=Celery(broker="memory://"), options=options)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


# Rate limits


def fail_logins(site: Site, count: int, user: str = "alice", **headers: str) -> set[int]:
    return {site.fetch("/tasks", headers={**basic(f"{user}:wrong{i}"), **headers}).code for i in range(count)}


ALICE, BOB = basic("alice:right"), basic("bob:right")
TWO_USERS = {"basic_auth": ["alice:right", "bob:right"]}
CLIENT, OTHER = {"X-Forwarded-For": "203.0.113.1"}, {"X-Forwarded-For": "203.0.113.2"}

two_users = pytest.mark.parametrize("settings", [TWO_USERS])


@two_users
def test_the_eleventh_failed_login_is_rate_limited(site: Site) -> None:
    assert fail_logins(site, 10, **CLIENT) == {401}
    response = site.fetch("/tasks", headers={**basic("alice:wrong"), **CLIENT})
    assert response.code == 429
    assert 0 < int(response.headers["Retry-After"]) <= 30
    assert "WWW-Authenticate" not in response.headers
    assert not holds_data(response)


@two_users
def test_the_right_password_is_rate_limited_too(site: Site) -> None:
    fail_logins(site, 10, **CLIENT)
    for path in ("/tasks", "/api/workers", "/metrics"):
        assert site.fetch(path, headers={**ALICE, **CLIENT}).code == 429


@two_users
def test_other_users_and_addresses_are_not_rate_limited(site: Site) -> None:
    fail_logins(site, 10, **CLIENT)
    assert site.fetch("/tasks", headers={**ALICE, **OTHER}).code == 200
    assert site.fetch("/tasks", headers={**BOB, **CLIENT}).code == 200
    assert site.fetch("/healthcheck", headers=CLIENT).code == 200


@two_users
def test_spoofed_addresses_do_not_evade_the_rate_limit(site: Site) -> None:
    """Only the address that the proxy appends counts; values left of it may be spoofed."""
    for i in range(10):
        fail_logins(site, 1, **{"X-Forwarded-For": f"198.51.100.{i}, 203.0.113.1"})
    assert site.fetch("/tasks", headers={**ALICE, **CLIENT}).code == 429


@two_users
def test_known_browsers_have_their_own_rate_limit(site: Site) -> None:
    cookie = _browser(site, ALICE)
    fail_logins(site, 10, **CLIENT)
    assert site.fetch("/tasks", headers={**ALICE, **CLIENT}).code == 429
    assert site.fetch("/tasks", headers={**ALICE, **CLIENT, "Cookie": cookie}).code == 200
    # The known browser is limited too
    assert fail_logins(site, 10, **CLIENT, Cookie=cookie) == {401}
    assert fail_logins(site, 1, **CLIENT, Cookie=cookie) == {429}


@two_users
def test_the_browser_cookie_is_valid_only_for_its_user(site: Site) -> None:
    """Otherwise a user could guess other users' passwords with fresh cookies."""
    fail_logins(site, 10, **CLIENT)
    for _ in range(2):
        assert fail_logins(site, 1, **CLIENT, Cookie=_browser(site, BOB)) == {429}


@two_users
def test_forged_browser_cookies_are_ignored(site: Site) -> None:
    fail_logins(site, 10, **CLIENT)
    name, _, value = _browser(site, ALICE).partition("=")
    for forged in (f"{name}=x alice", f"{name}={value[:-1]}0", f"{name}="):
        assert site.fetch("/tasks", headers={**ALICE, **CLIENT, "Cookie": forged}).code == 429


@two_users
def test_the_browser_cookie_is_set_only_if_missing_or_invalid(site: Site) -> None:
    cookie = _browser(site, ALICE)
    name, _, value = cookie.partition("=")
    for _ in range(2):
        assert "Set-Cookie" not in site.fetch("/tasks", headers={**ALICE, "Cookie": cookie}).headers
        assert "Set-Cookie" in site.fetch("/tasks", headers={**BOB, "Cookie": cookie}).headers
        for wrong in (f"{name}=x alice", f"{name}={value[:-1]}0", f"{name}=", "other=1"):
            assert "Set-Cookie" in site.fetch("/tasks", headers={**ALICE, "Cookie": wrong}).headers


@two_users
def test_requests_without_valid_credentials_syntax_are_not_counted(site: Site) -> None:
    for _ in range(15):
        assert site.fetch("/tasks", headers={"Authorization": "Basic =", **CLIENT}).code == 401
        assert site.fetch("/tasks", headers=CLIENT).code == 401
    assert site.fetch("/tasks", headers={**ALICE, **CLIENT}).code == 200


@two_users
def test_successful_logins_are_never_rate_limited(site: Site) -> None:
    assert {site.fetch("/tasks", headers={**ALICE, **CLIENT}).code for _ in range(25)} == {200}


@two_users
def test_login_failures_are_counted_by_reason(site: Site) -> None:
    def counted() -> dict[str, float]:
        text = site.page("/metrics", headers=BOB)
        found = re.findall(r'^flower_proxy_login_failures_total{reason="(\w+)"} (\S+)$', text, re.MULTILINE)
        return {reason: float(number) for reason, number in found}

    assert counted() == dict.fromkeys((failure.value for failure in LoginFailure), 0)
    fail_logins(site, 12, **CLIENT)
    site.fetch("/tasks", headers={"Authorization": "Basic ="})
    assert counted() == {
        "invalid_credentials": 10,
        "rate_limited": 2,
        "malformed_authorization": 1,
        "malformed_user_header": 0,
    }


@pytest.mark.parametrize("settings", [HEADER])
def test_malformed_user_headers_are_counted(site: Site) -> None:
    assert site.fetch("/tasks", headers={"X-Forwarded-User": "alice, bob"}).code == 400
    text = site.page("/metrics", headers={"X-Forwarded-User": "alice"})
    assert 'flower_proxy_login_failures_total{reason="malformed_user_header"} 1.0' in text


@pytest.mark.parametrize("settings", [{**TWO_USERS, "trusted_proxies": ["192.0.2.1"]}])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_untrusted_peers_cannot_forward_a_client(site: Site) -> None:
    for i in range(10):
        fail_logins(site, 1, **{"X-Forwarded-For": f"203.0.113.{i}"})
    assert site.fetch("/tasks", headers={**ALICE, "X-Forwarded-For": "203.0.113.99"}).code == 429


def _browser(site: Site, authorization: dict[str, str]) -> str:
    """Log in with a new browser, and return its browser cookie."""
    line: str = site.fetch("/tasks", headers=authorization).headers["Set-Cookie"]
    assert line.startswith("flower_browser_")
    return line.partition(";")[0]


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
@pytest.mark.parametrize("settings", [TWO_USERS])
def test_the_browser_cookie_is_http_only(site: Site, scheme: str, secure: bool) -> None:
    """Flower's cookies have no Secure attribute."""
    line = site.fetch("/tasks", headers={**ALICE, "X-Forwarded-Proto": scheme}).headers["Set-Cookie"]
    attributes = {part.strip().lower() for part in line.split(";")[1:]}
    assert {"httponly", "samesite=lax", f"path={PREFIX}".lower()} <= attributes
    assert ("secure" in attributes) is secure
    assert "right" not in line


# The API


@pytest.mark.parametrize("value", ["true", "enabled", "1", "no such word"])
@pytest.mark.parametrize("settings", [PASSWORD, {}])
def test_flower_unauthenticated_api_grants_no_access(site: Site, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Flower opens the API to every web site, or drops every connection (mher/flower#1231)."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", value)
    for path in ("/api/workers", "/tasks", "/metrics"):
        response = site.fetch(path, headers={"Origin": "https://evil.example"})
        assert response.code == 401
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
    assert site.fetch("/healthcheck").code == 200


@pytest.mark.parametrize("path", ["/api/workers", "/tasks", "/static/css/flower.css"])
@pytest.mark.parametrize("settings", [OPEN])
def test_flower_unauthenticated_api_enables_no_cors(site: Site, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """This includes a server without authentication."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    response = site.fetch(path, headers={"Origin": "https://evil.example"})
    assert (response.code, cors(response)) == (200, {})


@pytest.mark.parametrize("settings", [OPEN])
def test_no_auth_enables_the_api_without_flower_unauthenticated_api(site: Site) -> None:
    """This includes control buttons, which Flower answers with 401 (mher/flower#1231)."""
    assert site.fetch("/api/workers").code == 200
    assert site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "same-origin"}).code == 200
    assert site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "cross-site"}).code == 403


# Cross-site requests

DASHBOARD = "https://dashboard.example"


def cors(response: HTTPResponse) -> dict[str, str]:
    return {
        name.lower().removeprefix("access-control-"): value
        for name, value in response.headers.get_all()
        if name.lower().startswith("access-control-")
    }


dashboard = pytest.mark.parametrize(
    "settings",
    [{**PASSWORD, "cors_origins": [DASHBOARD]}, {**OPEN, "cors_origins": [DASHBOARD]}],
    ids=["password", "no-auth"],
)


@dashboard
@pytest.mark.parametrize("path", ["/api/workers", "/tasks", "/metrics"])
def test_a_cors_origin_may_read(site: Site, path: str) -> None:
    headers = {"Origin": DASHBOARD, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    response = site.fetch(path, headers=headers, **DEMO)
    assert response.code == 200
    assert cors(response) == {"allow-origin": DASHBOARD, "allow-credentials": "true"}
    assert "Origin" in re.split(r",\s*", response.headers["Vary"])


@dashboard
def test_responses_without_credentials_have_cors_headers(site: Site) -> None:
    response = site.fetch("/api/workers", headers={"Origin": DASHBOARD})
    assert cors(response)["allow-origin"] == DASHBOARD


@dashboard
def test_preflight_requests_of_a_cors_origin_are_answered(site: Site) -> None:
    asked = {"Origin": DASHBOARD, "Access-Control-Request-Headers": "authorization"}
    response = site.fetch("/api/workers", method="OPTIONS", headers={**asked, "Access-Control-Request-Method": "GET"})
    assert (response.code, response.body) == (204, b"")
    assert cors(response) == {
        "allow-origin": DASHBOARD,
        "allow-credentials": "true",
        "allow-methods": "GET, HEAD",
        "allow-headers": "Authorization",
    }


@dashboard
@pytest.mark.parametrize("method", ["POST", "DELETE", "", "get, POST"])
def test_preflight_requests_for_other_methods_are_not_allowed(site: Site, method: str) -> None:
    headers = {"Origin": DASHBOARD, "Access-Control-Request-Method": method}
    response = site.fetch("/api/workers", method="OPTIONS", headers=headers)
    assert "allow-methods" not in cors(response)
    assert "allow-headers" not in cors(response)


@dashboard
@pytest.mark.parametrize("extra", [{}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}])
@pytest.mark.parametrize("path", ["/api/task/revoke/1", "/tasks/datatable"])
def test_a_cors_origin_may_not_post(site: Site, path: str, extra: dict[str, str]) -> None:
    response = site.fetch(path, method="POST", headers={"Origin": DASHBOARD, **extra}, **DEMO)
    assert response.code == 403


@dashboard
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://dashboard.example",
        "https://dashboard.example:8443",
        "https://dashboard.example.evil.example",
        "https://x.dashboard.example",
        "null",
        f"{DASHBOARD}, https://evil.example",
    ],
)
def test_other_origins_are_refused(site: Site, origin: str) -> None:
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    response = site.fetch("/api/workers", headers=headers, **DEMO)
    assert (response.code, cors(response)) == (403, {})
    # A cache must not serve the dashboard's response to another origin
    assert "Origin" in re.split(r",\s*", response.headers["Vary"])
    preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    assert cors(site.fetch("/api/workers", method="OPTIONS", headers=preflight)) == {}


@pytest.mark.parametrize(
    ("fetch_metadata", "read", "control"),
    [
        pytest.param("", 200, 200, id="no-browser"),
        pytest.param("same-origin cors", 200, 200, id="own-page"),
        pytest.param("same-origin navigate", 200, 200, id="own-link"),
        pytest.param("none navigate", 200, 403, id="typed-or-bookmark"),
        pytest.param("cross-site navigate", 200, 403, id="link-or-frame-of-another-site"),
        pytest.param("same-site navigate", 200, 403, id="link-of-a-sibling"),
        pytest.param("cross-site no-cors", 403, 403, id="image-or-script-of-another-site"),
        pytest.param("cross-site cors", 403, 403, id="fetch-of-another-site"),
        pytest.param("same-site no-cors", 403, 403, id="image-of-a-sibling"),
        pytest.param("same-site cors", 403, 403, id="fetch-of-a-sibling"),
        pytest.param("cross-site websocket", 403, 403, id="websocket"),
        pytest.param("cross-site", 403, 403, id="no-mode"),
        pytest.param("CROSS-SITE no-cors", 403, 403, id="capitals"),
    ],
)
@pytest.mark.parametrize("settings", [PASSWORD, OPEN], ids=["password", "no-auth"])
def test_cross_site_requests_are_refused_except_for_navigation(
    site: Site, settings: dict[str, Any], fetch_metadata: str, read: int, control: int
) -> None:
    """They cannot control, and may read only by navigation, whatever credentials they carry."""
    names = ("Sec-Fetch-Site", "Sec-Fetch-Mode")
    headers = dict(zip(names, fetch_metadata.split(), strict=False))
    for method in ("GET", "HEAD"):
        assert site.fetch("/tasks", method=method, headers=headers, **DEMO).code == read
    assert site.fetch("/api/task/revoke/1", method="POST", headers=headers, **DEMO).code == control
    assert site.fetch("/healthcheck", headers=headers).code == 200
    assert site.fetch("/static/css/flower.css", headers=headers).code == 200
    if settings is PASSWORD:
        # Checked before authentication, so that another site cannot trigger the browser's password prompt
        refused = {headers.get("Sec-Fetch-Site", "").lower()} <= {"cross-site", "same-site"}
        for path, method, status in (("/tasks", "GET", read), ("/tasks/datatable", "POST", 403 if refused else 200)):
            response = site.fetch(path, method=method, headers=headers)
            expected = (401, CHALLENGE) if status == 200 else (403, None)
            assert (response.code, response.headers.get("WWW-Authenticate")) == expected


# Host header validation (DNS rebinding)


@pytest.mark.parametrize(
    ("host", "forwarded", "connection", "status"),
    [
        pytest.param("evil.example", "", "keep-alive", 403, id="unknown-name"),
        pytest.param("evil.example:5555", "", "keep-alive", 403, id="unknown-name-with-port"),
        pytest.param("evil.example", "", "close", 403, id="unknown-name-from-a-script"),
        pytest.param("evil.example", "flower.example", "keep-alive", 403, id="forwarded-host-from-a-browser"),
        pytest.param("evil.example", "localhost", "Keep-Alive, X", 403, id="forwarded-host-from-a-browser-in-capitals"),
        pytest.param("upstream", "flower.example", "close", 200, id="proxy"),
        pytest.param("flower.example", "flower.example", "upgrade", 200, id="proxy-with-connection-upgrade"),
        pytest.param("upstream", "", "close", 403, id="proxy-without-forwarded-host"),
        pytest.param("127.0.0.1", "", "keep-alive", 200, id="ipv4"),
        pytest.param("192.0.2.7:5555", "", "keep-alive", 200, id="ipv4-with-port"),
        pytest.param("[::1]", "", "keep-alive", 200, id="ipv6"),
        pytest.param("[2001:db8::7]:5555", "", "keep-alive", 200, id="ipv6-with-port"),
        pytest.param("localhost:5555", "", "keep-alive", 200, id="localhost"),
        pytest.param("sub.localhost", "", "keep-alive", 200, id="subdomain-of-localhost"),
        pytest.param("LocalHost.", "", "keep-alive", 200, id="localhost-trailing-dot"),
        pytest.param("localhost.evil.example", "", "keep-alive", 403, id="starts-with-localhost"),
        pytest.param("evil-localhost", "", "keep-alive", 403, id="ends-with-localhost"),
        pytest.param("127.0.0.1.evil.example", "", "keep-alive", 403, id="starts-with-an-address"),
        pytest.param("ours.example", "", "keep-alive", 200, id="allowed"),
        pytest.param("OURS.example.:8443", "", "keep-alive", 200, id="allowed-in-another-spelling"),
        pytest.param("sub.ours.example", "", "keep-alive", 403, id="subdomain-of-an-allowed-host"),
        pytest.param("theirs-ours.example", "", "keep-alive", 403, id="ends-with-an-allowed-host"),
        pytest.param("a.b.corp.example", "", "keep-alive", 200, id="subdomain-of-an-allowed-domain"),
        pytest.param("corp.example", "", "keep-alive", 200, id="allowed-domain-itself"),
        pytest.param("evilcorp.example", "", "keep-alive", 403, id="ends-with-an-allowed-domain"),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"no_auth": True, "allowed_hosts": ["Ours.Example.", ".corp.example"]},
        {**HEADER, "allowed_hosts": ["Ours.Example.", ".corp.example"]},
    ],
    ids=["no-auth", "header"],
)
def test_host_header_validation(site: Site, host: str, forwarded: str, connection: str, status: int) -> None:
    headers = {"Host": host, "Connection": connection, "X-Forwarded-User": "alice"}
    if forwarded:
        headers["X-Forwarded-Host"] = forwarded
    for path in ("/tasks", "/api/workers", "/metrics", "/logout"):
        response = site.fetch(path, headers=headers)
        assert response.code == status, path
        assert status == 200 or not holds_data(response)
    assert site.fetch("/nothing", headers=headers).code == (404 if status == 200 else 403)
    assert site.fetch("/healthcheck", headers=headers).code == 200


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param({}, 401, id="generated-password"),
        pytest.param(PASSWORD, 401, id="password"),
        pytest.param(HEADER, 403, id="header"),
        pytest.param({"no_auth": True}, 403, id="no-auth"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_the_login_page_does_not_bypass_the_policy_without_a_provider(site: Site, method: str, status: int) -> None:
    """The page does not exist then; it would disclose a page's token."""
    response = ask(site, "/login", method, headers={"Host": "evil.example", "Connection": "keep-alive"})
    assert response.code == status
    assert not holds_data(response)


@pytest.mark.parametrize("settings", [{"no_auth": True}])
def test_a_refused_host_is_answered_with_the_remedy(site: Site) -> None:
    body = text_of(site.fetch("/", headers={"Host": "flower.example:5555"}))
    assert "--allowed_hosts=flower.example" in body.split()


@pytest.mark.parametrize("settings", [PASSWORD])
def test_any_host_is_allowed_with_a_password(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Host": "anything.example", "Connection": "keep-alive"}, **DEMO).code == 200


# User headers of trusted proxies

NO_USER_HEADER = "no trusted proxy sent X-Forwarded-User\n"

by_header = pytest.mark.parametrize("settings", [{**HEADER, "allowed_hosts": ["host.example"]}])


@by_header
def test_a_trusted_proxy_names_the_user(site: Site) -> None:
    html = site.page("/tasks", headers={"X-Forwarded-User": " alice@host.example "})
    assert ">alice@host.example<" in html
    assert "Set-Cookie" not in site.fetch("/tasks", headers={"X-Forwarded-User": "alice"}).headers


@by_header
@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_an_empty_user_header_is_ignored(site: Site, value: str) -> None:
    response = site.fetch("/tasks", headers={"X-Forwarded-User": value})
    assert (response.code, text_of(response)) == (403, NO_USER_HEADER)


@by_header
def test_passwords_are_not_accepted_without_users(site: Site) -> None:
    assert text_of(site.fetch("/tasks", **DEMO)) == NO_USER_HEADER


@by_header
@pytest.mark.parametrize(
    "lines",
    [("alice", "bob"), ("alice", "alice"), ("alice", ""), ("", "bob"), ("", ""), ("alice,bob",)],
    ids=" | ".join,
)
def test_a_user_header_with_a_second_line_or_name_is_a_bad_request(
    send_lines: Callable[..., HTTPResponse], lines: tuple[str, ...]
) -> None:
    """One may be the proxy's and one the client's, which cannot be distinguished."""
    response = send_lines("X-Forwarded-User", *lines)
    assert (response.code, text_of(response)) == (
        400,
        "X-Forwarded-User: expected one line with one user name: printable, no comma, at most 200 characters;"
        " let the proxy replace the header\n",
    )


@by_header
@pytest.mark.parametrize("name", ["a\tb", "a" * 201, "a\u200eb"])
def test_malformed_user_names_are_bad_requests(site: Site, name: str) -> None:
    response = site.fetch("/tasks", headers={"X-Forwarded-User": name.encode().decode("latin-1")})
    assert response.code == 400


@by_header
@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param("J\xf6rg", "J\xf6rg", id="latin-1"),
        pytest.param("J\xf6rg".encode().decode("latin-1"), "J\xf6rg", id="utf-8"),
        pytest.param(
            "\u041e\u043b\u044c\u0433\u0430".encode().decode("latin-1"), "\u041e\u043b\u044c\u0433\u0430", id="cyrillic"
        ),
        pytest.param("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;", id="html"),
        pytest.param('"><b>', "&quot;&gt;&lt;b&gt;", id="attribute"),
        pytest.param("{{ 1 + 1 }}", "{{ 1 + 1 }}", id="template"),
    ],
)
def test_forwarded_user_names_are_decoded_and_escaped(site: Site, sent: str, shown: str) -> None:
    html = site.page("/tasks", headers={"X-Forwarded-User": sent})
    assert f">{shown}<" in html


@pytest.mark.usefixtures("new_route")
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@pytest.mark.parametrize("settings", [{**HEADER, **PASSWORD, "trusted_proxies": ["192.0.2.1"]}])
def test_user_headers_of_untrusted_peers_are_removed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert site.fetch("/tasks", headers={"X-Forwarded-User": "admin"}).code == 401
    reflected = text_of(site.fetch("/new", headers={"X-Forwarded-User": "admin"}, **DEMO))
    assert "Authorization" in reflected
    assert "admin" not in reflected
    assert ">demo<" in site.page("/tasks", headers={"x-forwarded-user": "admin"}, **DEMO)
    assert "--trusted_proxies=127.0.0.1" in caplog.text


@pytest.mark.parametrize("settings", [{**HEADER, **PASSWORD}])
def test_users_without_a_user_header_can_log_in_by_password(site: Site) -> None:
    assert site.fetch("/tasks").code == 401
    assert ">demo<" in site.page("/tasks", **DEMO)
    assert ">alice<" in site.page("/tasks", headers={"X-Forwarded-User": "alice"})


@pytest.mark.parametrize("settings", [{**HEADER, **OAUTH}])
def test_users_named_by_the_proxy_need_no_oauth_login(site: Site) -> None:
    assert site.fetch("/tasks").code == 302
    assert site.fetch("/tasks", headers={"X-Forwarded-User": "alice"}).code == 200


# Security headers


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/tasks", basic("demo:secret"), 200, id="page"),
        pytest.param("/api/workers", basic("demo:secret"), 200, id="api"),
        pytest.param("/metrics", basic("demo:secret"), 200, id="metrics"),
        pytest.param("/healthcheck", {}, 200, id="healthcheck"),
        pytest.param("/tasks", {}, 401, id="401"),
        pytest.param("/tasks", {"Sec-Fetch-Site": "cross-site"}, 403, id="403"),
        pytest.param("/nothing", basic("demo:secret"), 404, id="404"),
        pytest.param("/api/task/info/nothing", basic("demo:secret"), 404, id="api-404"),
        pytest.param("/task/%ff", basic("demo:secret"), 400, id="400"),
        pytest.param("/static/css/flower.css", {}, 200, id="static"),
        pytest.param("/static/nothing", {}, 404, id="static-404"),
        pytest.param(f"{PREFIX}//tasks", {"X-Forwarded-Prefix": PREFIX}, 307, id="redirect"),
        pytest.param("/tasks", {"X-Forwarded-Proto": "gopher"}, 400, id="malformed-forwarded-header"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_response_has_security_headers(
    site: Site, path: str, headers: dict[str, str], status: int, method: str
) -> None:
    """Flower sends one of these, not on static files, and discloses its server's version (mher/flower#532)."""
    response = site.fetch(path, headers=headers, method=method)
    assert response.code == status
    assert response.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    assert response.headers.get_list("Referrer-Policy") == ["same-origin"]
    assert "Server" not in response.headers
    assert "Tornado" not in str(list(response.headers.get_all()))
    if path.startswith("/static"):
        assert response.headers.get("Cache-Control") != "no-store"
    else:
        assert response.headers.get_list("Cache-Control") == ["no-store"]
        # Responses sent before the access policy contain no page
        policies = [] if {"X-Forwarded-Prefix", "X-Forwarded-Proto"} & set(headers) else ["frame-ancestors 'self'"]
        sent = response.headers.get_list("Content-Security-Policy")
        assert [policy.rpartition("; ")[2] for policy in sent] == policies


@pytest.mark.parametrize("path", ["/", "/tasks", "/nothing", "/broker"])
@pytest.mark.parametrize("kind", ["kept", "unforwarded"], indirect=True)
def test_each_page_has_a_new_nonce_on_all_its_inline_scripts(site: Site, path: str) -> None:
    """Scripts injected by names do not run (mher/flower#1182)."""
    nonces = set()
    for _ in range(2):
        response = site.fetch(path, **DEMO)
        policy = response.headers["Content-Security-Policy"]
        (nonce,) = re.findall(r"'nonce-([\w-]{20,})'", policy)
        html = text_of(response)
        inline = [tag for tag in re.findall(r"<script\b[^>]*>", html) if "src=" not in tag]
        assert all(f'nonce="{nonce}"' in tag for tag in inline)
        assert inline or (site.kind, path) != ("unforwarded", "/")
        assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
        nonces.add(nonce)
    assert len(nonces) == 2


@pytest.mark.parametrize("path", ["/api/workers", "/workers?json=1", "/metrics", "/tasks/datatable"])
def test_only_pages_have_a_nonce(site: Site, path: str) -> None:
    policy = site.fetch(path, **DEMO).headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy


@pytest.mark.parametrize("settings", [{**PASSWORD, "frame_ancestors": ["self", "https://portal.example"]}])
def test_frame_ancestors_are_sent(site: Site) -> None:
    policy = site.fetch("/tasks", **DEMO).headers["Content-Security-Policy"]
    assert "frame-ancestors 'self' https://portal.example" in policy


# Secrets

PLANTED = {
    "basic_auth": ["demo:PLANTED-basic", "other:PLANTED-other"],
    "metrics_auth": "prometheus:PLANTED-metrics",
    "cookie_secret": "PLANTED-cookie",
    "oauth2_secret": "PLANTED-oauth",
    "broker_api": "http://guest:PLANTED-api@127.0.0.1:1/api/",
    "debug": True,
    "access_log": True,
    "format_task": lambda task: None,
}
BROKER = "redis://:PLANTED-broker@127.0.0.1:1/0"


def spellings(secret: bytes) -> Iterator[str]:
    """Yield encodings in which a secret could be disclosed."""
    yield secret.decode()
    yield quote(secret.decode(), safe="").replace("-", "%2D")
    yield secret.hex()
    for shift in range(3):
        # Without the characters at both ends, which depend on the adjacent bytes
        yield base64.b64encode(b"x" * shift + secret).decode()[4:-4]


@pytest.mark.usefixtures("worker_and_task")
@pytest.mark.parametrize("settings", [PLANTED])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_secrets_are_in_no_response_and_not_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """This includes debug logs and the page with a traceback (mher/flower#1037)."""
    caplog.set_level(logging.DEBUG)
    site.app.capp.conf.broker_url = BROKER
    site.app.monitor.watch.start()
    site.app.settings["oauth"]["secret"] = PLANTED["oauth2_secret"]
    shown = []
    statuses = set()
    paths = [path for pattern, path in routes(site.app).items() if "/worker/" not in pattern]
    for authorization in (
        {},
        basic("demo:PLANTED-basic"),
        basic("demo:PLANTED-typo"),
        basic("prometheus:PLANTED-metrics"),
    ):
        for path in [*paths, "/workers?json=1", "/tasks/datatable", f"/task/{TASK}", f"/api/task/info/{TASK}"]:
            response = site.fetch(path, headers=authorization)
            shown.append(text_of(response) + str(list(response.headers.get_all())))
            statuses.add((path, response.code))
    assert {(f"/task/{TASK}", 500), ("/broker", 200), ("/api/queues/length", 503)} <= statuses
    text = "\n".join([*shown, caplog.text])
    assert "Traceback (most recent call last)" in "\n".join(shown)
    assert "redis://:**@127.0.0.1:1/0" in text
    assert "login refused" in caplog.text
    secrets = [b"PLANTED-basic", b"PLANTED-other", b"PLANTED-metrics", b"PLANTED-cookie", b"PLANTED-oauth"]
    for secret in [*secrets, b"PLANTED-api", b"PLANTED-broker", b"PLANTED-typo", b"demo:PLANTED-basic"]:
        for spelling in spellings(secret):
            assert spelling not in text, spelling


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@pytest.mark.parametrize("settings", [{}])
def test_the_generated_password_is_in_no_response_and_not_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert site.app.access.generated is not None
    user, password = site.app.access.generated
    assert password not in site.page("/tasks", headers=basic(f"{user}:{password}"))
    assert password not in text_of(site.fetch("/tasks"))
    assert password not in caplog.text


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_errors_in_password_files_do_not_quote_them(options: OptionParser, tmp_path: Path) -> None:
    """A malformed line may be a password."""
    file = tmp_path / "users"
    file.write_text("demo:secret\nPLANTED\n")
    file.chmod(0o600)
    options.basic_auth, options.basic_auth_file = [], str(file)
    with pytest.raises(ValueError, match="line 2") as error:
        FlowerProxy(capp=Celery(broker="memory://"), options=options)
    assert "PLANTED" not in str(error.value)
