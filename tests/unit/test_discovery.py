"""Which workers are asked for task events and inspected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flower_proxy.events.control import Inspected
from flower_proxy.events.discovery import Discovery
from flower_proxy.events.receiver import Receiver


class Cluster:
    """Workers of a state, and the questions to them; answers come only when `answer` is set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.workers: dict[str, Any] = {}
        self.known = Inspected(1000, lambda name: name in self.workers)
        self.sends: dict[str, bool | None] = {}
        self.connected = True
        self.asked: list[list[str] | None] = []
        self.inspected: list[str | None] = []
        self.has_begun, self.answer = asyncio.Event(), asyncio.Event()
        self.is_busy = False
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self.discovery = Discovery(lambda name: self.sends.get(name), max_workers=1000, clock=lambda: self.now)

    def begin(self) -> None:
        cluster = self

        class Receiving(SimpleNamespace):
            @property
            def connected(self) -> bool:
                return cluster.connected

            async def on_enable_events(self) -> None:
                cluster.ask()

        receiver = Receiving(
            state=SimpleNamespace(workers=self.workers), io_loop=SimpleNamespace(add_callback=self._callbacks.append)
        )
        self.discovery.begin(cast(Receiver, receiver), self.known, self._inspect)

    def ask(self) -> None:
        names = self.discovery.silent()
        if names is None or names:
            self.asked.append(None if names is None else list(names))

    async def _inspect(self, name: str | None) -> None:
        self.inspected.append(name)
        self.has_begun.set()
        await self.answer.wait()
        if not self.is_busy:
            for worker in self.workers if name is None else [name]:
                self.known[worker].update(stats={}, active_queues=[])

    def add(self, *names: str) -> None:
        self.workers.update({name: SimpleNamespace(alive=True) for name in names})

    def send(self, name: str, kind: str = "worker-heartbeat") -> None:
        self.discovery.on_event({"hostname": name, "type": kind})

    async def run(self) -> None:
        """Run the callbacks."""
        while self._callbacks:
            await self._callbacks.pop(0)()


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.begin()
    # The first question goes to all
    cluster.ask()
    assert cluster.asked.pop() is None
    return cluster


@pytest.mark.parametrize("kind", ["worker-online", "worker-heartbeat", "task-received", "task-succeeded"])
def test_a_worker_is_known_from_its_first_event(cluster: Cluster, kind: str) -> None:
    cluster.add("w1")
    cluster.answer.set()
    for _ in range(3):
        cluster.send("w1", "worker-heartbeat")
    assert cluster.known == {"w1": {}}
    asyncio.run(cluster.run())
    assert (cluster.asked, cluster.inspected) == ([["w1"]], ["w1"])


def test_a_restarted_worker_is_asked_and_inspected_again(cluster: Cluster) -> None:
    cluster.add("w1")
    cluster.answer.set()
    for _ in range(2):
        cluster.send("w1", "worker-online")
        asyncio.run(cluster.run())
    assert (cluster.asked, cluster.inspected) == ([["w1"], ["w1"]], ["w1", "w1"])


def test_clients_and_other_senders_are_no_workers(cluster: Cluster) -> None:
    cluster.send("gen1@host", "task-sent")
    cluster.send("ci@host", "deploy-finished")
    cluster.send("gone@host", "worker-offline")
    asyncio.run(cluster.run())
    assert (cluster.known, cluster.asked, cluster.inspected) == ({}, [], [])


def test_new_workers_wait_for_the_inspection_in_progress(cluster: Cluster) -> None:
    async def run() -> None:
        cluster.add("w1", "w2", "w3")
        cluster.send("w1")
        greeting = asyncio.ensure_future(cluster.run())
        await cluster.has_begun.wait()
        cluster.send("w2")
        cluster.send("w3")
        await asyncio.sleep(0)
        assert (cluster.asked, cluster.inspected) == ([], ["w1"])
        cluster.answer.set()
        await greeting

    asyncio.run(run())
    assert (cluster.asked, cluster.inspected) == ([["w1"], ["w2", "w3"]], ["w1", "w2", "w3"])


@pytest.mark.parametrize("replies", [[], ["stats"], ["active_queues"], ["restart"]])
def test_a_worker_that_does_not_reply_is_inspected_again_ever_more_rarely(cluster: Cluster, replies: list[str]) -> None:
    """It sends its first events before it accepts commands."""
    cluster.add("w1")
    cluster.answer.set()
    if replies == ["restart"]:
        cluster.send("w1")
        asyncio.run(cluster.run())
        cluster.inspected.clear()
        cluster.send("w1", "worker-online")
    cluster.known["w1"].update({reply: {} for reply in replies if reply != "restart"})
    cluster.is_busy = True
    at = []
    for second in range(700):
        cluster.now = 1000.0 + second
        cluster.send("w1")
        asyncio.run(cluster.run())
        if cluster.inspected:
            assert cluster.inspected.pop() == "w1"
            at.append(second)
    assert at == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511]


def test_many_new_workers_are_inspected_by_one_broadcast(cluster: Cluster) -> None:
    names = [f"w{number}" for number in range(11)]
    cluster.add(*names)
    cluster.answer.set()
    for name in names:
        cluster.send(name)
    asyncio.run(cluster.run())
    assert (cluster.asked, cluster.inspected) == ([names], [None])


def test_a_worker_is_not_asked_after_the_end(cluster: Cluster) -> None:
    async def run() -> None:
        cluster.add("w1", "w2")
        cluster.send("w1")
        greeting = asyncio.ensure_future(cluster.run())
        await cluster.has_begun.wait()
        cluster.send("w2")
        cluster.discovery.stop()
        cluster.answer.set()
        await greeting

    asyncio.run(run())
    assert (cluster.asked, cluster.inspected) == ([], ["w1"])


def test_a_failed_inspection_does_not_end_discovery(cluster: Cluster) -> None:
    async def fail(name: str | None) -> None:
        cluster.inspected.append(name)
        raise OSError

    cluster._inspect = fail  # type: ignore[method-assign]
    cluster.begin()
    for name in ("w1", "w2"):
        cluster.add(name)
        cluster.send(name)
        asyncio.run(cluster.run())
    assert cluster.inspected == ["w1", "w2"]


def test_without_a_broker_workers_are_known_but_not_asked(cluster: Cluster) -> None:
    cluster.connected = False
    cluster.add("w1")
    cluster.send("w1")
    asyncio.run(cluster.run())
    assert (cluster.known, cluster.asked, cluster.inspected) == ({"w1": {}}, [], [])


def test_only_workers_without_task_events_are_asked_again(cluster: Cluster) -> None:
    cluster.add("sends", "silent", "idle", "offline")
    cluster.workers["offline"].alive = False
    cluster.sends = {"sends": True, "silent": False, "idle": None, "offline": False}
    for _ in range(59):
        cluster.now += 5
        cluster.ask()
    # At once, then once a minute
    assert cluster.asked == [["silent"]] * 5


def test_all_workers_are_asked_every_five_minutes_and_after_a_reconnection(cluster: Cluster) -> None:
    cluster.now += 299
    cluster.ask()
    assert cluster.asked == []
    cluster.now += 1
    cluster.ask()
    cluster.ask()
    assert cluster.asked == [None]
    cluster.discovery.ask_all()
    cluster.ask()
    assert cluster.asked == [None, None]
