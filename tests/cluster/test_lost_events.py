"""Lost events are noticed: tasks that ran while flower-proxy was disconnected, with a real worker."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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

    :ivar without_results: another Flower on the same network, without a result backend.
    :ivar ledger: what the worker has done.
    :ivar log: Flower's.
    """

    broker: Broker
    network: Interruptible
    flower: Flower
    without_results: Flower
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

    def counted(self, event: str) -> int:
        """Return the number of events of a type that Flower has counted."""
        samples = [sample for family in self.flower.metrics() for sample in family.samples]
        return sum(int(one.value) for one in samples if one.labels.get("type") == event)

    def processed(self) -> int:
        """Return the number of tasks in the latest heartbeat that Flower has received."""
        return int(str(next((one["processed"] for one in self.flower.workers()), None) or 0))

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Interrupt the network of Flower, which is connected again after the block."""
        self.network.stop()
        wait_until(lambda: not self.is_ready(any), what="Flower is disconnected")
        yield
        self.network.start()
        wait_until(self.is_ready, what="Flower is connected")

    def is_ready(self, of: Callable[[Iterable[bool]], bool] = all) -> bool:
        return of(request(flower.address, "/ready").status == 200 for flower in (self.flower, self.without_results))

    def send(self, name: str, *args: object, times: int = 1) -> list[str]:
        with Celery(broker=self.broker.url) as app:
            return [app.send_task(f"server.{name}", args).id for _ in range(times)]

    def wait_for(self, event: str, *ids: str) -> None:
        """Wait until this event has happened to each of these tasks."""
        wait_until(lambda: {line.uuid for line in self.ledger.of(*ids, event=event)} == set(ids), what=f"{event} {ids}")

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Send tasks, one every few milliseconds; all have ended after the block."""
        stopping, ids = threading.Event(), list[str]()

        def send() -> None:
            with Celery(broker=self.broker.url) as app:
                while not stopping.wait(0.002):
                    ids.append(app.send_task("server.add", (1, 1)).id)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
        self.wait_for("task-succeeded", *ids)


@pytest.fixture(scope="module")
def scene(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("lost")
    # Events of other databases have other channels
    mine = replace(broker, url=broker.url.removesuffix("/0") + "/3")
    network, ledger = network_to(mine, folder), Ledger(folder / "ledger")
    results, none = (replace(network.broker, results=url) for url in (mine.url, "disabled://"))
    with contextlib.ExitStack() as stack:
        stack.callback(network.stop)
        network.start()
        flower = stack.enter_context(launch("ours", results, folder / "flower"))
        without_results = stack.enter_context(launch("ours", none, folder / "without_results"))
        scene = Scene(mine, network, flower, without_results, ledger, folder / "flower" / "flower.log")
        wait_until(scene.is_ready, what="Flower is connected")
        options, env = ["-c", "2", "--prefetch-multiplier=16"], {"LEDGER": str(ledger.path)}
        stack.enter_context(worker_process(mine, folder, name=WORKER, options=options, env=env))
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
    wait_until(lambda: "Missed task events" in scene.log.read_text(), what="the log line")
    lines = re.findall(r"Missed task events \(tasks: (\d+), workers: 1, most at '(.*)'\)", scene.log.read_text())
    assert lines == [(str(missed), WORKER)]


def info(flower: Flower, uuid: str) -> dict[str, Any]:
    """Return a task of the API; empty if Flower does not know it yet."""
    answer = request(flower.address, f"/api/task/info/{uuid}", headers=flower.known)
    task: dict[str, Any] = json.loads(answer.text) if answer.status == 200 else {}
    return task


def ends(flower: Flower, *ids: str) -> list[tuple[str | None, str | None]]:
    """Return the state of tasks, and how their ends are known."""
    return [(task.get("state"), task.get("end")) for task in (info(flower, uuid) for uuid in ids)]


def wait_until_ends(flower: Flower, expected: dict[str, tuple[str, str | None]]) -> None:
    wait_until(lambda: ends(flower, *expected) == [*expected.values()], what=f"the ends {expected}")


def test_ends_that_were_not_received_are_those_of_the_result_backend(scene: Scene, tmp_path: Path) -> None:
    """Stock Flower shows these tasks as STARTED or RECEIVED for ever (mher/flower#869, #1428, #322)."""
    flowers = scene.flower, scene.without_results
    short, long = tmp_path / "short", tmp_path / "long"
    # The first limited task uses up the limit, so the second one waits, which no inspection shows
    limited, waiting = scene.send("add_limited", 1, 1, times=2)
    scene.wait_for("task-succeeded", limited)
    (running,) = scene.send("wait", str(long))
    (started,) = scene.send("wait", str(short))
    added, failed = *scene.send("add", 1, 2), *scene.send("fail")
    shown = [*[("STARTED", None)] * 2, *[("RECEIVED", None)] * 3]
    for flower in flowers:
        wait_until_ends(flower, dict(zip((running, started, added, failed, waiting), shown, strict=True)))
    before = scene.counted("task-succeeded"), scene.counted("task-failed")
    with scene.cut():
        short.touch()
        scene.wait_for("task-succeeded", started, added)
        scene.wait_for("task-failed", failed)

    succeeded, unknown = ("SUCCESS", "result_backend"), ("RECEIVED", "not_seen")
    wait_until_ends(scene.flower, {started: succeeded, added: succeeded, failed: ("FAILURE", "result_backend")})
    wait_until_ends(scene.without_results, {started: ("STARTED", "not_seen"), added: unknown, failed: unknown})
    for flower in flowers:
        assert ends(flower, running, waiting) == [("STARTED", None), ("RECEIVED", None)]
    task = info(scene.flower, added)
    assert (task["result"], task["worker"], task["runtime"]) == ("3", WORKER, None)
    assert task["received"] <= task["succeeded"] == task["timestamp"]
    task = info(scene.flower, failed)
    assert task["exception"] == "ValueError('this task fails on purpose')"
    assert "Traceback" in task["traceback"]
    # The counts of events stay truthful
    assert (scene.counted("task-succeeded"), scene.counted("task-failed")) == before

    pages = [request(flower.address, f"/task/{started}", headers=flower.known).text for flower in flowers]
    assert re.search(r">SUCCESS</span>\s*<span [^>]*>from the result backend; the event did not arrive<", pages[0])
    assert re.search(r">STARTED</span>\s*<span [^>]*>end not seen: its worker no longer has it,", pages[1])
    listed = scene.flower.tasks()
    assert [listed[uuid]["state"] for uuid in (started, added, failed)] == ["SUCCESS", "SUCCESS", "FAILURE"]

    long.touch()
    for flower in flowers:
        wait_until_ends(flower, {running: ("SUCCESS", None)})
        page = request(flower.address, f"/task/{running}", headers=flower.known).text
        assert "the result backend" not in page
