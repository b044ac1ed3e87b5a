"""Who may read the metrics (P6): those who may enter, a user of their own, or everybody; here, or at another port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.ioloop import IOLoop

from flower_proxy.app import FlowerProxy
from tests.http.conftest import OPEN, PREFIX, Site
from tests.http.test_access_policy import CHALLENGE, HEADER, METHODS, OAUTH, basic

NOTHING: dict[str, str] = {}
USER, SCRAPER = basic("demo:secret"), basic("prometheus:scrape")
PASSWORD = {"basic_auth": ["demo:secret"]}
OF_THEIR_OWN = {"metrics_auth": "prometheus:scrape"}
PORT = {"metrics_port": 0, "metrics_address": "127.0.0.1"}


@pytest.fixture
def settings() -> dict[str, Any]:
    return PASSWORD


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param(PASSWORD, NOTHING, 401, id="closed-nothing"),
        pytest.param(PASSWORD, USER, 200, id="closed-user"),
        pytest.param(PASSWORD, SCRAPER, 401, id="closed-no-such-user"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, NOTHING, 401, id="own-user-nothing"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, USER, 200, id="own-user-user"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, SCRAPER, 200, id="own-user"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, basic("prometheus:x"), 401, id="own-user-wrong"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, basic("Prometheus:scrape"), 401, id="own-user-another-case"),
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, basic("prometheus:secret"), 401, id="own-user-users-password"),
        pytest.param({**PASSWORD, "metrics_open": True}, NOTHING, 200, id="open"),
        pytest.param({**PASSWORD, "metrics_open": True}, basic("demo:wrong"), 200, id="open-whatever-is-shown"),
        pytest.param({}, NOTHING, 401, id="made-up"),
        pytest.param({**OAUTH, **OF_THEIR_OWN}, NOTHING, 302, id="oauth-nothing"),
        pytest.param({**OAUTH, **OF_THEIR_OWN}, SCRAPER, 200, id="oauth-own-user"),
        pytest.param({**OAUTH, **PASSWORD, **OF_THEIR_OWN}, SCRAPER, 200, id="oauth-and-password-own-user"),
        pytest.param({**OAUTH, **PASSWORD}, USER, 302, id="oauth-and-password-user"),
        pytest.param({**HEADER, **OF_THEIR_OWN}, SCRAPER, 200, id="header-own-user"),
        pytest.param({**HEADER, **OF_THEIR_OWN}, NOTHING, 403, id="header-nothing"),
        pytest.param(OPEN, NOTHING, 200, id="no-auth"),
        # Who wants a password for the metrics must not get them without, whoever asks for the pages
        pytest.param({**OPEN, **OF_THEIR_OWN}, NOTHING, 401, id="no-auth-own-user-nothing"),
        pytest.param({**OPEN, **OF_THEIR_OWN}, SCRAPER, 200, id="no-auth-own-user"),
    ],
)
def test_who_may_read_the_metrics(site: Site, headers: dict[str, str], status: int) -> None:
    """P6."""
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
        pytest.param({**PASSWORD, **OF_THEIR_OWN}, SCRAPER, id="own-user"),
        pytest.param({**PASSWORD, "metrics_open": True}, NOTHING, id="open"),
    ],
)
def test_what_opens_the_metrics_opens_nothing_else(site: Site, path: str, headers: dict[str, str]) -> None:
    assert site.fetch(path, headers=headers).code == 401


@pytest.mark.parametrize("settings", [{**PASSWORD, "metrics_open": True}])
def test_open_metrics_take_no_post(site: Site) -> None:
    for method in METHODS:
        body = "" if method in ("POST", "PUT", "PATCH") else None
        codes = {"GET": 200, "HEAD": 200, "OPTIONS": 204}
        assert site.fetch("/metrics", method=method, body=body).code == codes.get(method, 405)


@pytest.mark.parametrize("settings", [{**PASSWORD, **OF_THEIR_OWN}])
def test_guessing_the_password_of_the_metrics_is_slowed(site: Site) -> None:
    client = {"X-Forwarded-For": "203.0.113.1"}
    for i in range(10):
        assert site.fetch("/metrics", headers={**basic(f"prometheus:{i}"), **client}).code == 401
    assert site.fetch("/metrics", headers={**SCRAPER, **client}).code == 429
    assert site.fetch("/metrics", headers=SCRAPER).code == 200
    assert site.fetch("/metrics", headers={**USER, **client}).code == 200


# A listener of their own

Ask = Callable[..., HTTPResponse]


@pytest.fixture
def ask(app: FlowerProxy, http_client: AsyncHTTPClient, io_loop: IOLoop) -> Ask:
    """Ask at the port of the metrics."""
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


def test_without_the_option_there_is_no_such_listener(app: FlowerProxy) -> None:
    assert app.start_metrics_server() is None


@pytest.mark.parametrize(
    ("settings", "headers", "there", "here"),
    [
        pytest.param({**PORT, **PASSWORD}, NOTHING, 401, 401, id="closed-nothing"),
        pytest.param({**PORT, **PASSWORD}, USER, 200, 200, id="closed-user"),
        pytest.param({**PORT, **PASSWORD, **OF_THEIR_OWN}, SCRAPER, 200, 200, id="own-user"),
        pytest.param({**PORT, **PASSWORD, **OF_THEIR_OWN}, NOTHING, 401, 401, id="own-user-nothing"),
        pytest.param({**PORT, **PASSWORD, "metrics_open": True}, NOTHING, 200, 401, id="open-there-only"),
        pytest.param({**PORT, **PASSWORD, "metrics_open": True}, USER, 200, 200, id="open-there-user"),
        pytest.param({**PORT, **HEADER, "metrics_open": True}, NOTHING, 200, 403, id="open-there-header"),
        pytest.param({**PORT, "metrics_open": True}, NOTHING, 200, 401, id="open-there-made-up"),
    ],
)
@pytest.mark.parametrize("kind", ["kept", "unforwarded"], indirect=True)
def test_who_may_read_them_there(ask: Ask, site: Site, headers: dict[str, str], there: int, here: int) -> None:
    response = ask("/metrics", **headers)
    assert (response.code, site.fetch("/metrics", headers=headers).code) == (there, here)
    assert (b"flower_events_total" in response.body) is (there == 200)
    assert ask("/metrics", "HEAD", **headers).code == there
    assert ask("/metrics?x=1", **headers).code == there
    assert ask("/healthcheck").body == site.fetch("/healthcheck").body == b"OK"


@pytest.mark.parametrize("settings", [{**PASSWORD, **PORT, "metrics_open": True}])
@pytest.mark.parametrize(
    "path",
    ["/", "/tasks", "/api/workers", "/static/css/flower.css", "/metrics/", "/login", f"{PREFIX}/metrics", "//metrics"],
)
def test_nothing_else_is_there(ask: Ask, path: str) -> None:
    for method in METHODS:
        response = ask(path, method, **USER)
        assert response.code == 404
        assert "Server" not in response.headers
        assert b"<" not in response.body


@pytest.mark.parametrize("settings", [{**PASSWORD, **PORT, "metrics_open": True}])
@pytest.mark.parametrize("name", ["X-Forwarded-Prefix", "X-Script-Name"])
@pytest.mark.parametrize("prefix", ["/metrics", "/tasks", "/healthcheck"])
def test_a_prefix_leads_to_nothing_else_there(ask: Ask, name: str, prefix: str) -> None:
    response = ask("/metrics", **{name: prefix})
    assert response.code in (200, 308)
    assert b"<html" not in response.body
