"""Times are correct across time zones and clock steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.samples import Sample

from tests.support.clock import Clock
from tests.support.concurrently import started_together
from tests.support.processes import PROJECT, wait_until
from tests.support.programs import Broker, Flower, launch, redis, worker_process

ZONES = ("Asia/Tokyo", "America/New_York", "UTC")
FLOWER_ZONES = ("UTC", "Asia/Tokyo")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
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


class Pair(NamedTuple):
    """Two instances: the first purges offline workers after a second, the second after 50 minutes."""

    quick: Flower
    patient: Flower


@dataclass
class Cluster:
    """Instances on one broker, a pair in each of `FLOWER_ZONES`, each pair with a clock."""

    broker: Broker
    pairs: Sequence[Pair]
    clocks: Sequence[Clock]

    @property
    def flowers(self) -> list[Flower]:
        return [flower for pair in self.pairs for flower in pair]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    clocks = [Clock(tmp_path_factory.mktemp("clock")) for _ in FLOWER_ZONES]
    folder = tmp_path_factory.mktemp("cluster")
    with redis(folder) as broker:
        launches = [
            launch(
                "ours",
                broker,
                folder / f"{zone.replace('/', '-')}-{seconds}",
                options=[f"--purge_offline_workers={seconds}"],
                env={**clock.environment, "TZ": zone},
            )
            for zone, clock in zip(FLOWER_ZONES, clocks, strict=True)
            for seconds in (1, 3000)
        ]
        with started_together(launches) as flowers:
            pairs = [Pair(*flowers[index : index + 2]) for index in range(0, len(flowers), 2)]
            yield Cluster(broker, pairs, clocks)


def scrape(flower: Flower) -> list[Sample]:
    return [sample for family in flower.metrics() for sample in family.samples]


def values(samples: Sequence[Sample], name: str, /, **labels: str) -> list[float]:
    return [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]


def known(flower: Flower) -> dict[str, bool]:
    """Return the online status of the workers on the workers page."""
    return {str(worker["hostname"]): bool(worker["status"]) for worker in flower.workers()}


def online(flower: Flower) -> dict[str, bool]:
    """Return the online status of the workers in the metrics."""
    samples = scrape(flower)
    return {sample.labels["worker"]: bool(sample.value) for sample in samples if sample.name == "flower_worker_online"}


# Time zones


def test_times_are_correct_across_time_zones(cluster: Cluster, tmp_path: Path) -> None:
    ends = {f"{zone.replace('/', '-')}-{end.name}@h": (zone, end) for zone in ZONES for end in SIGNALS}
    begin = time.time()
    workers = (
        worker_process(cluster.broker, tmp_path / name, name=name, options=["-Q", name], env={"TZ": zone})
        for name, (zone, _) in ends.items()
    )
    with started_together(workers) as processes:
        for flower in cluster.flowers:
            wait_until(lambda flower=flower: ends.keys() <= known(flower).keys(), what="the workers are known")  # type: ignore[misc]
        send_tasks(cluster.broker, list(ends))
        for flower in cluster.flowers:
            check_metrics(flower, list(ends))
            check_pages(flower, list(ends), begin)
        for process, (_, end) in zip(processes, ends.values(), strict=True):
            os.kill(process.pid, end) if end == signal.SIGTERM else os.killpg(process.pid, end)
        offline = dict.fromkeys(ends, False)
        for quick, patient in cluster.pairs:
            for status in (known, online):
                wait_until(
                    lambda status=status, quick=quick: not ends.keys() & status(quick).keys(),  # type: ignore[misc]
                    what="the workers are purged",
                )
                found = status(patient)
                assert {name: found.get(name) for name in ends} == offline


def send_tasks(broker: Broker, queues: Sequence[str]) -> None:
    """Send tasks to each queue, from a producer in each of `ZONES`."""
    command = [sys.executable, "-c", PRODUCER, *queues]
    producers = [
        subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **broker.environment, "TZ": zone}) for zone in ZONES
    ]
    assert [producer.wait(timeout=60) for producer in producers] == [0] * len(ZONES)


def check_metrics(flower: Flower, workers: Sequence[str]) -> None:
    def incomplete() -> dict[tuple[str, ...], list[float]]:
        samples[:] = scrape(flower)
        found: dict[tuple[str, ...], list[float]] = {
            (sample, worker, name): values(samples, sample, **{worker_label: worker, name_label: name})
            for sample, worker_label, name_label in (
                ("celery_task_queue_wait_time_count", "hostname", "name"),
                ("flower_task_runtime_seconds_count", "worker", "task"),
            )
            for worker in workers
            for name in RUN
        }
        for worker in workers:
            received = values(samples, "celery_task_received_total", hostname=worker, name="server.total")
            # The label of the queue is missing where task-received arrives before the producer's task-sent
            found["received", worker] = [sum(received)]
        return {key: counts for key, counts in found.items() if counts != [len(ZONES)]}

    samples: list[Sample] = []
    try:
        # Many workers share the processor
        wait_until(lambda: not incomplete(), timeout=120, what="all tasks have run")
    except TimeoutError:
        assert incomplete() == {}
        raise
    for worker in workers:
        for name in RUN:
            (waited,) = values(samples, "celery_task_queue_wait_time_sum", hostname=worker, name=name)
            # 0 if the worker is faster than the client, which sends task-sent after the message
            assert 0 <= waited < HOUR, (worker, name)
            (ran,) = values(samples, "flower_task_runtime_seconds_sum", worker=worker, task=name)
            assert 0 < ran < HOUR, (worker, name)
        assert values(samples, "flower_worker_prefetched_tasks", worker=worker) == [0] * 4
    (delays,) = values(samples, "flower_proxy_event_delay_seconds_sum")
    assert 0 < delays < HOUR


def check_pages(flower: Flower, workers: Sequence[str], begin: float) -> None:
    tasks = [task for task in flower.tasks().values() if str(task["routing_key"]) in workers]
    assert len(tasks) == len(workers) * len(ZONES) * 4
    moments = ("sent", "received", "started", "succeeded", "failed", "timestamp")
    times = [(task[moment], moment, task["name"]) for task in tasks for moment in moments if task[moment] is not None]
    assert [moment for moment in times if not begin < moment[0] < time.time()] == []  # type: ignore[operator]
    heartbeats = {worker["hostname"]: worker["heartbeats"] for worker in flower.workers()}
    assert all(begin < last < time.time() for name in workers for last in heartbeats[name])  # type: ignore[attr-defined]


# Clock steps


@pytest.fixture
def stepped(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with clocks that are reset after the test."""
    yield cluster
    for clock in cluster.clocks:
        clock.step(0)


def test_a_clock_step_does_not_change_the_status_of_workers(stepped: Cluster, tmp_path: Path) -> None:
    """The clock of one pair is set ahead, that of the other one back."""
    names, flowers = ("lives@h", "dies@h"), stepped.flowers

    def statuses() -> list[dict[str, bool]]:
        """Return the status of the workers by each page, then by the metrics of each instance."""
        found = [*map(known, flowers), *map(online, flowers)]
        return [{name: workers[name] for name in names if name in workers} for workers in found]

    workers = (worker_process(stepped.broker, tmp_path / name, name=name) for name in names)
    with started_together(workers) as (_, dies):
        both = dict.fromkeys(names, True)
        wait_until(lambda: all(found == both for found in statuses()), what="both are online")
        os.killpg(dies.pid, signal.SIGKILL)
        for clock, step in zip(stepped.clocks, (HOUR, -HOUR), strict=True):
            clock.step(step)
        observed = []

        def purged() -> bool:
            found = statuses()
            observed.append([workers.get("lives@h") for workers in found])
            # Every other instance purges quickly
            return all("dies@h" not in workers for workers in found[::2])

        wait_until(purged, what="the quick instances purge the killed worker")
        assert [status for status in observed if status != [True] * len(status)] == []
        assert statuses()[1::2] == [{"lives@h": True, "dies@h": False}] * len(flowers)
