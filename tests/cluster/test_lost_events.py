"""Lost events are noticed: tasks that ran while flower-proxy was disconnected, with a real worker."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from celery import Celery

from tests.support.ledger import Ledger
from tests.support.outage import Interruptible, network_to
from tests.support.processes import request, wait_until
from tests.support.programs import Broker, Flower, launch, worker_process

WORKER = "w1@h"


@dataclass(frozen=True)
class Scene:
    """A worker, and a Flower that is connected to the broker over a network of its own.

    :ivar ledger: what the worker has done.
    :ivar log: Flower's.
    """

    broker: Broker
    network: Interruptible
    flower: Flower
    ledger: Ledger
    log: Path

    def done(self, event: str) -> int:
        """Return the number of the worker's tasks to which an event has happened."""
        return sum(line.event == event for line in self.ledger.lines())

    def received(self) -> tuple[int, int]:
        """Return the numbers of task-started events that Flower has received, and of tasks that it has missed."""
        numbers = {"flower_events_total": 0, "flower_proxy_tasks_missed_total": 0}
        for family in self.flower.metrics():
            for sample in family.samples:
                if sample.name in numbers and sample.labels.get("type", "task-started") == "task-started":
                    numbers[sample.name] += int(sample.value)
        started, missed = numbers.values()
        return started, missed

    def processed(self) -> int:
        """Return the number of tasks in the latest heartbeat that Flower has received."""
        return int(str(next((one["processed"] for one in self.flower.workers()), None) or 0))

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Interrupt the network of Flower, which is connected again after the block."""
        self.network.stop()
        wait_until(lambda: not self.is_ready(), what="Flower is disconnected")
        yield
        self.network.start()
        wait_until(self.is_ready, what="Flower is connected")

    def is_ready(self) -> bool:
        return request(self.flower.address, "/ready").status == 200

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Send tasks, one every few milliseconds."""
        stopping = threading.Event()

        def send() -> None:
            with Celery(broker=self.broker.url) as app:
                while not stopping.wait(0.002):
                    app.send_task("server.add", (1, 1))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


@pytest.fixture(scope="module")
def scene(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("lost")
    # Events of other databases have other channels
    mine = replace(broker, url=broker.url.removesuffix("/0") + "/3")
    network, ledger = network_to(mine, folder), Ledger(folder / "ledger")
    results = replace(network.broker, results=mine.url)
    with contextlib.ExitStack() as stack:
        stack.callback(network.stop)
        network.start()
        flower = stack.enter_context(launch("ours", results, folder / "flower"))
        scene = Scene(mine, network, flower, ledger, folder / "flower" / "flower.log")
        wait_until(scene.is_ready, what="Flower is connected")
        stack.enter_context(worker_process(mine, folder, name=WORKER, env={"LEDGER": str(ledger.path)}))
        mine.run_tasks()
        # Counting begins with the first heartbeat after a task
        wait_until(lambda: scene.processed() == scene.done("task-started") > 0, what="a heartbeat after the tasks")
        yield scene


def test_the_number_of_missed_tasks_equals_the_truth(scene: Scene) -> None:
    with scene.stream():
        before = scene.done("task-succeeded")
        wait_until(lambda: scene.done("task-succeeded") > before + 50, what="a stream of tasks")
        with scene.cut():
            before = scene.done("task-succeeded")
            wait_until(lambda: scene.done("task-succeeded") > before + 300, what="tasks without Flower")
        before = scene.done("task-succeeded")
        wait_until(lambda: scene.done("task-succeeded") > before + 50, what="further tasks")
    wait_until(lambda: sum(scene.received()) >= scene.done("task-started"), what="the missed tasks are counted")
    started, missed = scene.received()
    assert started + missed == scene.done("task-started")
    assert missed > 300
    # Further heartbeats add nothing
    for _ in range(3):
        scene.broker.run_tasks()
        wait_until(lambda: scene.processed() == scene.done("task-started"), what="another heartbeat")
    assert scene.received() == (scene.done("task-started") - missed, missed)

    page = request(scene.flower.address, "/workers", headers=scene.flower.known).text
    assert f"The events of {missed} tasks did not arrive ({missed} of {WORKER})" in page
    wait_until(lambda: "Missed the events" in scene.log.read_text(), what="the log line")
    assert re.findall(r"Missed the events of (\d+) tasks of 1 workers, such as '(.*)';", scene.log.read_text()) == [
        (str(missed), WORKER)
    ]
