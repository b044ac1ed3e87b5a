"""From the events of Celery to metrics: what is counted, and under which names.

``flower_*`` are the families of stock Flower, ``celery_*`` those of celery-exporter, so that dashboards made for either
go on working. What happened is counted as it is told; what there is (tasks that wait, workers that live) is never
counted up and down but taken from what is known at the moment of a scrape, and so cannot drift (P3, P17).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from flower_proxy.metrics.exposition import Counter, Family, Gauge, Histogram
from flower_proxy.metrics.in_flight import Held, InFlight, Newest

if TYPE_CHECKING:
    from celery.events.state import Task
    from flower.events import EventsState

    from flower_proxy.metrics.broker_poller import QueueFigures

_MOST_EXCEPTIONS = 100
_MOST_QUEUES = 1000
_MOST_PRODUCERS = 1000
_MOST_TYPES = 100
# Runs whose sending is not known yet; where producers do not tell of it at all, it never will be
_MOST_UNSENT = 5000

_UNKNOWN_EXCEPTION = "UnknownException"
_DEFAULT_QUEUE = "celery"
_ENDS = frozenset({"task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected"})

# A producer calls itself gen<process id>@<host>: of each process there would be a series for ever (P16)
_PROCESS = re.compile(r"^gen\d+(?=@)")
_CALLED = re.compile(r"\w+(?=\()")

_WAITS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds

_CELERY_COUNTERS = {
    "task-sent": ("celery_task_sent", "Tasks that were published, where task_send_sent_event is on."),
    "task-received": ("celery_task_received", "Tasks that a worker took from the broker."),
    "task-started": ("celery_task_started", "Tasks that a worker began to run."),
    "task-succeeded": ("celery_task_succeeded", "Tasks that ended well."),
    "task-failed": ("celery_task_failed", "Tasks that ended with an exception."),
    "task-rejected": ("celery_task_rejected", "Tasks that a worker gave back to the broker, or refused."),
    "task-revoked": ("celery_task_revoked", "Tasks that were revoked, or that expired."),
    "task-retried": ("celery_task_retried", "Runs that failed and are to be repeated."),
}


def is_producer(name: str) -> bool:
    """Tell whether this is what a process that sends tasks calls itself, not a worker."""
    return _PROCESS.match(name) is not None


class _Names:
    """Label values: the first so many are kept apart, all others are one.

    :ivar others: how often a name was asked for that is not kept apart.
    """

    def __init__(self, most: int, other: str) -> None:
        self._most, self._other = most, other
        self._kept: set[str] = set()
        self.others = 0

    def __call__(self, name: str) -> str:
        if name not in self._kept:
            if len(self._kept) >= self._most:
                self.others += 1
                return self._other
            self._kept.add(name)
        return name


@dataclass(frozen=True, slots=True)
class _Start:
    """When a run was started, and when it was due if that was later than its sending; 0 if it was due at once."""

    worker: str
    name: str
    at: float
    due: float


class Recorder:
    """Stands where Flower's state of events has its metrics (``state.metrics = recorder``) and is told of each event.

    :param buckets: of run times, upper bounds in seconds, ascending.
    :param most_task_names: beyond so many names of tasks, all others are counted as ``other``.
    :param most_in_flight: so many tasks are known to be at a worker; beyond them the oldest are forgotten.
    :param queues_of: the queues that a worker consumes from, as far as is known.
    :param clock: the time in seconds since the epoch.
    """

    def __init__(
        self,
        buckets: Sequence[float],
        *,
        most_task_names: int = 1000,
        most_in_flight: int = 100_000,
        queues_of: Callable[[str], Sequence[str]] = lambda worker: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queues_of = queues_of
        self._clock = clock

        self._task_names = _Names(most_task_names, "other")
        self._exceptions = _Names(_MOST_EXCEPTIONS, _UNKNOWN_EXCEPTION)
        self._queues = _Names(_MOST_QUEUES, "other")
        self._producers = _Names(_MOST_PRODUCERS, "gen@other")
        self._types = _Names(_MOST_TYPES, "other")

        self._workers: set[str] = set()
        self._in_flight = InFlight(most_in_flight)
        # By task and retries, when a run was sent, or started, where the other is not known yet: either may come first
        self._sent: Newest[tuple[str, int], float] = Newest(most_in_flight)
        self._unsent: Newest[tuple[str, int], _Start] = Newest(_MOST_UNSENT)
        # Task name, worker and queue that were seen together, in the order that they were
        self._known: dict[tuple[str, str, str], None] = {}

        self._events = Counter("flower_events", "Events of tasks.", ("worker", "type", "task"))
        self._runtime = Histogram(
            "flower_task_runtime_seconds",
            "How long tasks ran that succeeded, failed or are to be run again.",
            ("worker", "task"),
            buckets=buckets,
        )
        labels = ("name", "hostname", "queue_name")
        self._celery = {
            kind: Counter(name, help_, (*labels, "exception") if kind == "task-failed" else labels)
            for kind, (name, help_) in _CELERY_COUNTERS.items()
        }
        self._celery_runtime = Histogram(
            "celery_task_runtime", "How many seconds tasks ran that succeeded.", labels, buckets=buckets
        )
        self._celery_wait = Histogram(
            "celery_task_queue_wait_time",
            "Seconds from when a task was sent, or from its eta, until it was started.",
            labels,
            buckets=_WAITS,
        )
        self._of_flower: list[Counter | Histogram] = [self._events, self._runtime]
        self._of_celery: list[Counter | Histogram] = [*self._celery.values(), self._celery_runtime, self._celery_wait]

    @property
    def other_task_names(self) -> int:
        """How many events were counted under the task name ``other``."""
        return self._task_names.others

    # What Flower's state of events calls after it has taken an event

    def observe_task(self, worker: str, event: Mapping[str, Any], task: Task) -> None:
        """Count an event of a task.

        :param task: what the state knows of it. Where events come late it has merged them; the event itself counts.
        """
        held = self._in_flight.get(event["uuid"])
        # A name is told only when a task is sent and received, and the state may have forgotten the task since
        name = self._task_names(event.get("name") or task.name or (held.name if held else ""))
        queue = self._queue(worker, task)
        if event["type"] == "task-sent":
            producer = self._producers(_PROCESS.sub("gen", worker))
            self._events.inc(producer, "task-sent", name)
            self._celery["task-sent"].inc(name, producer, queue)
            self._note_sent(event, task)
        else:
            self._workers.add(worker)
            self._events.inc(worker, self._types(event["type"]), name)
            self._count(event, name, worker, queue)
            # What another worker has is another's to start and to end
            self._follow(event, name, worker, queue, held if held and held.worker == worker else None, task)

    def observe_worker(self, worker: str, event: Mapping[str, Any]) -> None:
        """Note an event of a worker."""
        self._workers.add(worker)
        # One that comes has nothing yet; of one that goes, what it had is delivered again
        if event["type"] in ("worker-online", "worker-offline"):
            self._in_flight.drop_where(lambda uuid, held: held.worker == worker)

    def remove_workers(self, names: Collection[str]) -> int:
        """Forget workers until they are heard of again. Who sends tasks is not forgotten (P16).

        :returns: how many of them were known.
        """
        gone = self._workers.intersection(names)
        if gone:
            self._workers -= gone
            self._in_flight.drop_where(lambda uuid, held: held.worker in gone)
            self._known = {known: None for known in self._known if known[1] not in gone}
            for family in self._of_flower:
                family.remove("worker", gone)
            for family in self._of_celery:
                family.remove("hostname", gone)
        return len(gone)

    def _count(self, event: Mapping[str, Any], name: str, worker: str, queue: str) -> None:
        key = (name, worker, queue)
        self._meet(key)
        if event["type"] == "task-failed":
            exception = self._exceptions(_exception_class(event.get("exception")))
            self._celery["task-failed"].inc(*key, exception)
        elif event["type"] in self._celery:
            self._celery[event["type"]].inc(*key)

    def _meet(self, key: tuple[str, str, str]) -> None:
        if key not in self._known:
            self._known[key] = None
            # All counters at once, with 0: Prometheus sees no increase in one that appears with 1
            for kind, counter in self._celery.items():
                counter.touch(*key, *([""] if kind == "task-failed" else []))

    def _follow(
        self, event: Mapping[str, Any], name: str, worker: str, queue: str, held: Held | None, task: Task
    ) -> None:
        uuid, kind, timestamp = event["uuid"], event["type"], event["timestamp"]
        if kind == "task-received":
            held = Held(
                worker,
                name,
                self._clock(),
                timestamp,
                eta=event.get("eta"),
                retries=_retries(event),
                unended=held.begun if held else (),
            )
            self._in_flight.put(uuid, held)
        elif kind == "task-started":
            if held is None:
                held = Held(worker, name, self._clock(), eta=task.eta, retries=task.retries or 0)
                self._in_flight.put(uuid, held)
            held.started = timestamp
            self._note_start((uuid, held.retries), _Start(worker, name, timestamp, _timestamp(held.eta)), queue)
        elif kind in _ENDS:
            begin = held.begun[0] if held and held.begun else None
            if held and held.unended:
                held.unended = held.unended[1:]
            elif held:
                del self._in_flight[uuid]
            runtime = _measured(event.get("runtime"))
            if kind == "task-succeeded" and runtime is not None:
                self._runtime.observe(runtime, worker, name)
                self._celery_runtime.observe(runtime, name, worker, queue)
            elif kind in ("task-failed", "task-retried") and begin is not None:
                self._runtime.observe(max(0.0, timestamp - begin), worker, name)

    def _note_sent(self, event: Mapping[str, Any], task: Task) -> None:
        run = event["uuid"], _retries(event)
        start = self._unsent.pop(run, None)
        if start is None:
            self._sent.put(run, event["timestamp"])
        elif start.worker in self._workers:
            self._observe_wait(event["timestamp"], start, self._queue(start.worker, task))

    def _note_start(self, run: tuple[str, int], start: _Start, queue: str) -> None:
        sent = self._sent.pop(run, None)
        if sent is None:
            self._unsent.put(run, start)
        else:
            self._observe_wait(sent, start, queue)

    def _observe_wait(self, sent: float, start: _Start, queue: str) -> None:
        self._celery_wait.observe(max(0.0, start.at - max(sent, start.due)), start.name, start.worker, queue)

    def _queue(self, worker: str, task: Task) -> str:
        # Only the event of its sending tells
        queue = getattr(task, "queue", None)
        if not isinstance(queue, str):
            queues = self._queues_of(worker)
            queue = queues[0] if len(queues) == 1 else _DEFAULT_QUEUE
        return self._queues(queue)

    # What is known otherwise than by events

    def rebuild(self, state: EventsState) -> None:
        """Begin with the workers and tasks of a state that was kept over a restart (P17)."""
        self._workers.update(state.workers)
        for uuid, task in state.itertasks():
            if task.sent and not task.started:
                self._sent.put((uuid, task.retries or 0), task.sent)
            if task.state in ("RECEIVED", "STARTED") and task.worker is not None:
                held = Held(
                    task.worker.hostname,
                    self._task_names(task.name or ""),
                    self._clock(),
                    task.received,
                    eta=task.eta,
                    retries=task.retries or 0,
                    started=task.started if task.state == "STARTED" else None,
                )
                self._in_flight.put(uuid, held)
                self._meet((held.name, held.worker, self._queue(held.worker, task)))

    def reconcile(self, worker: str, ids: Collection[str], asked_at: float) -> None:
        """Drop what a worker does not have although no event has told so (P30).

        :param ids: the tasks that it says it has: running, reserved and scheduled.
        :param asked_at: when it was asked, by `clock`; what was heard of since then stays.
        """
        self._in_flight.drop_where(
            lambda uuid, held: held.worker == worker and held.seen < asked_at and uuid not in ids
        )

    # What is scraped

    def families(self, state: EventsState, queues: QueueFigures | None, *, groups: Collection[str]) -> list[Family]:
        """Return the families as they are at this moment.

        :param state: tells which workers are alive.
        :param queues: None while nothing is known of them.
        :param groups: which of ``flower`` and ``celery``.
        """
        active = self._active(state)
        families: list[Family] = []
        if "flower" in groups:
            families += [*self._of_flower, *self._flower_gauges(active)]
        if "celery" in groups:
            families += [*self._of_celery, *_celery_gauges(active, queues)]
        return families

    def _active(self, state: EventsState) -> dict[str, float | None]:
        """Return how many tasks each worker says it runs; None for one that is dead, whatever it said last (P3)."""
        active: dict[str, float | None] = {}
        for name in sorted(self._workers):
            worker = state.workers.get(name)
            active[name] = (_measured(worker.active) or 0) if worker is not None and worker.alive else None
        return active

    def _flower_gauges(self, active: Mapping[str, float | None]) -> list[Family]:
        time_waited = Gauge(
            "flower_task_prefetch_time_seconds",
            "How long the task that was started last, and still runs, had waited at its worker; 0 if there is none.",
            ("worker", "task"),
        )
        prefetched = Gauge(
            "flower_worker_prefetched_tasks",
            "Tasks that wait at a worker for their turn, but not for their eta.",
            ("worker", "task"),
        )
        online = Gauge("flower_worker_online", "1 if the worker is heard of in time, else 0.", ("worker",))
        executing = Gauge(
            "flower_worker_number_of_currently_executing_tasks", "Tasks that a worker runs now.", ("worker",)
        )
        alive = {worker for worker, number in active.items() if number is not None}
        waiting, last_started = self._in_flight.waiting(alive), self._in_flight.last_started(alive)
        for pair in dict.fromkeys((worker, name) for name, worker, _ in self._known):
            prefetched.set(waiting.get(pair, 0), *pair)
            time_waited.set(last_started[pair].waited if pair in last_started else 0, *pair)
        for worker, number in active.items():
            online.set(0 if number is None else 1, worker)
            executing.set(number or 0, worker)
        return [time_waited, prefetched, online, executing]


def _celery_gauges(active: Mapping[str, float | None], queues: QueueFigures | None) -> list[Family]:
    up = Gauge("celery_worker_up", "1 if the worker is heard of in time, else 0.", ("hostname",))
    running = Gauge("celery_worker_tasks_active", "Tasks that a worker runs now.", ("hostname",))
    for worker, number in active.items():
        up.set(0 if number is None else 1, worker)
        running.set(number or 0, worker)
    length = Gauge("celery_queue_length", "Messages that wait in a queue.", ("queue_name",))
    consumers = Gauge(
        "celery_active_consumer_count",
        "Consumers of a queue; the workers that consume from it, where the broker does not count.",
        ("queue_name",),
    )
    workers = Gauge("celery_active_worker_count", "Workers that consume from a queue.", ("queue_name",))
    processes = Gauge("celery_active_process_count", "Processes of the workers of a queue.", ("queue_name",))
    if queues is not None:
        figures = (queues.lengths, queues.consumers, queues.workers, queues.processes)
        for gauge, numbers in zip((length, consumers, workers, processes), figures, strict=True):
            for queue, number in numbers.items():
                gauge.set(number, queue)
    return [up, running, length, consumers, workers, processes]


def _retries(event: Mapping[str, Any]) -> int:
    """Return which run of its task a message is about, counted from 0."""
    return int(event.get("retries") or 0)


def _exception_class(representation: object) -> str:
    match = _CALLED.match(str(representation))
    return match[0] if match else _UNKNOWN_EXCEPTION


def _measured(value: Any) -> float | None:
    """Return the number that an event gives, not below 0; None if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, number) if isfinite(number) else None


def _timestamp(eta: str | None) -> float:
    """Return the seconds since the epoch; 0.0 for none."""
    try:
        return datetime.fromisoformat(eta).timestamp() if eta else 0.0
    except ValueError:
        return 0.0
