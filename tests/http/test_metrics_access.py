"""Access to metrics: for users, a separate scraper, or everyone; on the main or another port (mher/flower#1342)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.ioloop import IOLoop

from flower_proxy.app import FlowerProxy
from tests.http.conftest import OPEN, PREFIX, Site
from tests.http.test_access_policy import CHALLENGE, HEADER, METHODS, OAUTH, basic

ANONYMOUS: dict[str, str] = {}
USER, SCRAPER = basic("demo:secret"), basic("prometheus:scrape")
PASSWORD = {"basic_auth": ["demo:secret"]}
METRICS_AUTH = {"metrics_auth": "prometheus:scrape"}
PORT = {"metrics_port": 0, "metrics_address": "127.0.0.1"}


@pytest.fixture
def settings() -> dict[str, Any]:
    return PASSWORD


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param(PASSWORD, ANONYMOUS, 401, id="password-anonymous"),
        pytest.param(PASSWORD, USER, 200, id="password-user"),
        pytest.param(PASSWORD, SCRAPER, 401, id="password-unknown-user"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, ANONYMOUS, 401, id="metrics-auth-anonymous"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, USER, 200, id="metrics-auth-user"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, SCRAPER, 200, id="metrics-auth-scraper"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, basic("prometheus:x"), 401, id="metrics-auth-wrong-password"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, basic("Prometheus:scrape"), 401, id="metrics-auth-other-case"),
        pytest.param({**PASSWORD, **METRICS_AUTH}, basic("prometheus:secret"), 401, id="metrics-auth-users-password"),
        pytest.param({**PASSWORD, "metrics_open": True}, ANONYMOUS, 200, id="open"),
        pytest.param({**PASSWORD, "metrics_open": True}, basic("demo:wrong"), 200, id="open-wrong-password"),
        pytest.param({}, ANONYMOUS, 401, id="generated-password"),
        pytest.param({**OAUTH, **METRICS_AUTH}, ANONYMOUS, 302, id="oauth-anonymous"),
        pytest.param({**OAUTH, **METRICS_AUTH}, SCRAPER, 200, id="oauth-scraper"),
        pytest.param({**OAUTH, **PASSWORD, **METRICS_AUTH}, SCRAPER, 200, id="oauth-and-password-scraper"),
        pytest.param({**OAUTH, **PASSWORD}, USER, 302, id="oauth-and-password-user"),
        pytest.param({**HEADER, **METRICS_AUTH}, SCRAPER, 200, id="header-scraper"),
        pytest.param({**HEADER, **METRICS_AUTH}, ANONYMOUS, 403, id="header-anonymous"),
        pytest.param(OPEN, ANONYMOUS, 200, id="no-auth"),
        # --metrics_auth protects the metrics even if the pages require no authentication
        pytest.param({**OPEN, **METRICS_AUTH}, ANONYMOUS, 401, id="no-auth-metrics-auth-anonymous"),
        pytest.param({**OPEN, **METRICS_AUTH}, SCRAPER, 200, id="no-auth-metrics-auth-scraper"),
    ],
)
def test_access_to_metrics(site: Site, headers: dict[str, str], status: int) -> None:
    for method in ("GET", "HEAD"):
        response = site.fetch("/metrics", method=method, headers=headers)
        assert response.code == status
        assert (b"flower_events_total" in response.body) is (status == 200 and method == "GET")
    assert site.fetch("/metrics", headers=headers).headers.get("WWW-Authenticate") == (
        CHALLENGE if status == 401 else None
    )


@pytest.mark.parametrize("path", ["/", "/tasks", "/api/workers", "/nothing", "/logout", "/metrics/", "/metricsx"])
@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        pytest.param({**PASSWORD, **METRICS_AUTH}, SCRAPER, id="metrics-auth"),
        pytest.param({**PASSWORD, "metrics_open": True}, ANONYMOUS, id="open"),
    ],
)
def test_access_to_metrics_grants_access_to_nothing_else(site: Site, path: str, headers: dict[str, str]) -> None:
    assert site.fetch(path, headers=headers).code == 401


@pytest.mark.parametrize("settings", [{**PASSWORD, "metrics_open": True}])
def test_public_metrics_allow_only_safe_methods(site: Site) -> None:
    for method in METHODS:
        body = "" if method in ("POST", "PUT", "PATCH") else None
        codes = {"GET": 200, "HEAD": 200, "OPTIONS": 204}
        assert site.fetch("/metrics", method=method, body=body).code == codes.get(method, 405)


@pytest.mark.parametrize("settings", [{**PASSWORD, **METRICS_AUTH}])
def test_failed_logins_of_the_scraper_are_rate_limited(site: Site) -> None:
    client = {"X-Forwarded-For": "203.0.113.1"}
    for i in range(10):
        assert site.fetch("/metrics", headers={**basic(f"prometheus:{i}"), **client}).code == 401
    assert site.fetch("/metrics", headers={**SCRAPER, **client}).code == 429
    assert site.fetch("/metrics", headers=SCRAPER).code == 200
    assert site.fetch("/metrics", headers={**USER, **client}).code == 200


# The metrics listener

Ask = Callable[..., HTTPResponse]


@pytest.fixture
def ask(app: FlowerProxy, http_client: AsyncHTTPClient, io_loop: IOLoop) -> Ask:
    """Send requests to the metrics listener."""
    port = app.start_metrics_server()
    assert port

    def fetch(path: str, method: str = "GET", **headers: str) -> HTTPResponse:
        body = "" if method in ("POST", "PUT", "PATCH") else None
        url = f"http://127.0.0.1:{port}{path}"
        response: HTTPResponse = io_loop.run_sync(
            lambda: http_client.fetch(
                url, method=method, headers=headers, body=body, raise_error=False, follow_redirects=False
            )
        )
        return response

    return fetch


def test_the_metrics_listener_is_disabled_by_default(app: FlowerProxy) -> None:
    assert app.start_metrics_server() is None


@pytest.mark.parametrize(
    ("settings", "headers", "metrics_port", "main_port"),
    [
        pytest.param({**PORT, **PASSWORD}, ANONYMOUS, 401, 401, id="password-anonymous"),
        pytest.param({**PORT, **PASSWORD}, USER, 200, 200, id="password-user"),
        pytest.param({**PORT, **PASSWORD, **METRICS_AUTH}, SCRAPER, 200, 200, id="metrics-auth-scraper"),
        pytest.param({**PORT, **PASSWORD, **METRICS_AUTH}, ANONYMOUS, 401, 401, id="metrics-auth-anonymous"),
        pytest.param({**PORT, **PASSWORD, "metrics_open": True}, ANONYMOUS, 200, 401, id="open-anonymous"),
        pytest.param({**PORT, **PASSWORD, "metrics_open": True}, USER, 200, 200, id="open-user"),
        pytest.param({**PORT, **HEADER, "metrics_open": True}, ANONYMOUS, 200, 403, id="open-header"),
        pytest.param({**PORT, "metrics_open": True}, ANONYMOUS, 200, 401, id="open-generated-password"),
    ],
)
@pytest.mark.parametrize("kind", ["kept", "unforwarded"], indirect=True)
def test_access_to_metrics_on_their_own_listener(
    ask: Ask, site: Site, headers: dict[str, str], metrics_port: int, main_port: int
) -> None:
    response = ask("/metrics", **headers)
    assert (response.code, site.fetch("/metrics", headers=headers).code) == (metrics_port, main_port)
    assert (b"flower_events_total" in response.body) is (metrics_port == 200)
    assert ask("/metrics", "HEAD", **headers).code == metrics_port
    assert ask("/metrics?x=1", **headers).code == metrics_port
    assert ask("/healthcheck").body == site.fetch("/healthcheck").body == b"OK"


@pytest.mark.parametrize("settings", [{**PASSWORD, **PORT, "metrics_open": True}])
@pytest.mark.parametrize(
    "path",
    ["/", "/tasks", "/api/workers", "/static/css/flower.css", "/metrics/", "/login", f"{PREFIX}/metrics", "//metrics"],
)
def test_the_metrics_listener_serves_nothing_else(ask: Ask, path: str) -> None:
    for method in METHODS:
        response = ask(path, method, **USER)
        assert response.code == 404
        assert "Server" not in response.headers
        assert b"<" not in response.body


@pytest.mark.parametrize("settings", [{**PASSWORD, **PORT, "metrics_open": True}])
@pytest.mark.parametrize("name", ["X-Forwarded-Prefix", "X-Script-Name"])
@pytest.mark.parametrize("prefix", ["/metrics", "/tasks", "/healthcheck"])
def test_a_forwarded_prefix_reveals_no_other_pages_on_the_metrics_listener(ask: Ask, name: str, prefix: str) -> None:
    response = ask("/metrics", **{name: prefix})
    assert response.code in (200, 308)
    assert b"<html" not in response.body
