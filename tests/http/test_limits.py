"""Size limits on headers, queries and bodies, and shared scrapes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from flower_proxy.web.limits import MAX_BODY, MAX_TASK_BODY
from tests.http.conftest import OPEN, PREFIX, Site
from tests.http.test_access_policy import basic
from tests.http.test_metrics import OPENMETRICS

USER = {"basic_auth": ["demo:secret"]}
DEMO = basic("demo:secret")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def settings() -> dict[str, Any]:
    return USER


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        pytest.param(
            {"Forwarded": "a=1;" + " " * 60_000 + "!"}, 400, "Forwarded has 60005 characters", id="long-forwarded"
        ),
        pytest.param({"Cookie": "a=" + "b" * 10_000}, 200, "", id="cookies-of-another-application"),
        pytest.param({"Cookie": "a=" + "b" * 20_000}, 400, "Cookie has 20002 characters", id="long-cookie"),
        pytest.param({"X-Amzn-Oidc-Data": "a" * 20_000}, 200, "", id="unparsed-header"),
    ],
)
def test_long_headers_are_refused(site: Site, headers: dict[str, str], status: int, message: str) -> None:
    response = site.fetch("/", headers={**DEMO, **headers})
    assert response.code == status
    if message:
        assert response.body.decode().startswith(message)
        assert response.body.count(b"\n") == 1


def test_long_queries_are_refused(site: Site) -> None:
    assert site.fetch("/tasks?" + "a" * 4000, headers=DEMO).code == 200
    response = site.fetch("/tasks?" + "a" * 5000, headers=DEMO)
    assert (response.code, response.body) == (400, b"The query has 5000 characters; at most 4096 are accepted\n")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=x;q=",
        "application/openmetrics-text;version=1.x",
        "text/plain;version=;q=,",
        "text/plain;version=x.y",
        ";;;===,,,",
    ],
)
def test_malformed_accept_header_selects_the_text_format(site: Site, accept: str) -> None:
    response = site.fetch("/metrics", headers={**DEMO, "Accept": accept})
    assert response.code == 200
    assert b"flower_events_total" in response.body
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


# Bodies


def post(site: Site, path: str, size: int, **kwargs: Any) -> HTTPResponse:
    return site.fetch(path, method="POST", body="a=" + "b" * (size - 2), headers={**DEMO, **FORM}, **kwargs)


@pytest.mark.parametrize("path", ["/-/check", "/tasks/datatable", "/nothing", "/api/task/revoke/t1", "/static/x"])
def test_bodies_are_limited_to_64_kilobytes(site: Site, path: str) -> None:
    assert post(site, path, MAX_BODY).code != 413
    response = post(site, path, MAX_BODY + 1)
    assert (response.code, response.body) == (413, b"The body has 65537 bytes; at most 65536 are accepted here\n")


def test_client_receives_the_response_to_an_oversized_body(site: Site) -> None:
    assert post(site, "/-/check", 10_000_000).code == 413


TASK_ROUTES = ["/api/task/send-task/x", "/api/task/async-apply/x", "/api/task/apply/x"]


@pytest.mark.parametrize("path", TASK_ROUTES)
def test_task_arguments_are_limited_to_one_megabyte(site: Site, path: str) -> None:
    assert post(site, path, MAX_TASK_BODY + 1).code == 413
    # 400, because the body is read and is not JSON
    assert post(site, path, MAX_TASK_BODY).code in (400, 404)


def test_large_task_arguments_are_sent(site: Site) -> None:
    argument = "a" * 500_000
    # All tests share the memory broker, and others leave messages in its default queue
    body = json.dumps({"args": [argument], "queue": "large-arguments"})
    response = site.fetch("/api/task/send-task/x", method="POST", body=body, headers=DEMO)
    assert response.code == 200
    with site.app.capp.connection_for_read() as connection, connection.SimpleQueue("large-arguments") as queue:
        message = queue.get(timeout=10)
        assert [len(text) for text in message.payload[0]] == [len(argument)]
        message.ack()


@pytest.mark.parametrize("path", TASK_ROUTES)
def test_large_bodies_are_not_read_before_authentication(site: Site, path: str) -> None:
    """The response arrives although no byte of the body is sent."""

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(site.origin.rpartition(":")[2]))
        prefix = PREFIX if site.kind == "kept" else ""
        writer.write(f"POST {prefix}{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    assert site.run(ask).startswith(b"HTTP/1.1 401 ")


# Scrapes


def test_concurrent_scrapes_share_a_result(
    site: Site, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    event("worker-online")
    monitor, calls, requests = site.app.monitor, list[None](), list[None]()
    families, scrape = monitor.families, monitor.scrape
    formats = [("/metrics", DEMO), ("/metrics", {**DEMO, "Accept": OPENMETRICS})] * 5
    all_arrived = asyncio.Event()

    def counted_families() -> Any:
        calls.append(None)
        return families()

    async def counted_scrape(**kwargs: Any) -> Any:
        requests.append(None)
        if len(requests) == len(formats):
            all_arrived.set()
        return await scrape(**kwargs)

    async def fetch_all() -> list[HTTPResponse]:
        responses = [asyncio.ensure_future(site.ask(path, headers=headers)) for path, headers in formats]
        await all_arrived.wait()
        monitor._rendering.release()
        return await asyncio.gather(*responses)

    monkeypatch.setattr(monitor, "_rendering", asyncio.Semaphore(0))
    monkeypatch.setattr(monitor, "families", counted_families)
    monkeypatch.setattr(monitor, "scrape", counted_scrape)
    responses = site.run(fetch_all)
    plain, openmetrics = responses[::2], responses[1::2]
    assert len(calls) == 2, "one for each format"
    assert len({response.body for response in plain}) == len({response.body for response in openmetrics}) == 1
    assert b"flower_worker_online" in plain[0].body
    assert b"# EOF" in openmetrics[0].body
    # The next scrape includes later events
    event("worker-online", hostname="w2@host")
    assert b"w2@host" in site.fetch("/metrics", headers=DEMO).body
    assert len(calls) == 3


@pytest.mark.parametrize("settings", [{**OPEN}])
def test_disconnected_client_does_not_cancel_a_shared_scrape(site: Site) -> None:
    async def both() -> HTTPResponse:
        _, writer = await asyncio.open_connection("127.0.0.1", int(site.origin.rpartition(":")[2]))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await writer.drain()
        other = asyncio.ensure_future(site.ask("/metrics"))
        writer.transport.abort()
        return await other

    response = site.run(both)
    assert response.code == 200
    assert b"flower_events_total" in response.body
