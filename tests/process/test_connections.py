"""Limits of connections: idle, slow and excess connections do not exhaust the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from celery import Celery
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from flower_proxy.app import FlowerProxy
from flower_proxy.settings.loader import make_options
from flower_proxy.web.connections import (
    BODY_TIMEOUT,
    IDLE_TIMEOUT,
    WRITE_TIMEOUT,
    BoundedServer,
    ConnectionLimit,
    max_connections,
)
from flower_proxy.web.limits import MAX_BODY
from tests.support.processes import Address, answers, free_port, program, request, running, wait_until

SHORT = 0.5  # seconds
LARGE = 32 * 1024 * 1024  # bytes, more than the kernel buffers for a connection


class Stream:
    """A fake connection that records when it is closed."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.close = lambda: closed.append(name)


def test_the_longest_idle_connection_is_replaced() -> None:
    closed: list[str] = []
    limit = ConnectionLimit(3)
    first, second, third, fourth, fifth, sixth = (cast(IOStream, Stream(name, closed)) for name in "abcdef")
    for stream in (first, second, third):
        limit.add(stream)
    limit.works(first)
    limit.add(fourth)
    assert closed == ["b"]
    # The first is idle again, but the third has been idle for longer
    limit.waits(first)
    limit.add(fifth)
    assert closed == ["b", "c"]
    for stream in (fourth, fifth, first):
        limit.works(stream)
    limit.add(sixth)
    assert closed == ["b", "c", "d"], "without idle connections, the one with the longest request is closed"
    assert (len(limit), limit.replaced) == (3, 3)
    # Replaced connections still report their state
    for stream in (second, third, fourth):
        limit.waits(stream)
        limit.works(stream)
        limit.remove(stream)
    limit.remove(sixth)
    assert len(limit) == 2


def test_replaced_connections_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    # The limit reads the first time on creation
    times = iter((0, 1, 2, 59, 61, 62, 130))
    limit = ConnectionLimit(1, clock=lambda: next(times))
    with caplog.at_level(logging.WARNING):
        for _ in range(7):
            limit.add(cast(IOStream, Stream("", [])))
    assert [record.getMessage().partition(".")[0] for record in caplog.records] == [
        "All 1 connections are in use; closed 1 that had waited longest for a request",
        "All 1 connections are in use; closed 3 that had waited longest for a request",
        "All 1 connections are in use; closed 2 that had waited longest for a request",
    ]


@pytest.mark.parametrize(
    ("descriptors", "wanted", "maximum"),
    [
        pytest.param(1024, None, 480, id="shell"),
        pytest.param(4096, None, 2000, id="unit"),
        pytest.param(1_048_576, None, 2000, id="container"),
        pytest.param(resource.RLIM_INFINITY, None, 2000, id="unlimited"),
        pytest.param(resource.RLIM_INFINITY, 5000, 5000, id="unlimited-option"),
        pytest.param(1024, 100, 100, id="option"),
        pytest.param(1024, 480, 480, id="option-at-maximum"),
    ],
)
def test_the_limit_depends_on_file_descriptors(
    descriptors: int, wanted: int | None, maximum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert max_connections(wanted) == maximum


def test_more_connections_than_file_descriptors_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(ValueError, match=r"^--max_connections: 481 need 1026 file descriptors, and the limit is 1024:"):
        max_connections(481)


# A server with short timeouts
class Large(RequestHandler):
    def get(self) -> None:
        self.write(bytes(LARGE))


class Short(RequestHandler):
    def get(self) -> None:
        self.write("short")

    def post(self) -> None:
        self.write(str(len(self.request.body)))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def bounded_server(**options: Any) -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    """Run a server with these options, and yield a function that connects with a small receive buffer."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server = BoundedServer(Application([("/large", Large), ("/", Short)]), connections=ConnectionLimit(100), **options)
    server.add_sockets([listening])
    writers = []

    async def connect() -> Connection:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, listening.getsockname())
        reader, writer = await asyncio.open_connection(sock=client, limit=1024)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        server.stop()
        for writer in writers:
            writer.close()
        await asyncio.wait_for(server.close_all_connections(), 10)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", id="incomplete-headers"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", id="keep-alive"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET ", id="keep-alive-incomplete-headers"),
    ],
)
def test_connections_that_are_idle_or_send_incomplete_headers_are_closed(sent: bytes) -> None:
    async def run() -> None:
        async with bounded_server(idle_timeout=SHORT) as connect:
            reader, writer = await connect()
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.endswith(b"short" if b"\r\n\r\n" in sent else b"")

    asyncio.run(run())


def test_connections_with_incomplete_tls_handshakes_are_closed(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def run() -> None:
        async with bounded_server(idle_timeout=SHORT, ssl_options=context) as connect:
            reader, _ = await connect()
            assert await asyncio.wait_for(reader.read(), 10) == b""

    asyncio.run(run())


@pytest.mark.parametrize(
    "head", [b"Content-Length: 10\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"]
)
def test_connections_with_incomplete_bodies_are_closed(head: bytes) -> None:
    async def run() -> None:
        async with bounded_server(body_timeout=SHORT) as connect:
            reader, writer = await connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + head)
            assert await asyncio.wait_for(reader.read(), 10) == b""

    asyncio.run(run())


def test_connections_of_clients_that_do_not_read_are_closed() -> None:
    async def run() -> None:
        async with bounded_server(write_timeout=1) as connect:
            reader, writer = await connect()
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            # The client reads nothing more until the server has closed the connection
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(_until_reset(writer), 30)

    asyncio.run(run())


async def _until_reset(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


def test_slow_readers_get_the_whole_response() -> None:
    async def run() -> None:
        async with bounded_server(write_timeout=10) as connect:
            reader, writer = await connect()
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            received = 0
            while chunk := await reader.read(65536):
                received += len(chunk)
            assert received > LARGE

    asyncio.run(run())


# flower-proxy


def test_the_limits_apply_to_both_servers() -> None:
    async def run() -> None:
        options = make_options(address="127.0.0.1", port=0, metrics_port=0, metrics_address="127.0.0.1")
        async with FlowerProxy(capp=Celery(broker="memory://"), options=options) as flower:
            assert len(flower.http_servers) == 2
            for server in flower.http_servers:
                parameters = server.conn_params
                assert parameters.header_timeout == IDLE_TIMEOUT == 75
                assert parameters.body_timeout == BODY_TIMEOUT == 60
                assert parameters.max_body_size == MAX_BODY == 65536
                assert server.write_timeout == WRITE_TIMEOUT == 60
                assert server.limit is flower.connections

    asyncio.run(run())


@pytest.mark.parametrize("unix", [False, True], ids=["port", "unix socket"])
def test_idle_connections_do_not_block_other_clients(unix: bool, tmp_path: Path) -> None:
    """Stock Flower stops answering, and logs an error in each iteration of its event loop."""
    address = Address(socket_path=tmp_path / "flower.sock") if unix else Address(free_port())
    listen = [f"--unix_socket={address.socket_path}"] if unix else ["--address=127.0.0.1", f"--port={address.port}"]
    flower = [sys.executable, "-m", "flower_proxy", "-b", "memory://", "--no_auth", *listen]
    log = tmp_path / "log"
    command = [program("sh"), "-c", 'ulimit -n 256; exec "$@"', "-", *flower]
    with running(command, log=log, ready=lambda: answers(address, "/healthcheck")), contextlib.ExitStack() as stack:
        lines = len(log.read_text().splitlines())
        for _ in range(400):
            stack.enter_context(wait_until(lambda: connected(address), what="room in the backlog"))
        assert request(address, "/healthcheck").status == 200
        page = request(address, "/", headers={"Host": "localhost"})
        assert page.status == 200
        assert len(log.read_text().splitlines()) - lines <= 10
        assert "All 96 connections are in use" in log.read_text()


HEADERS = b"POST /api/task/apply/add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
CLOSING = b"\r\nConnection: close\r\n"


@contextlib.asynccontextmanager
async def stoppable() -> AsyncIterator[tuple[Connection, Callable[[], Awaitable[None]]]]:
    """Yield a connection to flower-proxy, and a function that starts its shutdown, which the block's end awaits."""
    options = make_options(address="127.0.0.1", port=0, no_auth=True)
    flower = FlowerProxy(capp=Celery(broker="memory://"), options=options)
    await flower.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", flower.port)
    # Connections are accepted in order, so the first one is accepted when the second one is answered
    await asyncio.to_thread(request, Address(flower.port or 0), "/healthcheck")
    closing: list[asyncio.Task[None]] = []

    async def shut_down() -> None:
        closing.append(asyncio.create_task(flower.close(30)))
        await asyncio.sleep(0)
        assert not Address(flower.port or 0).accepts()

    try:
        yield (reader, writer), shut_down
    finally:
        await asyncio.wait_for(asyncio.gather(*closing), 60)
        writer.close()


def test_a_request_in_progress_is_answered_during_shutdown() -> None:
    async def run() -> None:
        async with stoppable() as ((reader, writer), shut_down):
            writer.write(HEADERS)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 (Continue)\r\n\r\n"
            await shut_down()
            writer.write(b"{}")
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")

    asyncio.run(run())


def test_the_first_request_of_a_connection_is_answered_during_shutdown() -> None:
    async def run() -> None:
        async with stoppable() as ((reader, writer), shut_down):
            await shut_down()
            writer.write(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert CLOSING in answer, "the client has to reconnect, to the next process"

    asyncio.run(run())


def test_idle_connections_do_not_delay_the_shutdown() -> None:
    async def run() -> None:
        async with stoppable() as ((reader, writer), shut_down):
            silent, other = await asyncio.open_connection(*writer.get_extra_info("peername"))
            writer.write(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await shut_down()
            assert await silent.read() == b""
            other.close()

    asyncio.run(run())


def connected(address: Address) -> Any:
    with contextlib.suppress(BlockingIOError):
        return address.connect()
    return None


def test_a_limit_beyond_the_file_descriptors_prevents_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flower_proxy", "-b", "memory://", "--max_connections=10000000"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 2
    assert "--max_connections: 10000000 need 20000064 file descriptors" in result.stderr
    assert "Traceback" not in result.stderr
