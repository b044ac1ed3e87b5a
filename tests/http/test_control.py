"""Same-origin checks of control actions and the tasks table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from flower_proxy.auth.csrf import mask
from tests.http.conftest import OPEN, Site

TABLE = "draw=1&start=0&length=10&order[0][column]=0&columns[0][data]=name"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(params=["basic", "no-auth"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Basic authentication, or authentication by the proxy."""
    return OPEN if request.param == "no-auth" else {"basic_auth": ["demo:secret"]}


def post(site: Site, headers: dict[str, str], path: str = "/tasks/datatable", body: str = TABLE) -> int:
    response = site.fetch(
        path, method="POST", body=body, headers={**FORM, **headers}, auth_username="demo", auth_password="secret"
    )
    return int(response.code)


def token(site: Site) -> str:
    html = site.page("/tasks", auth_username="demo", auth_password="secret")
    match = re.search(r'name="flower-token" content="([^"]+)"', html)
    assert match is not None
    return match[1]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="no-browser"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, 200, id="same-origin"),
        pytest.param({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 200, id="same-origin-with-null-origin"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="cross-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, 403, id="same-site"),
        pytest.param({"Sec-Fetch-Site": "Cross-Site"}, 403, id="cross-site-capitalized"),
        pytest.param({"Sec-Fetch-Site": "none"}, 403, id="user-initiated"),
        pytest.param({"Origin": "http://evil.example"}, 403, id="another-origin"),
        pytest.param({"Origin": "null"}, 403, id="null-origin"),
        pytest.param({"Referer": "http://evil.example/page"}, 403, id="another-referer"),
        pytest.param({"Referer": "http://["}, 403, id="malformed-referer"),
        pytest.param({"Referer": "nonsense"}, 403, id="referer-without-origin"),
        pytest.param({"Origin": "http://evil.example", "X-XSRFToken": "guess"}, 403, id="guessed-token"),
        pytest.param(
            {"Origin": "http://evil.example", "X-XSRFToken": "2|1:0|10:1|4:page|4:VHJ1ZQ==|00"}, 403, id="forged-token"
        ),
        pytest.param(
            {"Origin": "http://evil.example", "X-XSRFToken": mask(b"2|1:0|10:1|4:page|4:VHJ1ZQ==|00")},
            403,
            id="forged-masked-token",
        ),
        pytest.param({"Origin": "http://evil.example", "Cookie": "_xsrf=1", "X-XSRFToken": "1"}, 403, id="own-cookie"),
        # Browsers do not send Sec-Fetch-Site over plain HTTP
        pytest.param({"Origin": "http://host.example:8080", "Host": "host.example:8080"}, 200, id="host-kept"),
        pytest.param({"Origin": "http://host.example:8080", "Host": "host.example"}, 403, id="port-lost"),
        pytest.param({"Origin": "http://host.example:8080", "Host": "upstream"}, 403, id="host-changed"),
        pytest.param(
            {
                "Origin": "https://host.example",
                "Host": "up",
                "X-Forwarded-Host": "host.example",
                "X-Forwarded-Proto": "https",
            },
            200,
            id="host-forwarded",
        ),
        pytest.param(
            {"Origin": "http://host.example:8080", "Host": "host.example", "X-Forwarded-Port": "8080"},
            200,
            id="port-forwarded",
        ),
    ],
)
def test_control_requires_proof_of_same_origin(site: Site, headers: dict[str, str], status: int) -> None:
    assert post(site, headers) == status


@pytest.mark.parametrize("host", ["host.example", "127.0.0.1:5555"])
def test_page_token_proves_same_origin_if_the_proxy_changes_the_host(site: Site, host: str) -> None:
    """Stock Flower answers 403 to its own page, see `test_stock.py`."""
    headers = {"Origin": "http://host.example:8080", "Host": host, "X-XSRFToken": token(site)}
    assert post(site, headers) == 200


def test_cross_site_requests_are_refused_despite_a_token(site: Site) -> None:
    assert post(site, {"Sec-Fetch-Site": "cross-site", "X-XSRFToken": token(site)}) == 403


def test_refusal_names_both_origins_and_the_remedy(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    post(site, {"Origin": "http://host.example:8080"})
    message = caplog.text
    assert "http://host.example:8080" in message
    assert site.origin in message
    assert "X-Forwarded-Host" in message


@pytest.mark.parametrize("path", ["/tasks", "/api/workers"])
def test_non_ascii_credentials_are_refused(site: Site, settings: dict[str, Any], path: str) -> None:
    """Stock Flower answers 500."""
    status = site.fetch(path, auth_username="demo", auth_password="s\xe9cret").code
    assert status == (401 if "basic_auth" in settings else 200)


def test_cookie_names_are_specific_to_the_location(site: Site, settings: dict[str, Any]) -> None:
    """Stock Flower's `_xsrf` overwrites that of another Tornado application on the host."""
    headers = site.fetch("/", auth_username="demo", auth_password="secret").headers
    names = [line.partition("=")[0] for line in headers.get_list("Set-Cookie")]
    assert all(re.fullmatch(r"flower_browser_[0-9a-f]{8}", name) for name in names)
    assert len(names) == ("basic_auth" in settings)


def test_foreign_xsrf_cookie_is_ignored(site: Site) -> None:
    headers = {"Cookie": "_xsrf=2|theirs", "Origin": "http://host.example:8080", "X-XSRFToken": token(site)}
    assert post(site, headers) == 200


def test_api_is_served_below_the_prefix(site: Site, event: Callable[..., None]) -> None:
    event("task-received", uuid="u1", name="add")
    body = site.page("/api/task/info/u1", auth_username="demo", auth_password="secret")
    assert '"uuid": "u1"' in body
