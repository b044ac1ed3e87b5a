"""Metrics compared with a ledger of real workers on real brokers, which are killed, restarted and disconnected."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from tests.support import rabbitmq
from tests.support.concurrently import each, entering
from tests.support.ledger import Ledger
from tests.support.outage import Interruptible, network_to
from tests.support.processes import free_port, request, wait_until
from tests.support.programs import Broker, Flower, launch, redis_server, worker_process

# Both on one host, with a queue each
FIRST, SECOND = "w1@h", "w2@h"
QUEUES = {FIRST: "celery", SECOND: "second"}
# worker_lost_wait is the time to wait for the result of a killed pool process. Redis redelivers unacknowledged tasks
# after the visibility timeout, so there may be more deliveries than expected
OPTIONS = {
    "redis": ["worker_lost_wait=1", 'broker_transport_options=(json){"visibility_timeout": 1}'],
    "rabbitmq": ["worker_lost_wait=1"],
}

PREFETCHED, EXECUTING = "flower_worker_prefetched_tasks", "flower_worker_number_of_currently_executing_tasks"
# Gauges that are 0 if no worker has a task
BUSY = {PREFETCHED, EXECUTING, "flower_task_prefetch_time_seconds", "celery_worker_tasks_active"}

# Numbers of events by type, worker or producer host, and task name
Events = Counter[tuple[str, str, str]]


def eventually(read: Callable[[], object], expected: object) -> None:
    """Wait for the expected value, and show the actual one if it does not come."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: read() == expected, what="the expected value")
    assert read() == expected


class Watcher(threading.Thread):
    """Polls a Flower and records failed requests and negative gauges."""

    def __init__(self, flower: Flower) -> None:
        super().__init__(name="watcher")
        self.polls = 0
        self.faults: list[str] = []
        self._flower = flower
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            try:
                self._poll()
            except (OSError, ValueError, http.client.HTTPException) as error:
                # Including timeouts of ten seconds
                self.faults.append(repr(error))

    def _poll(self) -> None:
        for path, expected in {"/healthcheck": {200}, "/ready": {200, 503}}.items():
            status = request(self._flower.address, path).status
            if status not in expected:
                self.faults.append(f"{path} answers {status}")
        gauges = [family for family in self._flower.metrics() if family.type == "gauge"]
        self.faults += [str(sample) for family in gauges for sample in family.samples if sample.value < 0]
        self.polls += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class Stage:
    """A broker, an idle worker, a Flower that has received all its events, and a watcher."""

    _sending = threading.Lock()

    def __init__(self, kind: str, outage: Interruptible, network: Interruptible, flower: Flower, folder: Path) -> None:
        self.outage = outage
        # Between Flower and the broker
        self.network = network
        self.flower = flower
        self.watcher = Watcher(flower)
        self.ledger = Ledger(folder / "ledger")
        # Events that happened while Flower was disconnected
        self.missed = Events()
        self._kind = kind
        self._folder = folder
        self._numbers = count()

    @contextlib.contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker, which is online in Flower when the block begins."""
        options = ["--without-mingle", "-Q", QUEUES[name], "--", *OPTIONS[self._kind]]
        folder, env = self._folder / f"worker{next(self._numbers)}", {"LEDGER": str(self.ledger.path)}
        with worker_process(self.outage.broker, folder, name=name, options=options, env=env) as process:
            eventually(lambda: self.online(name), 1)
            yield process

    def file(self) -> Path:
        """A path of a file that tasks wait for, which does not exist yet."""
        return self._folder / f"file{next(self._numbers)}"

    def send(self, name: str, *args: object, times: int = 1, **options: Any) -> list[str]:
        """Send tasks, and return their ids."""
        # The ledger records all tasks sent by this process
        with self._sending, Celery(broker=self.outage.broker.url) as app, self.ledger.of_producer():
            app.conf.task_send_sent_event = True
            return [app.send_task(f"server.{name}", args, **options).id for _ in range(times)]

    def revoke(self, uuid: str, *, terminate: bool = False) -> None:
        """Revoke a task at the first worker, and wait for its reply."""
        with Celery(broker=self.outage.broker.url) as app:
            app.control.revoke(uuid, terminate=terminate, reply=True, destination=[FIRST])

    def wait_for(self, event: str, *ids: str) -> None:
        """Wait until this event has happened to each of these tasks."""
        wait_until(lambda: {line.uuid for line in self.ledger.of(*ids, event=event)} == set(ids), what=f"{event} {ids}")

    # Reported by Flower

    def is_ready(self) -> bool:
        status = request(self.flower.address, "/ready").status
        assert status in (200, 503)
        return status == 200

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        return [(s.labels, s.value) for family in self.flower.metrics() for s in family.samples if s.name == name]

    def total(self, name: str, /, **labels: str) -> float:
        return sum(value for its, value in self.samples(name) if labels.items() <= its.items())

    def online(self, worker: str) -> float | None:
        """Whether a worker is online; None if it is unknown, or if the two families differ."""
        flower = {its["worker"]: value for its, value in self.samples("flower_worker_online")}
        celery = {its["hostname"]: value for its, value in self.samples("celery_worker_up")}
        return flower.get(worker) if flower == celery else None

    def busy(self) -> dict[str, float]:
        """The samples of `BUSY` that are not 0."""
        return {f"{name}{labels}": value for name in BUSY for labels, value in self.samples(name) if value}

    def counted(self) -> tuple[Events, Events]:
        """The events counted by ``flower_events_total`` and by ``celery_task_*_total``."""
        flower, celery = Events(), Events()
        for name, labels, value, *_ in (sample for family in self.flower.metrics() for sample in family.samples):
            if name == "flower_events_total":
                flower[labels["type"], labels["worker"], labels["task"]] += int(value)
            elif match := re.match(r"celery_task_(\w+)_total", name):
                celery[f"task-{match[1]}", labels["hostname"], labels["name"]] += int(value)
        return flower, +celery

    def runs(self) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        """Numbers of runs in the histograms of Flower and of celery-exporter; the latter has only successful runs."""
        flower = self.samples("flower_task_runtime_seconds_count")
        celery = self.samples("celery_task_runtime_count")
        return (
            Counter({(labels["worker"], labels["task"]): int(value) for labels, value in flower}),
            Counter({(labels["hostname"], labels["name"]): int(value) for labels, value in celery}),
        )

    # Expected

    def happened(self) -> Events:
        """The events that workers and producers have written to the ledger."""
        return Events((line.event, line.who, line.name) for line in self.ledger.lines())

    def check(self) -> None:
        """Check that Flower has counted each event once, and that it reports no tasks at workers."""
        received = self.happened() - self.missed
        eventually(self.counted, (received, received))
        eventually(self.busy, {})

    def check_runs(self) -> None:
        """Check that each run whose end Flower has received is in the histograms once."""
        ran, succeeded = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for (event, worker, name), number in (self.happened() - self.missed).items():
            if event in ("task-succeeded", "task-failed", "task-retried"):
                ran[worker, name] += number
            if event == "task-succeeded":
                succeeded[worker, name] += number
        eventually(self.runs, (ran, succeeded))


@contextlib.contextmanager
def stage_with(kind: str, broker: Broker, folder: Path) -> Iterator[Stage]:
    port = free_port()
    # Outages do not affect the result backend
    results = broker.url.removesuffix("/0") + "/1"
    if kind == "redis":
        target = Broker(f"redis://127.0.0.1:{port}/0", results)
        outage = Interruptible(target, lambda: redis_server(folder, port, keeps=True))
    else:
        target = Broker(f"amqp://guest:guest@127.0.0.1:{port}//", results)
        outage = Interruptible(target, lambda: rabbitmq.server(folder, port))
    network = network_to(target, folder)
    with contextlib.ExitStack() as stack:
        for interruptible in (outage, network):
            stack.callback(interruptible.stop)
            interruptible.start()
        options = ["--task_runtime_metric_buckets=0.1,0.2"]
        flower = stack.enter_context(launch("ours", network.broker, folder / "flower", options=options))
        stage = Stage(kind, outage, network, flower, folder)
        eventually(stage.is_ready, True)
        stage.watcher.start()
        stack.callback(stage.watcher.stop)
        stack.enter_context(stage.worker(FIRST))
        yield stage


@pytest.fixture(scope="module")
def stages(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stage]]:
    with entering({kind: stage_with(kind, broker, tmp_path_factory.mktemp(kind)) for kind in OPTIONS}) as stages:
        yield {kind: stage.result() for kind, stage in stages.items()}


def on_each_broker(check: Callable[[Stage], None]) -> Callable[[dict[str, Stage]], None]:
    """Make a test that runs on all brokers concurrently, since it mostly waits."""

    def test(stages: dict[str, Stage]) -> None:
        each(check, stages)

    return test


@on_each_broker
def test_task_events_are_counted(stage: Stage) -> None:
    successful = [*stage.send("add", 1, 1, times=20), *stage.send("total_of_sums", 3)]
    failing = [*stage.send("fail", times=5), *stage.send("fail_otherwise", times=3), *stage.send("retry", times=3)]
    stage.wait_for("task-succeeded", *successful)
    stage.wait_for("task-failed", *failing)
    wait_until(lambda: stage.happened()["task-succeeded", FIRST, "server.total"], what="the chord has ended")
    stage.check()
    happened = stage.happened()
    assert happened["task-succeeded", FIRST, "server.add"] == 20 + 3
    assert happened["task-retried", FIRST, "server.retry"] == 3 * 2

    # Each run has one queue wait time, whichever of task-sent and task-started came first
    started = {name: number for (event, _, name), number in happened.items() if event == "task-started"}
    eventually(lambda: {its["name"]: n for its, n in stage.samples("celery_task_queue_wait_time_count")}, started)

    # The result backend has the same outcomes
    ended = Counter[tuple[str, str]]()
    with contextlib.closing(Redis.from_url(stage.outage.broker.results, decode_responses=True)) as client:
        for uuid, name in {line.uuid: line.name for line in stage.ledger.lines()}.items():
            result = json.loads(str(client.get(f"celery-task-meta-{uuid}") or "{}"))
            ended[name, "" if result["status"] == "SUCCESS" else result["result"]["exc_type"]] += 1
    counted = {(its["name"], its["exception"]): n for its, n in stage.samples("celery_task_failed_total") if n}
    counted |= {(its["name"], ""): n for its, n in stage.samples("celery_task_succeeded_total") if n}
    assert counted == ended


@on_each_broker
def test_run_times_of_retried_tasks_are_observed(stage: Stage) -> None:
    """The next task-received event may come before the task-retried event."""
    stage.wait_for("task-failed", *stage.send("retry", times=5))
    stage.check_runs()


@on_each_broker
def test_run_times_above_the_largest_bucket_are_observed(stage: Stage) -> None:
    stage.wait_for("task-succeeded", *stage.send("slow", 0.3))
    stage.check()
    for name, worker, task in (
        ("flower_task_runtime_seconds", "worker", "task"),
        ("celery_task_runtime", "hostname", "name"),
    ):
        of_it = {worker: FIRST, task: "server.slow"}
        buckets = {its["le"]: n for its, n in stage.samples(f"{name}_bucket") if of_it.items() <= its.items()}
        assert buckets == {"0.1": 0, "0.2": 0, "+Inf": 1}
        assert 0.3 <= stage.total(f"{name}_sum", **of_it) < 10


@on_each_broker
def test_tasks_with_eta_and_revoked_tasks(stage: Stage) -> None:
    file = stage.file()
    later = stage.send("add", 1, 1, times=3, countdown=5)
    stage.wait_for("task-received", *later)
    # Before its eta; on a busy machine the next steps take seconds
    stage.revoke(later[0])
    eventually(stage.counted, (stage.happened(), stage.happened()))
    assert stage.total(PREFETCHED) == 0
    running, waiting = stage.send("wait", str(file)), stage.send("add", 1, 1)
    stage.wait_for("task-started", *running)
    stage.wait_for("task-received", *waiting)
    stage.revoke(*waiting)
    stage.revoke(*running, terminate=True)
    stage.wait_for("task-revoked", later[0], *waiting, *running)
    stage.wait_for("task-succeeded", *later[1:])
    stage.check()


@on_each_broker
def test_a_task_whose_process_is_killed_is_redelivered(stage: Stage) -> None:
    file = stage.file()
    (uuid,) = stage.send("wait_late", str(file))
    stage.wait_for("task-started", uuid)
    (line,) = stage.ledger.of(uuid, event="task-started")
    os.kill(line.pid, signal.SIGKILL)
    # Celery sends no signal when a worker requeues a task
    stage.ledger.write("task-rejected", FIRST, line.name, line.queue, uuid)
    file.touch()
    stage.wait_for("task-succeeded", uuid)
    stage.check()
    assert len(stage.ledger.of(uuid, event="task-received")) >= 2


@on_each_broker
def test_a_killed_worker_is_offline_and_its_tasks_are_redelivered(stage: Stage) -> None:
    """See mher/flower#1128 and mher/flower#1364."""
    file = stage.file()
    with stage.worker(SECOND) as process:
        ids = stage.send("wait_late", str(file), times=5, queue=QUEUES[SECOND])
        # The worker prefetches four tasks
        eventually(lambda: (stage.total(EXECUTING, worker=SECOND), stage.total(PREFETCHED, worker=SECOND)), (1, 3))
        os.killpg(process.pid, signal.SIGKILL)
        wait_until(lambda: stage.online(SECOND) == 0, timeout=10, what="the worker is offline")
        assert stage.online(FIRST) == 1
        assert (stage.total(EXECUTING, worker=SECOND), stage.total(PREFETCHED, worker=SECOND)) == (0, 0)
        assert stage.total("celery_worker_tasks_active", hostname=SECOND) == 0
    file.touch()
    with stage.worker(SECOND):
        stage.wait_for("task-succeeded", *ids)
        stage.check()
        assert len(stage.ledger.of(*ids, event="task-received")) >= 4 + 5
    # The queue is unknown only if the worker's event comes before task-sent
    counters = [f"celery_task_{kind}_total" for kind in ("received", "started", "succeeded")]
    queues = {
        name: {its["queue_name"] for its, n in stage.samples(name) if its["hostname"] == SECOND and n}
        for name in counters
    }
    assert queues.pop("celery_task_received_total") <= {"celery", "second"}
    assert queues.pop("celery_task_started_total") <= {"celery", "second"}
    assert queues == {"celery_task_succeeded_total": {"second"}}


@on_each_broker
def test_prefetched_tasks_are_redelivered_after_a_warm_shutdown(stage: Stage) -> None:
    file = stage.file()
    with stage.worker(SECOND) as process:
        ids = stage.send("wait_late", str(file), times=3, queue=QUEUES[SECOND])
        eventually(lambda: (stage.total(EXECUTING, worker=SECOND), stage.total(PREFETCHED, worker=SECOND)), (1, 2))
        process.terminate()
        eventually(lambda: stage.online(SECOND), 0)
        assert stage.total(PREFETCHED, worker=SECOND) == 0
        file.touch()
        assert process.wait() == 0
        assert len(stage.ledger.of(*ids, event="task-succeeded")) == 1
    with stage.worker(SECOND):
        stage.wait_for("task-succeeded", *ids)
        stage.check()
        assert len(stage.ledger.of(*ids, event="task-received")) >= 3 + 2


@on_each_broker
def test_events_after_a_broker_outage_are_counted(stage: Stage) -> None:
    """Only events that are sent before Flower has reconnected are lost (mher/flower#321, mher/flower#869)."""
    during_the_outage, after = stage.file(), stage.file()
    with stage.worker(SECOND):
        # More tasks than each worker prefetches: with kombu 5.7 and Redis, a worker that waits for messages fails
        running, waiting = [], []
        for queue in QUEUES.values():
            running += stage.send("wait", str(during_the_outage), queue=queue)
            waiting += stage.send("wait", str(after), times=3, queue=queue)
            waiting += stage.send("wait_late", str(after), times=3, queue=queue)
        eventually(lambda: [stage.total(PREFETCHED, worker=name) for name in QUEUES], [4, 4])
        assert stage.is_ready()
        stage.outage.stop()
        eventually(stage.is_ready, False)
        before = stage.happened()
        during_the_outage.touch()
        stage.wait_for("task-succeeded", *running)
        eventually(lambda: [stage.online(name) for name in QUEUES], [0, 0])
        assert not stage.is_ready()
        stage.outage.start()
        eventually(stage.is_ready, True)
        uncertain = stage.happened() - before
        after.touch()
        stage.wait_for("task-succeeded", *waiting)
        happened = stage.happened()
        # At most the events that happened, and all since the reconnection
        wait_until(
            lambda: all(happened - uncertain <= counted <= happened for counted in stage.counted()), what="counted"
        )
        stage.missed += happened - stage.counted()[0]
        stage.wait_for("task-succeeded", *stage.send("add", 1, 1, times=5))
        stage.check()
        eventually(lambda: [stage.online(name) for name in QUEUES], [1, 1])


@on_each_broker
def test_tasks_that_end_while_flower_is_disconnected_are_dropped(stage: Stage) -> None:
    """Flower inspects the workers after it has reconnected."""
    file = stage.file()
    ids = stage.send("wait", str(file), times=4)
    eventually(lambda: stage.total(PREFETCHED, worker=FIRST), 3)
    before = stage.happened()
    stage.network.stop()
    eventually(stage.is_ready, False)
    file.touch()
    stage.wait_for("task-succeeded", *ids)
    stage.network.start()
    eventually(stage.is_ready, True)
    stage.missed += stage.happened() - before
    stage.wait_for("task-succeeded", *stage.send("add", 1, 1, times=5))
    stage.check()


@on_each_broker
def test_finally_each_run_time_has_been_observed(stage: Stage) -> None:
    stage.wait_for("task-succeeded", *stage.send("add", 1, 1))
    stage.check_runs()


@on_each_broker
def test_finally_each_missed_task_has_been_counted(stage: Stage) -> None:
    """Neither retried, revoked, rejected and redelivered tasks nor restarts of workers count as missed."""
    missed = sum(n for (event, who, _), n in stage.missed.items() if (event, who) == ("task-started", FIRST))
    assert missed > 0
    eventually(lambda: stage.total("flower_proxy_tasks_missed_total", worker=FIRST), missed)


@on_each_broker
def test_finally_all_queues_are_empty(stage: Stage) -> None:
    eventually(lambda: [n for its, n in stage.samples("celery_queue_length") if its["queue_name"] == "celery"], [0])
    eventually(lambda: stage.total("celery_queue_length"), 0)


@on_each_broker
def test_finally_no_request_has_failed_and_no_gauge_was_negative(stage: Stage) -> None:
    eventually(lambda: stage.watcher.polls > 1, True)
    assert stage.watcher.faults == []
