"""The log line of a connection that Redis closes because its output buffer is full."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from tornado.platform.asyncio import AsyncIOLoop

from flower_proxy.events import redis_source
from flower_proxy.events.output_buffer import OutputBuffer
from flower_proxy.events.receiver import Receiver
from tests.support import programs
from tests.support.loops import running
from tests.support.processes import wait_until

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

MB = 2**20
LIMIT = 16 * MB
MESSAGE = b"x" * 10_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """A Redis server with a small limit, as its client."""
    with programs.redis(tmp_path) as broker:
        client = Redis.from_url(broker.url)
        client.config_set("client-output-buffer-limit", f"pubsub {LIMIT} 0 0")
        yield client
        client.close()


def url_of(server: Redis, user: str = "") -> str:
    return f"redis://{user}127.0.0.1:{server.connection_pool.connection_kwargs['port']}/0"


class SlowReceiver(Receiver):
    """A receiver that processes as few messages as a busy machine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.may_end = threading.Event()
        self.dispatcher.put = self._put  # type: ignore[assignment, method-assign]

    def _put(self, *args: Any) -> None:
        self.may_end.wait(0.5)


def waiting(server: Redis) -> int:
    """Return the bytes that wait for the subscriber; -1 if it is disconnected."""
    clients = server.client_list(_type="pubsub")
    return int(clients[0]["omem"]) if clients else -1


def fill(server: Redis, size: int) -> None:
    """Publish until so many bytes wait."""
    while -1 < waiting(server) < size:
        with server.pipeline(transaction=False) as pipe:
            for _ in range(100):
                pipe.publish("/0.celeryev/worker.heartbeat", MESSAGE)
            pipe.execute()


def cut_off(server: Redis, url: str, caplog: pytest.LogCaptureFixture, sampled: Callable[[], bool]) -> list[str]:
    """Return the log of a receiver that Redis cuts off."""
    loop = AsyncIOLoop(make_current=False)
    capp = Celery(broker=url)
    receiver = SlowReceiver(capp, io_loop=loop, max_tasks_in_memory=10, enable_events=False)
    with running(loop):
        receiver.start()
        try:
            wait_until(lambda: receiver.connected, what="it is subscribed")
            while not sampled():
                fill(server, 10 * MB)
            fill(server, 10 * LIMIT)
            receiver.may_end.set()
            wait_until(lambda: receiver.reconnects, what="it is subscribed again")
        finally:
            receiver.may_end.set()
            receiver.stop()
            receiver.join()
    loop.close(all_fds=True)
    return [record.message for record in caplog.records if "Lost" in record.message]


def test_the_log_names_the_limit(
    server: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[bool] = []

    class Observed(OutputBuffer):
        def sample(self) -> None:
            super().sample()
            sizes.append(self.was_nearly_full)

    monkeypatch.setattr(redis_source, "OutputBuffer", Observed)
    assert cut_off(server, url_of(server), caplog, lambda: any(sizes)) == [
        "Lost the broker connection (Redis closed it because its output buffer was full;"
        " raise client-output-buffer-limit pubsub); reconnecting"
    ]


@pytest.mark.parametrize("commands", [["+@all", "-client|list"], ["+@all", "-client|id"]])
def test_a_user_without_permission_for_the_commands_receives_events(
    server: Redis, commands: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=commands)
    before = server.info("commandstats").get("cmdstat_client|list", {}).get("rejected_calls", 0)

    def sampled() -> bool:
        stats = server.info("commandstats").get("cmdstat_client|list", {})
        return "-client|id" in commands or int(stats.get("rejected_calls", 0)) > before

    messages = cut_off(server, url_of(server, "limited:x@"), caplog, sampled)
    assert messages == ["Lost the broker connection (the broker cannot be reached); reconnecting"]
