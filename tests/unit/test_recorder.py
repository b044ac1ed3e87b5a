"""Metrics recorded from worker and task events."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from celery.worker.heartbeat import Heart
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy.events.state import State
from flower_proxy.metrics.broker_poller import QueueFigures
from flower_proxy.metrics.exposition import render
from flower_proxy.metrics.in_flight import InFlight, InFlightTask
from flower_proxy.metrics.queue_waits import MAX_RUNS
from flower_proxy.metrics.recorder import Recorder
from tests.support import states

W1, W2, W3 = "w1@host", "w2@host", "w3@host"
PRODUCER = "gen4711@web"
BUCKETS = (0.1, 1.0, 60.0)
GROUPS = ("flower", "celery")

# Task events are old, so that only heartbeats make a worker online
BEGIN = float(int(time.time())) - 100_000

Event = dict[str, Any]
clocks = itertools.count(1)


def task(kind: str, uuid: str, worker: str, at: float, **fields: Any) -> Event:
    fields = {"hostname": worker, "timestamp": BEGIN + at, "local_received": BEGIN + at, **fields}
    return {"type": f"task-{kind}", "uuid": uuid, "clock": next(clocks), **fields}


def sent(
    uuid: str = "1", by: str = PRODUCER, at: float = 0, name: str = "add", queue: str = "fast", retries: int = 0
) -> Event:
    return task("sent", uuid, by, at, name=name, queue=queue, retries=retries)


def received(
    uuid: str = "1",
    worker: str = W1,
    at: float = 1,
    name: str = "add",
    eta: datetime | None = None,
    retries: int = 0,
) -> Event:
    return task("received", uuid, worker, at, name=name, eta=eta and eta.isoformat(), retries=retries)


def started(uuid: str = "1", worker: str = W1, at: float = 3) -> Event:
    return task("started", uuid, worker, at)


def succeeded(uuid: str = "1", worker: str = W1, at: float = 4, runtime: Any = 0.5) -> Event:
    return task("succeeded", uuid, worker, at, runtime=runtime, result="None")


def failed(uuid: str = "1", worker: str = W1, at: float = 4, exception: str = "ValueError('no')") -> Event:
    return task("failed", uuid, worker, at, exception=exception)


def retried(uuid: str = "1", worker: str = W1, at: float = 4) -> Event:
    return task("retried", uuid, worker, at, exception="ValueError('not yet')")


def revoked(uuid: str = "1", worker: str = W1, at: float = 4) -> Event:
    return task("revoked", uuid, worker, at, terminated=True, signum=15, expired=False)


def rejected(uuid: str = "1", worker: str = W1, at: float = 4) -> Event:
    return task("rejected", uuid, worker, at, requeue=True)


def of_worker(kind: str, worker: str, ago: float = 0, **fields: Any) -> Event:
    fields = {"hostname": worker, "timestamp": -ago, "local_received": -ago, "freq": 2.0, **fields}
    return {"type": f"worker-{kind}", "clock": next(clocks), **fields}


def dated(event: Event) -> Event:
    """The event with current timestamps if it is a worker event; scenarios are created long before they run."""
    if event["type"].startswith("task-"):
        return dict(event)
    now = time.time()
    return {**event, "timestamp": now + event["timestamp"], "local_received": now + event["local_received"]}


def online(worker: str = W1) -> Event:
    return of_worker("online", worker)


def heartbeat(worker: str = W1, active: Any = 0, ago: float = 0) -> Event:
    return of_worker("heartbeat", worker, ago, active=active, processed=0)


def offline(worker: str = W1) -> Event:
    return of_worker("offline", worker)


class Cluster:
    """A state and its recorder.

    :param max_tasks: maximum number of tasks in the state.
    :param max_workers: maximum number of workers in the state.
    :param queues_of: returns the queues that a worker consumes from.
    :param options: of the recorder.
    """

    def __init__(
        self,
        *events: Event,
        max_tasks: int = 1000,
        max_workers: int = 1000,
        queues_of: Callable[[str], Sequence[str]] = lambda worker: (),
        **options: Any,
    ) -> None:
        self.now = BEGIN
        self.state = State(max_tasks_in_memory=max_tasks, max_workers_in_memory=max_workers)
        self.recorder = Recorder(BUCKETS, clock=lambda: self.now, **options)
        self.recorder.begin(self.state, queues_of)
        self.feed(*events)

    def feed(self, *events: Event) -> None:
        for event in events:
            event = dated(event)
            self.state.event(event)
            self.recorder.on_event(event)

    def inspect(self, worker: str, *ids: str) -> None:
        """Inspect a worker that lists these tasks, a second later."""
        self.now += 1
        self.recorder.reconcile(worker, set(ids), inspected_at=self.now)
        self.now += 1

    def forget(self, *workers: str) -> set[str]:
        """Forget workers, like --purge_offline_workers."""
        for worker in workers:
            del self.state.workers[worker]
        return self.recorder.forget_evicted()

    def text(self, queues: QueueFigures | None = None, groups: Sequence[str] = GROUPS) -> str:
        return "".join(render(self.recorder.families(queues, groups=groups), openmetrics=False))

    def samples(self, queues: QueueFigures | None = None) -> dict[str, float]:
        """Values by sample name and labels."""
        lines = [line.rpartition(" ") for line in self.text(queues).splitlines() if not line.startswith("#")]
        return {sample: float(number) for sample, _, number in lines}


def sample(name: str, /, **labels: str) -> str:
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def events(worker: str, kind: str, name: str = "add") -> str:
    return sample("flower_events_total", worker=worker, type=f"task-{kind}", task=name)


def prefetched(worker: str = W1, name: str = "add") -> str:
    return sample("flower_worker_prefetched_tasks", worker=worker, task=name)


def prefetch_time(worker: str = W1, name: str = "add") -> str:
    return sample("flower_task_prefetch_time_seconds", worker=worker, task=name)


def is_online(worker: str = W1) -> str:
    return sample("flower_worker_online", worker=worker)


def executing(worker: str = W1) -> str:
    return sample("flower_worker_number_of_currently_executing_tasks", worker=worker)


def runtime(suffix: str, worker: str = W1, name: str = "add", **more: str) -> str:
    return sample(f"flower_task_runtime_seconds_{suffix}", worker=worker, task=name, **more)


def celery_up(worker: str) -> str:
    return sample("celery_worker_up", hostname=worker)


def celery_active(worker: str) -> str:
    return sample("celery_worker_tasks_active", hostname=worker)


def celery(suffix: str, worker: str = W1, queue: str = "celery", name: str = "add", **more: str) -> str:
    return sample(f"celery_task_{suffix}", name=name, hostname=worker, queue_name=queue, **more)


ABSENT = None


@dataclass(frozen=True)
class Scenario:
    """Events and the expected samples after them.

    :ivar options: of the cluster.
    """

    events: Sequence[Event]
    expected: dict[str, float | None]
    options: dict[str, Any] = field(default_factory=dict)


IN_AN_HOUR = datetime.fromtimestamp(BEGIN, timezone.utc) + timedelta(hours=1)

SCENARIOS = {
    # Online workers
    "a worker with recent heartbeats is online": Scenario(
        [online(), heartbeat(active=3)],
        {is_online(): 1, executing(): 3, celery_up(W1): 1},
    ),
    "a killed worker is offline, other workers of its host are not (mher/flower#1128)": Scenario(
        [heartbeat(W1, 2), heartbeat(W2, 5, ago=10), heartbeat(W3, 1)],
        {
            **{is_online(W1): 1, is_online(W2): 0, is_online(W3): 1},
            **{executing(W1): 2, executing(W2): 0, executing(W3): 1},
            **{celery_up(W1): 1, celery_up(W2): 0, celery_up(W3): 1},
            **{celery_active(W1): 2, celery_active(W2): 0, celery_active(W3): 1},
        },
    ),
    "a worker that stops is offline": Scenario([online(), offline()], {is_online(): 0, executing(): 0}),
    "an unknown worker that stops has no series": Scenario([offline()], {is_online(): ABSENT}),
    "a restarted worker is online": Scenario(
        [heartbeat(active=2, ago=60), online(), heartbeat(active=1)], {is_online(): 1, executing(): 1}
    ),
    "a heartbeat without active tasks": Scenario([heartbeat(active=None)], {is_online(): 1, executing(): 0}),
    "a heartbeat with a malformed number of tasks": Scenario(
        [heartbeat(active="many")], {is_online(): 1, executing(): 0}
    ),
    # Clients
    "clients of one host are aggregated (danihodovic/celery-exporter#116)": Scenario(
        [sent("1", "gen17@web"), sent("2", "gen18@web"), sent("3", "gen19@db")],
        {
            events("gen@web", "sent"): 2,
            events("gen@db", "sent"): 1,
            celery("sent_total", "gen@web", "fast"): 2,
            events("gen17@web", "sent"): ABSENT,
            is_online("gen@web"): ABSENT,
            prefetched("gen@web"): ABSENT,
        },
    ),
    "a worker named like a client keeps its name": Scenario(
        [online("gen1@host"), received(worker="gen1@host")], {prefetched("gen1@host"): 1, is_online("gen1@host"): 1}
    ),
    # Prefetched tasks
    "a prefetched and a running task": Scenario(
        [online(), received("1", at=1), received("2", at=2), started("1", at=3.5)],
        {prefetched(): 1, prefetch_time(): 2.5},
    ),
    "prefetch time is that of the task started last": Scenario(
        [online(), received("1", at=1), received("2", at=2), started("2", at=3), started("1", at=9)],
        {prefetched(): 0, prefetch_time(): 8},
    ),
    "prefetch time is that of the task started last that still runs": Scenario(
        [online(), received("1"), received("2"), started("1", at=3), started("2", at=9), succeeded("2", at=10)],
        {prefetched(): 0, prefetch_time(): 2},
    ),
    **{
        f"prefetch gauges are 0 after {outcome} (mher/flower#1364)": Scenario(
            [online(), received(), started(), end], {prefetched(): 0, prefetch_time(): 0}
        )
        for outcome, end in {
            "success": succeeded(),
            "failure": failed(),
            "retry": retried(),
            "termination": revoked(),
            "rejection": rejected(),
        }.items()
    },
    "a task revoked before its start": Scenario([online(), received(), revoked()], {prefetched(): 0}),
    "a task rejected before its start": Scenario([online(), received(), rejected()], {prefetched(): 0}),
    "a retried task is prefetched again": Scenario(
        [online(), received(), started(), retried(), received(at=10)], {prefetched(): 1, prefetch_time(): 0}
    ),
    "a redelivered task is prefetched by one worker only": Scenario(
        [online(W1), online(W2), received(worker=W1), received(worker=W2, at=2)],
        {prefetched(W1): 0, prefetched(W2): 1},
    ),
    "a task redelivered while it runs is prefetched and running": Scenario(
        [online(), received(), started(at=3), received(at=9), failed(at=10)],
        {prefetched(): 1, prefetch_time(): 0, runtime("count"): 1, runtime("sum"): 7},
    ),
    "both runs of a task redelivered while it ran have ended": Scenario(
        [online(), received(), started(at=3), received(at=9), started(at=10), failed(at=12), failed(at=14)],
        {prefetched(): 0, prefetch_time(): 0, runtime("count"): 2, runtime("sum"): 9 + 4},
    ),
    "the first run of a task redelivered while it ran has ended": Scenario(
        [online(), received(), started(at=3), received(at=9), started(at=10), succeeded(at=12)],
        {prefetched(): 0, prefetch_time(): 1},
    ),
    "only the last runs of a task redelivered many times are tracked": Scenario(
        [online(), *[received(), started()] * 15, *[failed()] * 15], {runtime("count"): 11, events(W1, "failed"): 15}
    ),
    "a task redelivered to the same worker": Scenario([online(), received(), received(at=100)], {prefetched(): 1}),
    "a redelivered task ends at its first worker": Scenario(
        [online(W1), online(W2), received(worker=W1), received(worker=W2), succeeded(worker=W1)],
        {prefetched(W1): 0, prefetched(W2): 1},
    ),
    "tasks evicted from the state before their start": Scenario(
        [online(), *(received(str(n)) for n in range(6)), *(started(str(n)) for n in range(6))],
        {prefetched(): 0, events(W1, "started"): 6, prefetch_time(): 2},
        {"max_tasks": 2},
    ),
    "more tasks than max_in_flight": Scenario(
        [online(), *(received(str(n)) for n in range(6)), started("0")],
        {prefetched(): 3, events(W1, "received"): 6},
        {"max_in_flight": 4},
    ),
    "a redelivered task is not the oldest": Scenario(
        [online(), received("1", name="mul"), received("2"), received("1", name="mul"), received("3")],
        {prefetched(name="mul"): 1, prefetched(): 1},
        {"max_in_flight": 2},
    ),
    "a task that waits for its eta is not prefetched": Scenario(
        [online(), received(eta=IN_AN_HOUR)], {prefetched(): 0, events(W1, "received"): 1}
    ),
    "a task with an eta has no prefetch time": Scenario(
        [online(), received(eta=IN_AN_HOUR), started(at=3601)], {prefetched(): 0, prefetch_time(): 0}
    ),
    "tasks of an offline worker are not prefetched": Scenario(
        [heartbeat(ago=60), received("1"), received("2"), started("1")], {prefetched(): 0, prefetch_time(): 0}
    ),
    "a restarted worker has lost its tasks": Scenario(
        [online(), received("1"), received("2"), started("1"), online(), received("3")],
        {prefetched(): 1, prefetch_time(): 0},
    ),
    "a stopped worker has lost its tasks, other workers have not": Scenario(
        [online(W1), online(W2), received("1"), received("2", W2), offline(W1), heartbeat(W1)],
        {prefetched(W1): 0, prefetched(W2): 1},
    ),
    "a start without earlier events": Scenario(
        [online(), started()], {prefetched(name=""): 0, prefetch_time(name=""): 0, events(W1, "started", ""): 1}
    ),
    "an end without earlier events": Scenario(
        [online(), succeeded()], {prefetched(name=""): 0, runtime("count", name=""): 1}
    ),
    "a clock that steps back": Scenario([online(), received(at=5), started(at=3)], {prefetch_time(): 0}),
    # Run time
    "the run time of a task that succeeded": Scenario(
        [received(), started(), succeeded(runtime=0.5)],
        {
            runtime("count"): 1,
            runtime("sum"): 0.5,
            runtime("bucket", le="0.1"): 0,
            runtime("bucket", le="1.0"): 1,
            celery("runtime_count"): 1,
            celery("runtime_sum"): 0.5,
        },
    ),
    "a run time of 0 is observed": Scenario(
        [received(), started(), succeeded(runtime=0.0)], {runtime("count"): 1, runtime("sum"): 0}
    ),
    "a run time above the largest bucket": Scenario(
        [received(), started(), succeeded(runtime=7200)],
        {
            runtime("bucket", le="60.0"): 0,
            runtime("bucket", le="+Inf"): 1,
            runtime("sum"): 7200,
        },
    ),
    "the run time of a task that failed": Scenario(
        [received(), started(at=3), failed(at=5.5)],
        {runtime("count"): 1, runtime("sum"): 2.5, celery("runtime_count"): ABSENT},
    ),
    "the run times of a retried task": Scenario(
        [received(), started(at=3), retried(at=4), received(at=9), started(at=10), succeeded(at=20, runtime=7)],
        {runtime("count"): 2, runtime("sum"): 8, celery("runtime_count"): 1},
    ),
    "a task that failed without a known start": Scenario(
        [received(), failed()], {runtime("count"): ABSENT, events(W1, "failed"): 1}
    ),
    "a task that was started by another worker": Scenario(
        [received(), started(worker=W2, at=3), failed(worker=W1, at=9)], {runtime("count"): ABSENT}
    ),
    "a malformed run time": Scenario(
        [received(), started(), succeeded(runtime="soon")], {runtime("count"): ABSENT, events(W1, "succeeded"): 1}
    ),
    # Counters of celery-exporter
    "all counters exist after the first event": Scenario(
        [received()],
        {
            celery("received_total"): 1,
            celery("sent_total"): 0,
            celery("started_total"): 0,
            celery("succeeded_total"): 0,
            celery("failed_total", exception=""): 0,
            celery("rejected_total"): 0,
            celery("revoked_total"): 0,
            celery("retried_total"): 0,
        },
    ),
    "each event type has its counter": Scenario(
        [received("1"), started("1"), succeeded("1"), received("2"), rejected("2"), revoked("3"), retried("1")],
        {
            celery("received_total"): 2,
            celery("started_total"): 1,
            celery("succeeded_total"): 1,
            celery("rejected_total"): 1,
            celery("retried_total"): 1,
            celery("revoked_total"): 0,
            celery("revoked_total", name=""): 1,
        },
    ),
    "workers of one host have their own series": Scenario(
        [received("1", W1), received("2", W2), received("3", W2)],
        {celery("received_total", W1): 1, celery("received_total", W2): 2},
    ),
    "failures are counted by exception": Scenario(
        [
            *(received(str(n)) for n in range(4)),
            failed("0"),
            failed("1"),
            failed("2", exception="KeyError('x')"),
            failed("3", exception="not an exception"),
        ],
        {
            celery("failed_total", exception=""): 0,
            celery("failed_total", exception="ValueError"): 2,
            celery("failed_total", exception="KeyError"): 1,
            celery("failed_total", exception="UnknownException"): 1,
        },
    ),
    "at most a hundred exceptions": Scenario(
        [*(failed(str(n), exception=f"Error{n}()") for n in range(105)), failed("again", exception="Error1()")],
        {
            celery("failed_total", name="", exception="Error99"): 1,
            celery("failed_total", name="", exception="Error1"): 2,
            celery("failed_total", name="", exception="Error100"): ABSENT,
            celery("failed_total", name="", exception="UnknownException"): 5,
        },
    ),
    "the queue is that of the task-sent event": Scenario(
        [sent(queue="fast"), received(), started(), succeeded(), received("2")],
        {
            celery("succeeded_total", queue="fast"): 1,
            celery("runtime_count", queue="fast"): 1,
            celery("received_total", queue="fast"): 1,
            celery("received_total", queue="celery"): 1,
        },
    ),
    "without task-sent, the queue is the only one of the worker": Scenario(
        [received("1", W1), received("2", W2), received("3", W3)],
        {
            celery("received_total", W1, "slow"): 1,
            celery("received_total", W2, "celery"): 1,
            celery("received_total", W3, "celery"): 1,
        },
        {"queues_of": lambda worker: {W1: ("slow",), W2: ("slow", "fast")}.get(worker, ())},
    ),
    "at most a thousand queues": Scenario(
        [sent(str(n), queue=f"queue{n}") for n in range(1002)],
        {celery("sent_total", "gen@web", "queue1"): 1, celery("sent_total", "gen@web", "other"): 2},
    ),
    "at most a thousand hosts of clients": Scenario(
        [sent(str(n), by=f"gen{n}@pod{n}") for n in range(1003)],
        {events("gen@pod1", "sent"): 1, events("gen@other", "sent"): 3},
    ),
    "queue wait time": Scenario(
        [sent(at=0), received(at=1), started(at=7.5)],
        {
            celery("queue_wait_time_count", queue="fast"): 1,
            celery("queue_wait_time_sum", queue="fast"): 7.5,
            celery("queue_wait_time_bucket", queue="fast", le="5.0"): 0,
            celery("queue_wait_time_bucket", queue="fast", le="10.0"): 1,
        },
    ),
    "queue wait time if task-started comes before task-sent": Scenario(
        [received(at=1), started(at=7.5), succeeded(), sent(at=0)],
        {
            celery("queue_wait_time_count", queue="fast"): 1,
            celery("queue_wait_time_sum", queue="fast"): 7.5,
            celery("queue_wait_time_count"): ABSENT,
        },
    ),
    "queue wait time of a task with an eta if task-started comes before task-sent": Scenario(
        [received(eta=IN_AN_HOUR), started(at=3602), sent(at=0)], {celery("queue_wait_time_sum", queue="fast"): 2}
    ),
    "queue wait time of each run starts when that run was sent": Scenario(
        [
            *(sent(at=0), received(at=1), started(at=2), retried(at=3)),
            *(sent(at=3, by=W1, retries=1), received(at=4, retries=1), started(at=7), succeeded(at=8)),
        ],
        {celery("queue_wait_time_count", queue="fast"): 2, celery("queue_wait_time_sum", queue="fast"): 2 + 4},
    ),
    "queue wait time of each run if the next task-sent comes late": Scenario(
        [
            *(sent(at=0), received(at=1), started(at=2), received(at=4, retries=1), retried(at=4)),
            *(started(at=7), sent(at=3, by=W1, retries=1), succeeded(at=8)),
        ],
        {celery("queue_wait_time_count", queue="fast"): 2, celery("queue_wait_time_sum", queue="fast"): 2 + 4},
    ),
    "queue wait time of each run if the next task-received comes before task-started": Scenario(
        [
            *(sent(at=0), received(at=1), received(at=4, retries=1), sent(at=3, by=W1, retries=1), started(at=2)),
            *(retried(at=3), started(at=7), succeeded(at=8)),
        ],
        {
            celery("queue_wait_time_count", queue="fast"): 2,
            celery("queue_wait_time_sum", queue="fast"): 2 + 4,
            runtime("sum"): 1 + 0.5,
        },
    ),
    "queue wait time of a redelivered task is observed once": Scenario(
        [sent(at=0), received(at=1), started(at=2), received(at=9), started(at=10)],
        {celery("queue_wait_time_count", queue="fast"): 1, celery("queue_wait_time_sum", queue="fast"): 2},
    ),
    "queue wait time starts at the eta": Scenario(
        [sent(at=0), received(eta=IN_AN_HOUR), started(at=3602)],
        {celery("queue_wait_time_count", queue="fast"): 1, celery("queue_wait_time_sum", queue="fast"): 2},
    ),
    "queue wait time of a task sent after its eta": Scenario(
        [sent(at=3700), received(eta=IN_AN_HOUR), started(at=3705)],
        {celery("queue_wait_time_sum", queue="fast"): 5},
    ),
    **{
        f"a malformed eta is ignored: {eta!r}": Scenario(
            [sent(at=0), {**received(), "eta": eta}, started(at=4)],
            {celery("queue_wait_time_sum", queue="fast"): 4},
        )
        for eta in ("tomorrow", 5, ["2026-01-01"])
    },
    "queue wait time is not negative if clocks differ": Scenario(
        [sent(at=5), received(), started(at=3)], {celery("queue_wait_time_sum", queue="fast"): 0}
    ),
    "queue wait time is unknown without task-sent": Scenario(
        [received(), started()], {celery("queue_wait_time_count"): ABSENT}
    ),
    # Cardinality limits
    "task names beyond the limit are aggregated": Scenario(
        [received(str(n), name=f"task{n}") for n in range(5)],
        {
            events(W1, "received", "task2"): 1,
            events(W1, "received", "task3"): ABSENT,
            events(W1, "received", "other"): 2,
            celery("received_total", name="other"): 2,
        },
        {"max_task_names": 3},
    ),
    "series beyond the limit are aggregated by worker": Scenario(
        [
            *itertools.chain(*((sent(n, queue=f"queue{n}"), received(n, name=f"task{n}")) for n in "012345")),
            *(failed("5"), received("0", W2, name="task0")),
        ],
        {
            celery("received_total", W1, "queue2", "task2"): 1,
            celery("received_total", W1, "queue3", "task3"): ABSENT,
            celery("received_total", W1, "other", "other"): 3,
            celery("received_total", W2, "other", "other"): 1,
            celery("sent_total", "gen@web", "queue1", "add"): 1,
            celery("sent_total", "gen@web", "other", "other"): 4,
            celery("failed_total", W1, "other", "other", exception="ValueError"): 1,
            events(W1, "received", "other"): 4,
            events(W2, "received", "other"): 1,
        },
        {"max_series": 3},
    ),
    "custom task events": Scenario(
        [received(), task("progress", "1", W1, 3, percent=50)],
        {events(W1, "progress"): 1, celery("received_total"): 1},
    ),
    "at most a hundred event types": Scenario(
        [received(), *(task(f"step{n}", "1", W1, 3) for n in range(100))],
        {
            events(W1, "step98"): 1,
            events(W1, "step99"): ABSENT,
            sample("flower_events_total", worker=W1, type="other", task="add"): 1,
        },
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_samples_after_events(scenario: Scenario) -> None:
    samples = Cluster(*scenario.events, **scenario.options).samples()
    assert {sample: samples.get(sample) for sample in scenario.expected} == scenario.expected


# Purge


def series_of(cluster: Cluster, worker: str) -> list[str]:
    return [sample for sample in cluster.samples() if f'"{worker}"' in sample]


def busy(worker: str, uuid: str) -> list[Event]:
    more = [sent(f"{uuid}b"), received(f"{uuid}b", worker), started(f"{uuid}b", worker), failed(f"{uuid}b", worker)]
    return [heartbeat(worker, 1), received(uuid, worker), succeeded(uuid, worker), *more, received(f"{uuid}c", worker)]


def test_purging_workers_removes_only_their_series() -> None:
    cluster = Cluster(*busy(W1, "1"), *busy(W2, "2"), *busy(W3, "3"), sent("9"))
    before = cluster.samples()
    assert len(series_of(cluster, W1)) > 30
    assert cluster.forget(W1, W2) == {W1, W2}
    after = cluster.samples()
    assert after == {sample: number for sample, number in before.items() if W1 not in sample and W2 not in sample}
    assert after[events("gen@web", "sent")] == 4
    assert cluster.forget() == set()


def test_a_purged_worker_that_sends_events_starts_from_0() -> None:
    cluster = Cluster(*busy(W1, "1"))
    cluster.forget(W1)
    cluster.feed(heartbeat())
    assert cluster.samples()[is_online()] == 1
    assert events(W1, "received") not in cluster.samples()
    cluster.feed(received("9"))
    samples = cluster.samples()
    assert (samples[events(W1, "received")], samples[prefetched()]) == (1, 1)
    assert samples[celery("failed_total", exception="")] == 0


# Restored state and inspections


def restored(cluster: Cluster) -> Cluster:
    """The same after a restart with --persistent."""
    after = Cluster()
    limits = {"max_workers_in_memory": 1000, "max_tasks_in_memory": 1000}
    after.state = states.restored(cluster.state, **limits)
    after.recorder.begin(after.state)
    return after


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of this process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    "eta",
    [
        IN_AN_HOUR.isoformat(),
        IN_AN_HOUR.astimezone(timezone(timedelta(hours=9))).isoformat(),
        IN_AN_HOUR.astimezone(timezone(timedelta(hours=-4))).isoformat(),
        IN_AN_HOUR.strftime("%Y-%m-%dT%H:%M:%SZ"),
        # Workers read it as UTC
        IN_AN_HOUR.replace(tzinfo=None).isoformat(),
    ],
    ids=["UTC", "+09:00", "-04:00", "Z", "naive"],
)
def test_an_eta_does_not_depend_on_the_local_time_zone(eta: str) -> None:
    cluster = Cluster(online(), sent(at=0), {**received(), "eta": eta})
    assert cluster.samples()[prefetched()] == 0
    cluster.feed(started(at=3602))
    samples = cluster.samples()
    assert samples[celery("queue_wait_time_count", queue="fast")] == 1
    assert samples[celery("queue_wait_time_sum", queue="fast")] == 2


def test_prefetch_gauges_are_restored_with_persistent() -> None:
    cluster = restored(
        Cluster(
            heartbeat(),
            heartbeat(W2, ago=60),
            *(received(str(n)) for n in range(5)),
            started("0", at=5),
            *(started("1"), succeeded("1"), revoked("2")),
            received("7", eta=IN_AN_HOUR),
            received("8", W2),
            sent("9"),
        )
    )
    samples = cluster.samples()
    assert (samples[prefetched()], samples[prefetch_time()]) == (2, 4)
    assert (samples[is_online(W1)], samples[is_online(W2)], samples[prefetched(W2)]) == (1, 0, 0)
    assert is_online(PRODUCER) not in samples


def test_prefetch_gauges_are_not_negative_after_a_restart_with_persistent() -> None:
    cluster = restored(Cluster(heartbeat(), received("1"), received("2")))
    cluster.feed(started("1"), succeeded("1"), started("2"), failed("2", at=8))
    samples = cluster.samples()
    assert samples[prefetched()] == 0
    assert samples[runtime("sum")] == 0.5 + 5
    assert samples[events(W1, "started")] == 2


def test_queue_wait_time_is_observed_after_a_restart_with_persistent() -> None:
    cluster = restored(Cluster(heartbeat(), sent(at=0)))
    cluster.feed(received(at=1), started(at=5))
    # Celery's state does not keep the queue
    assert cluster.samples()[celery("queue_wait_time_sum")] == 5


def test_evicted_workers_are_not_restored_with_persistent() -> None:
    cluster = restored(Cluster(received(worker=W1), heartbeat(W2), max_workers=1))
    assert series_of(cluster, W1) == []
    assert cluster.samples()[is_online(W2)] == 1


def test_a_late_task_sent_event_creates_no_series_of_a_purged_worker() -> None:
    cluster = Cluster(heartbeat(), received(), started())
    cluster.forget(W1)
    cluster.feed(sent())
    assert series_of(cluster, W1) == []


def test_inspections_drop_tasks_whose_last_event_was_lost() -> None:
    cluster = Cluster(online(W1), online(W2), *(received(n) for n in "1234"), received("5", W2), started("4"))
    cluster.inspect(W1, "1", "unknown")
    cluster.inspect(W1, "1")
    samples = cluster.samples()
    assert (samples[prefetched(W1)], samples[prefetched(W2)], samples[prefetch_time(W1)]) == (1, 1, 0)


def test_an_inspection_before_the_last_event_arrives_does_not_lose_the_run_time() -> None:
    """The worker no longer has the task, but its event is still on its way."""
    cluster = Cluster(online(), received(at=1), started(at=2))
    cluster.inspect(W1)
    cluster.feed(failed(at=5))
    assert cluster.samples()[runtime("sum")] == 3


def test_only_consecutive_inspections_drop_a_task() -> None:
    cluster = Cluster(online(), received())
    for ids in ((), ("1",), ()):
        cluster.inspect(W1, *ids)
    assert cluster.samples()[prefetched()] == 1
    cluster.inspect(W1)
    assert cluster.samples()[prefetched()] == 0


def test_an_inspection_between_two_runs_does_not_change_their_queue_wait_times() -> None:
    """The worker does not have the task then, and the next run may be sent before the task-started event."""
    cluster = Cluster(sent(at=0), received(at=1))
    cluster.inspect(W1)
    cluster.inspect(W1)
    cluster.feed(sent(at=3, by=W1, retries=1), started(at=2), retried(at=3))
    cluster.feed(received(at=4, retries=1), started(at=7), succeeded(at=8))
    samples = cluster.samples()
    assert samples[celery("queue_wait_time_count", queue="fast")] == 2
    assert samples[celery("queue_wait_time_sum", queue="fast")] == 2 + 4


def test_dropping_the_tasks_of_a_worker_does_not_scan_other_tasks() -> None:
    """A scan of 100,000 tasks would take 55 ms for each worker-online event."""
    accessed = []

    class Watched(InFlightTask):
        def __getattribute__(self, name: str) -> Any:
            accessed.append(name)
            return super().__getattribute__(name)

    in_flight = InFlight(10)
    for uuid in "123":
        in_flight.put(uuid, Watched(W1, "add", seen=0.0))
    in_flight.put("4", InFlightTask(W2, "add", seen=0.0))
    accessed.clear()
    in_flight.drop(in_flight.of(W2))
    assert accessed == []
    assert [uuid for uuid in "1234" if in_flight.get(uuid)] == ["1", "2", "3"]


def test_inspections_keep_tasks_received_after_them() -> None:
    cluster = Cluster(online(), received("1"))
    cluster.now += 10
    inspected_at = cluster.now
    cluster.now += 1
    cluster.feed(received("2"))
    cluster.recorder.reconcile(W1, set(), inspected_at)
    cluster.inspect(W1, "2")
    assert cluster.samples()[prefetched()] == 1


# Queues, groups, names


def test_queue_gauges() -> None:
    queues = QueueFigures(
        lengths={"celery": 7, "empty": 0}, consumers={"celery": 2}, workers={"celery": 3}, processes={"celery": 12}
    )
    samples = Cluster().samples(queues)
    assert samples == {
        'celery_queue_length{queue_name="celery"}': 7,
        'celery_queue_length{queue_name="empty"}': 0,
        'celery_active_consumer_count{queue_name="celery"}': 2,
        'celery_active_worker_count{queue_name="celery"}': 3,
        'celery_active_process_count{queue_name="celery"}': 12,
    }


FAMILIES = {
    "flower": """
        flower_events_total flower_task_runtime_seconds flower_task_prefetch_time_seconds
        flower_worker_prefetched_tasks flower_worker_online flower_worker_number_of_currently_executing_tasks
    """,
    "celery": """
        celery_task_sent_total celery_task_received_total celery_task_started_total celery_task_succeeded_total
        celery_task_failed_total celery_task_rejected_total celery_task_revoked_total celery_task_retried_total
        celery_task_runtime celery_task_queue_wait_time celery_worker_up celery_worker_tasks_active
        celery_queue_length celery_active_consumer_count celery_active_worker_count celery_active_process_count
    """,
}


@pytest.mark.parametrize("groups", [(), ("flower",), ("celery",), ("self",), ("flower", "celery", "self")], ids=str)
def test_groups_select_families(groups: tuple[str, ...]) -> None:
    text = Cluster(*busy(W1, "1")).text(groups=groups)
    expected = " ".join(FAMILIES.get(group, "") for group in groups).split()
    assert re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) == expected


def test_task_names_overflow_counts_aggregated_events() -> None:
    cluster = Cluster(*(received(str(n), name=f"task{n}") for n in range(5)), started("4"), max_task_names=2)
    assert cluster.recorder.task_names_overflow == 4
    assert cluster.samples()[events(W1, "started", "other")] == 1


# Arbitrary events


workers = st.sampled_from([W1, W2])
uuids = st.sampled_from("1234")
times = st.floats(0, 100)
tasks_events = st.one_of(
    st.builds(received, uuids, workers, times, st.sampled_from(["add", "mul"]), st.sampled_from([None, IN_AN_HOUR])),
    st.builds(sent, uuids, at=times),
    *(st.builds(make, uuids, workers, times) for make in (started, succeeded, failed, retried, revoked, rejected)),
)
worker_events = st.one_of(
    st.builds(online, workers), st.builds(offline, workers), st.builds(heartbeat, workers, ago=st.sampled_from([0, 60]))
)


def waiting(events: Sequence[Event]) -> Counter[str]:
    """The number of prefetched tasks by worker, from a simple model of the events."""
    # Worker, whether it waits, whether it runs, and the number of earlier runs that have not ended
    at: dict[str, tuple[str, bool, bool, int]] = {}
    for event in events:
        uuid, worker = event.get("uuid", ""), event["hostname"]
        kind = event["type"].partition("-")[2]
        _, _, runs, earlier = at[uuid] if uuid in at and at[uuid][0] == worker else ("", False, False, 0)
        if kind == "received":
            at[uuid] = (worker, not event["eta"], False, min(earlier + runs, MAX_RUNS))
        elif kind == "started":
            at[uuid] = (worker, False, True, earlier)
        elif kind in ("online", "offline"):
            at = {uuid: task for uuid, task in at.items() if task[0] != worker}
        elif kind not in ("sent", "heartbeat") and uuid in at and at[uuid][0] == worker:
            if earlier:
                at[uuid] = (*at[uuid][:3], earlier - 1)
            else:
                del at[uuid]
    return Counter(worker for worker, waits, *_ in at.values() if waits)


@given(st.lists(st.one_of(tasks_events, tasks_events, worker_events), max_size=40), st.data())
def test_events_in_any_order_and_repeated_are_counted(events: list[Event], data: st.DataObject) -> None:
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=5)) if events else []
    events = data.draw(st.permutations([*events, *repeated])) if data.draw(st.booleans()) else events
    cluster = Cluster(*events)
    samples = cluster.samples()
    assert [sample for sample, number in samples.items() if not number >= 0] == []
    counted: Counter[str] = Counter()
    for sample, number in samples.items():
        if sample.startswith("flower_events_total"):
            counted[sample.partition('type="')[2].partition('"')[0]] += int(number)
        elif sample.startswith("celery_task_") and "_total{" in sample:
            counted["celery " + sample.removeprefix("celery_task_").partition("_")[0]] += int(number)
    fed = Counter(event["type"] for event in events if "uuid" in event)
    for kind in ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"):
        assert counted[f"task-{kind}"] == counted[f"celery {kind}"] == fed[f"task-{kind}"]
    expected = waiting(events)
    for worker in (W1, W2):
        found = sum(
            number
            for sample, number in samples.items()
            if sample.startswith(f'flower_worker_prefetched_tasks{{worker="{worker}"')
        )
        assert found == (expected[worker] if samples.get(is_online(worker)) else 0)


def test_task_received_of_the_next_run_may_come_before_task_retried() -> None:
    again = {**received(at=4), "retries": 1}
    cluster = Cluster(heartbeat(), received(at=1), started(at=2), again, retried(at=5))
    assert cluster.samples()[sample("flower_task_runtime_seconds_sum", worker=W1, task="add")] == 3
    assert cluster.samples()[prefetched()] == 1
    cluster.feed(started(at=6), failed(at=8))
    assert cluster.samples()[sample("flower_task_runtime_seconds_sum", worker=W1, task="add")] == 5
    assert cluster.samples()[prefetched()] == 0


# Contract with Celery


def test_attributes_of_celery_tasks() -> None:
    state = Cluster(sent(), received(eta=IN_AN_HOUR)).state
    task = state.tasks["1"]
    assert (task.name, task.queue, task.sent, task.eta) == ("add", "fast", BEGIN, IN_AN_HOUR.isoformat())
    assert state.Task("2").name is state.Task("2").sent is state.Task("2").eta is None
    assert not hasattr(state.Task("2"), "queue")


def test_attributes_of_celery_workers() -> None:
    state = Cluster(heartbeat(active=3), received(worker=W2), offline(W3)).state
    assert set(state.workers) == {W1, W2}
    assert (state.workers.get(W1).active, state.workers.get(W2).active, state.workers.get(W3)) == (3, None, None)


@pytest.mark.parametrize(("ago", "alive"), [(0, True), (3, True), (5, False)])
def test_celery_workers_are_alive_for_two_heartbeat_intervals(ago: float, alive: bool) -> None:
    assert Cluster(heartbeat(ago=ago)).state.workers.get(W1).alive is alive


def test_celery_workers_send_a_heartbeat_every_two_seconds() -> None:
    eventer = SimpleNamespace(on_enabled=set(), on_disabled=set(), enabled=False)
    assert Heart(None, eventer).interval == 2.0


def test_celery_names_clients_by_process() -> None:
    cluster = Cluster(sent(by=anon_nodename("web")))
    assert cluster.samples()[events("gen@web", "sent")] == 1


class CustomError(Exception):
    pass


@pytest.mark.parametrize(
    "make", [CustomError, lambda: CustomError("no"), lambda: CustomError("no", 1), lambda: CustomError("x" * 1000)]
)
def test_failures_are_counted_by_exception_class(make: Callable[[], Exception]) -> None:
    cluster = Cluster(received(), failed(exception=saferepr(make())))
    assert cluster.samples()[celery("failed_total", exception="CustomError")] == 1
