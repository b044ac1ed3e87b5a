"""Times are correct across time zones and clock steps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.processes import PROJECT, wait_until
from tests.support.programs import Broker, Flower, launch, redis, worker_process

ZONES = ("Asia/Tokyo", "America/New_York", "UTC")
# Time zones differ by at least an hour, so any error is at least as large
HOUR = 3600

# In each queue: two immediate tasks, one with a countdown of a second, and one whose eta is after the test
PRODUCER = """
import sys
from tests.support.server import app

for queue in sys.argv[1:]:
    app.send_task("server.add", (1, 1), queue=queue)
    app.send_task("server.fail", queue=queue)
    app.send_task("server.slow", (0,), queue=queue, countdown=1)
    app.send_task("server.total", ([],), queue=queue, countdown=3600)
"""
RUN = ("server.add", "server.fail", "server.slow")


@dataclass
class Flowers:
    """Two instances on one broker: the first purges offline workers after a second, the second after 50 minutes."""

    broker: Broker
    quick: Flower
    patient: Flower

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path, env: Mapping[str, str]) -> Iterator[Flowers]:
        with contextlib.ExitStack() as stack:
            broker = stack.enter_context(redis(folder))
            flowers = [
                stack.enter_context(
                    launch(
                        "ours", broker, folder / f"{seconds}", options=[f"--purge_offline_workers={seconds}"], env=env
                    )
                )
                for seconds in (1, 3000)
            ]
            yield cls(broker, *flowers)


def samples(flower: Flower, name: str, /, **labels: str) -> list[float]:
    found = (sample for family in flower.metrics() for sample in family.samples if sample.name == name)
    return [sample.value for sample in found if labels.items() <= sample.labels.items()]


def known(flower: Flower) -> dict[str, bool]:
    """Return the online status of the workers on the workers page."""
    return {str(worker["hostname"]): bool(worker["status"]) for worker in flower.workers()}


def online(flower: Flower) -> dict[str, bool]:
    """Return the online status of the workers in the metrics."""
    family = next(family for family in flower.metrics() if family.name == "flower_worker_online")
    return {sample.labels["worker"]: bool(sample.value) for sample in family.samples}


# Time zones


@pytest.fixture(scope="module", params=["UTC", "Asia/Tokyo"])
def zoned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flowers]:
    with Flowers.running(tmp_path_factory.mktemp("zoned"), {"TZ": request.param}) as flowers:
        yield flowers


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_times_are_correct_across_time_zones(end: signal.Signals, zoned: Flowers, tmp_path: Path) -> None:
    workers = {f"{zone.replace('/', '-')}-{end.name}@h": zone for zone in ZONES}
    begin = time.time()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                worker_process(zoned.broker, tmp_path / name, name=name, options=["-Q", name], env={"TZ": zone})
            )
            for name, zone in workers.items()
        ]
        both = (zoned.quick, zoned.patient)
        wait_until(lambda: all(workers.keys() <= known(flower).keys() for flower in both), what="the workers are known")
        for zone in ZONES:
            env = {**os.environ, **zoned.broker.environment, "TZ": zone}
            subprocess.run([sys.executable, "-c", PRODUCER, *workers], check=True, cwd=PROJECT, env=env)
        for flower in both:
            for worker in workers:
                check_metrics(flower, worker)
            check_pages(flower, workers, begin)
        for process in processes:
            os.kill(process.pid, end) if end == signal.SIGTERM else os.killpg(process.pid, end)
        wait_until(lambda: not workers.keys() & known(zoned.quick).keys(), what="the workers are purged")
        wait_until(lambda: not workers.keys() & online(zoned.quick).keys(), what="their metrics are purged")
        assert {name: known(zoned.patient).get(name) for name in workers} == dict.fromkeys(workers, False)
        assert {name: online(zoned.patient).get(name) for name in workers} == dict.fromkeys(workers, False)


def wait_for(flower: Flower, number: float, name: str, /, **labels: str) -> None:
    wait_until(lambda: samples(flower, name, **labels) == [number], what=f"{number} {name} {labels}")


def check_metrics(flower: Flower, worker: str) -> None:
    for name in RUN:
        runs = {"hostname": worker, "name": name}
        wait_for(flower, len(ZONES), "celery_task_queue_wait_time_count", **runs)
        (waited,) = samples(flower, "celery_task_queue_wait_time_sum", **runs)
        # Sending takes time, so 0 is an error; a task with an eta may start at that very moment
        assert 0 <= waited < HOUR, runs
        assert waited > 0 or name == "server.slow", runs
        wait_for(flower, len(ZONES), "flower_task_runtime_seconds_count", worker=worker, task=name)
        (ran,) = samples(flower, "flower_task_runtime_seconds_sum", worker=worker, task=name)
        assert 0 < ran < HOUR, runs
    wait_for(flower, len(ZONES), "celery_task_received_total", hostname=worker, name="server.total")
    assert samples(flower, "flower_worker_prefetched_tasks", worker=worker) == [0] * 4
    (delays,) = samples(flower, "flower_proxy_event_delay_seconds_sum")
    assert 0 < delays < HOUR


def check_pages(flower: Flower, workers: Mapping[str, str], begin: float) -> None:
    tasks = [task for task in flower.tasks().values() if str(task["routing_key"]) in workers]
    assert len(tasks) == len(workers) * len(ZONES) * 4
    moments = ("sent", "received", "started", "succeeded", "failed", "timestamp")
    times = [(task[moment], moment, task["name"]) for task in tasks for moment in moments if task[moment] is not None]
    assert [moment for moment in times if not begin < moment[0] < time.time()] == []  # type: ignore[operator]
    heartbeats = {worker["hostname"]: worker["heartbeats"] for worker in flower.workers()}
    assert all(begin < last < time.time() for name in workers for last in heartbeats[name])  # type: ignore[attr-defined]


# Clock steps


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["ahead", "back"])
def test_a_clock_step_does_not_change_the_status_of_workers(step: int, tmp_path: Path) -> None:
    clock, names = Clock(tmp_path), ("lives@h", "dies@h")
    with Flowers.running(tmp_path, clock.environment) as flowers, contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(worker_process(flowers.broker, tmp_path / name, name=name)) for name in names
        }
        both = (flowers.quick, flowers.patient)
        wait_until(lambda: all(known(flower) == dict.fromkeys(names, True) for flower in both), what="both are online")
        os.killpg(processes["dies@h"].pid, signal.SIGKILL)
        clock.step(step)
        observed = []

        def purged() -> bool:
            seen = [*map(known, both), *map(online, both)]
            observed.append([workers.get("lives@h") for workers in seen])
            return all("dies@h" not in workers for workers in (seen[0], seen[2]))

        wait_until(purged, what="the first instance purges the killed worker")
        assert [status for status in observed if status != [True] * 4] == []
        assert known(flowers.patient) == online(flowers.patient) == {"lives@h": True, "dies@h": False}
