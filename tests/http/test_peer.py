"""IPv4 clients of a dual-stack socket, which have IPv4-mapped addresses."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from flower_proxy.app import FlowerProxy
from tests.http.conftest import Site
from tests.http.test_access_policy import ALICE, TWO_USERS, basic, fail_logins
from tests.http.test_report import SECRETS
from tests.http.test_report import fetch_report as look

UNTRUSTED = {"trusted_proxies": ["192.0.2.1"]}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {**TWO_USERS, "access_log": True}


@pytest.fixture
def dual_stack(app: FlowerProxy, http_client: AsyncHTTPClient, io_loop: IOLoop, kind: str) -> Site:
    """The same application on a socket where an IPv4 client is ``::ffff:127.0.0.1``."""
    listening = socket.socket(socket.AF_INET6)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", 0))
    listening.listen()
    listening.setblocking(False)
    port = app.start_http_server([listening])
    assert port
    return Site(kind, app, http_client, io_loop, port)


@pytest.mark.parametrize("settings", [SECRETS])
def test_an_ipv4_mapped_peer_is_trusted_as_its_ipv4_address(dual_stack: Site) -> None:
    seen = look(dual_stack, **{"X-Forwarded-For": "::ffff:192.0.2.7"})
    assert (seen.peer, seen.trusted, seen.client) == ("127.0.0.1", True, "192.0.2.7")


@pytest.mark.parametrize("settings", [{**SECRETS, **UNTRUSTED}])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_the_advice_for_an_ipv4_mapped_peer_is_a_valid_option(
    dual_stack: Site, caplog: pytest.LogCaptureFixture
) -> None:
    seen = look(dual_stack, **{"X-Forwarded-For": "192.0.2.7"})
    assert (seen.peer, seen.trusted, seen.client) == ("127.0.0.1", False, "127.0.0.1")
    assert "Ignored forwarded headers from 127.0.0.1, which is not trusted" in caplog.text
    assert caplog.text.rstrip().endswith("--trusted_proxies=127.0.0.1")
    assert "::ffff" not in caplog.text


def test_an_ipv4_mapped_peer_shares_the_rate_limit_of_its_ipv4_address(site: Site, dual_stack: Site) -> None:
    assert fail_logins(site, 5) | fail_logins(dual_stack, 5) == {401}
    assert site.fetch("/tasks", headers=ALICE).code == dual_stack.fetch("/tasks", headers=ALICE).code == 429


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/tasks", ALICE, 200, id="page"),
        pytest.param("/tasks", basic("alice:wrong"), 401, id="refused-login"),
        pytest.param("/tasks", {"X-Forwarded-Proto": "gopher"}, 400, id="bad-request"),
    ],
)
def test_the_log_contains_the_ipv4_address(
    dual_stack: Site, caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str], status: int
) -> None:
    caplog.set_level(logging.INFO)
    assert dual_stack.fetch(path, headers=headers).code == status
    assert 'client="127.0.0.1"' in caplog.text
    assert "::ffff" not in caplog.text
