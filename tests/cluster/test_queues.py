"""Equal queue lengths on the Broker page, in /api/queues/length and in /metrics, for various broker URLs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from kombu import Queue
from kombu.mixins import ConsumerMixin
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from flower_proxy.app import FlowerProxy
from flower_proxy.events import management_api
from flower_proxy.settings.loader import make_options
from tests.support import rabbitmq
from tests.support.outage import deaf_port
from tests.support.processes import basic, free_port
from tests.support.redis_servers import MASTER, RedisServers, redis_servers

# The oldest supported kombu uses a deprecated function of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

CREDENTIALS = basic("me:secret")
COLUMNS = ("messages", "unacknowledged", "ready", "consumers", "idle_since")
MISSING = '<span class="value-missing">&mdash;</span>'
USER, PASSWORD, VHOST = "u@x/y", "host.invalid/p@#%3A:", "/a/b#c%2F"
ENCODED = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"

Ask = Callable[..., Awaitable[HTTPResponse]]


def visit(capp: Celery, visitor: Callable[[Ask], Awaitable[None]], **options: Any) -> None:
    """Serve a flower-proxy for the application while `visitor` runs; its argument fetches a path."""

    async def serve() -> None:
        given = make_options(address="127.0.0.1", port=0, basic_auth="me:secret", **options)
        async with FlowerProxy(capp=capp, options=given) as flower:
            client = AsyncHTTPClient(force_instance=True)
            await visitor(lambda path: client.fetch(f"http://127.0.0.1:{flower.port}{path}", headers=CREDENTIALS))
            client.close()

    with capp:
        asyncio.run(serve())


async def api(ask: Ask) -> dict[str, dict[str, Any]]:
    found = json.loads((await ask("/api/queues/length")).body)["active_queues"]
    return {queue.pop("name"): queue for queue in found}


async def page(ask: Ask) -> dict[str, dict[str, str]]:
    """The rows of the Broker page by queue, each cell by its column."""
    rows = re.findall(r"<tr id=.*?</tr>", (await ask("/broker")).body.decode(), re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return {name: dict(zip(COLUMNS, rest, strict=True)) for name, *rest in cells}


async def metrics(ask: Ask) -> dict[str, int]:
    text = (await ask("/metrics")).body.decode()
    found = re.findall(r'^celery_queue_length\{queue_name="(.*?)"\} (\d+)', text, re.MULTILINE)
    return {name: int(value) for name, value in found}


async def check_lengths(capp: Celery, ask: Ask) -> None:
    """Send messages and check the lengths on the page, in the API and in the metrics."""
    assert (await api(ask))["mail"]["messages"] == 0
    with capp.connection_for_write() as connection:
        for _ in range(3):
            capp.send_task("unknown.task", queue="mail", connection=connection, ignore_result=True)
    on_page, in_api, scraped = await page(ask), await api(ask), await metrics(ask)
    assert {name: int(row["messages"]) for name, row in on_page.items()} == {"mail": 3, "celery": 0}
    assert {name: row["messages"] for name, row in in_api.items()} == scraped == {"mail": 3, "celery": 0}
    assert on_page["mail"]["ready"] == "3"
    assert on_page["mail"]["consumers"] == "0"


def on_rabbitmq(url: str) -> Celery:
    """An application with an empty queue; its messages are in the queue when send_task returns."""
    capp = Celery(broker=url)
    capp.conf.task_queues = [Queue("mail")]
    capp.conf.broker_transport_options = {"confirm_publish": True}
    with capp.connection_for_write() as connection:
        connection.default_channel.queue_declare("mail", durable=True, auto_delete=False)
        connection.default_channel.queue_purge("mail")
    return capp


@pytest.fixture(autouse=True)
def quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let event consumers check more often than once per second whether to stop."""
    monkeypatch.setattr(ConsumerMixin.consume, "__defaults__", (None, None, 0.05))


@pytest.fixture
def resolved_hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The resolved host names."""
    hosts = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.append(host.decode() if isinstance(host, bytes) else str(host))
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hosts


# RabbitMQ


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rabbitmq.Managed]:
    with rabbitmq.managed(tmp_path_factory.mktemp("rabbitmq")) as managed:
        managed.add_user(USER, PASSWORD, vhost=VHOST)
        yield managed


PLAIN = "amqp://guest:guest@127.0.0.1:{amqp}//"
SPECIAL = f"amqp://{ENCODED}@127.0.0.1:{{amqp}}/{quote(VHOST, safe='')}"


async def row_with(ask: Ask, *, unacknowledged: str) -> dict[str, str]:
    """The row of the queue, when RabbitMQ has collected this statistic."""

    async def wait() -> dict[str, str]:
        while (row := (await page(ask))["mail"])["unacknowledged"] != unacknowledged:
            pass
        return row

    return await asyncio.wait_for(wait(), 30)


@pytest.mark.parametrize(
    ("url", "broker_api", "detailed"),
    [
        pytest.param(PLAIN, None, False, id="no-api"),
        pytest.param(PLAIN, "http://guest:guest@127.0.0.1:{api}/api/", True, id="api"),
        pytest.param(PLAIN, "http://guest:guest@127.0.0.1:{api}/api", True, id="api-without-trailing-slash"),
        pytest.param(PLAIN, "http://guest:guest@127.0.0.1:{api}", True, id="api-without-path"),
        pytest.param(PLAIN, "http://guest:guest@127.0.0.1:{api}/api/%2F", True, id="api-with-virtual-host"),
        pytest.param(SPECIAL, None, False, id="special-characters"),
        pytest.param(SPECIAL, f"http://{ENCODED}@127.0.0.1:{{api}}/api/", True, id="special-characters-in-api"),
        pytest.param(SPECIAL, "http://127.0.0.1:{api}/api/", True, id="api-without-credentials"),
        pytest.param(SPECIAL, "http://guest:wrong@127.0.0.1:{api}/api/", False, id="api-with-wrong-password"),
    ],
)
def test_lengths_of_rabbitmq_queues(
    url: str, broker_api: str | None, detailed: bool, managed: rabbitmq.Managed, resolved_hosts: list[str]
) -> None:
    ports = {"amqp": managed.port, "api": managed.management.port}
    capp = on_rabbitmq(url.format(**ports))

    async def visitor(ask: Ask) -> None:
        await check_lengths(capp, ask)
        if detailed:
            await row_with(ask, unacknowledged="0")
            assert (await api(ask))["mail"]["messages_unacknowledged"] == 0
        else:
            assert (await page(ask))["mail"]["unacknowledged"] == MISSING

    visit(capp, visitor, broker_api=broker_api.format(**ports) if broker_api else None)
    assert set(resolved_hosts) <= {"127.0.0.1", "localhost", ""}, resolved_hosts


def test_unacknowledged_messages_are_shown_separately(managed: rabbitmq.Managed) -> None:
    capp = on_rabbitmq(PLAIN.format(amqp=managed.port))

    async def visitor(ask: Ask) -> None:
        with capp.connection_for_write() as connection:
            channel = connection.default_channel
            for _ in range(3):
                capp.send_task("unknown.task", queue="mail", connection=connection, ignore_result=True)
            assert channel.basic_get("mail")
            row = await row_with(ask, unacknowledged="1")
            assert (row["messages"], row["ready"]) == ("2", "2")
            assert (await metrics(ask))["mail"] == 2

    visit(capp, visitor, broker_api=f"http://guest:guest@127.0.0.1:{managed.management.port}/api/")


@pytest.mark.parametrize(
    ("broker_api", "cause"),
    [
        pytest.param("http://guest:PLANTED@127.0.0.1:{api}/api/", "status 401", id="wrong-password"),
        pytest.param("http://guest:guest@127.0.0.1:{api}/PLANTED/", "status 400", id="wrong-path"),
        pytest.param("http://guest:PLANTED@127.0.0.1:{deaf}/api/", "no response", id="timeout"),
        pytest.param("http://guest:PLANTED@127.0.0.1:{free}/api/", "connection failed", id="connection-refused"),
        pytest.param("https://guest:PLANTED@127.0.0.1:{api}/api/", "TLS error", id="plain-http-port"),
    ],
)
def test_management_api_failures_are_logged_once(
    broker_api: str,
    cause: str,
    managed: rabbitmq.Managed,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cause == "no response":
        monkeypatch.setattr(management_api, "_REQUEST_TIMEOUT", 0.2)
    capp = Celery(broker=PLAIN.format(amqp=managed.port))
    with deaf_port() as (deaf, _):
        ports = {"api": managed.management.port, "deaf": deaf, "free": free_port()}

        async def visitor(ask: Ask) -> None:
            for _ in range(2):
                assert (await page(ask))["celery"]["messages"] == "0"

        visit(capp, visitor, broker_api=broker_api.format(**ports))
    logged = [record.getMessage() for record in caplog.records if record.name == management_api.__name__]
    assert logged == [f"--broker_api failed ({cause}); unacknowledged messages and idle times are not shown"]
    assert "PLANTED" not in caplog.text


# Redis


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[RedisServers]:
    with redis_servers(tmp_path_factory.mktemp("redis"), certificate) as servers:
        yield servers


@pytest.mark.parametrize(
    ("url", "database"),
    [
        pytest.param("redis://127.0.0.1:{0.port}/1", 1, id="redis"),
        pytest.param("redis+socket://{0.socket}?virtual_host=2", 2, id="unix-socket"),
        pytest.param("sentinel://127.0.0.1:{0.sentinel_port}/3", 3, id="sentinel"),
        pytest.param("sentinel://127.0.0.1:{0.sentinel_port}/4;sentinel://127.0.0.1:1/4", 4, id="sentinels"),
        pytest.param(
            "rediss://localhost:{0.tls_port}/5?ssl_cert_reqs=required&ssl_ca_certs={0.authority}", 5, id="tls"
        ),
    ],
)
def test_lengths_of_redis_queues(url: str, database: int, servers: RedisServers) -> None:
    capp = Celery(broker=url.format(servers))
    capp.conf.task_queues = [Queue("mail")]
    capp.conf.broker_transport_options = {
        "master_name": MASTER,
        "sentinel_kwargs": {"password": servers.sentinel_password},
    }
    visit(capp, partial(check_lengths, capp))
    assert messages_in(servers, database) == 3


def messages_in(servers: RedisServers, database: int) -> int:
    with Celery(broker=f"redis://127.0.0.1:{servers.port}/{database}").connection_for_write() as connection:
        return int(connection.default_channel.queue_declare("mail", passive=True).message_count)
