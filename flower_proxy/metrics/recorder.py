"""Metrics of tasks and workers, recorded from their events.

Gauges (prefetched tasks, online workers) are computed at each scrape from the current state, because gauges that are
incremented and decremented by events drift (mher/flower#1128, mher/flower#1364).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from math import isfinite
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601

from flower_proxy._bounded import BoundedDict
from flower_proxy._flower import EventsState, task_of
from flower_proxy.metrics.broker_poller import QueueFigures
from flower_proxy.metrics.exposition import Family
from flower_proxy.metrics.families import LabelLimit, TaskFamilies, celery_gauges, flower_gauges
from flower_proxy.metrics.in_flight import InFlight, InFlightTask

if TYPE_CHECKING:
    from celery.events.state import Task

_MAX_EXCEPTIONS = 100
_MAX_QUEUES = 1000
_MAX_PRODUCERS = 1000
_MAX_TYPES = 100
_MAX_RUNS = 10
# Clients without task_send_sent_event never send the missing event
_MAX_UNSENT = 5000

_UNKNOWN_EXCEPTION = "UnknownException"
_DEFAULT_QUEUE = "celery"
_END_TYPES = frozenset({"task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected"})

# Clients are named gen<process id>@<host>, and each process would add series (danihodovic/celery-exporter#116)
_CLIENT_PROCESS = re.compile(r"^gen\d+(?=@)")
_CLASS_NAME = re.compile(r"\w+(?=\()")


@dataclass(frozen=True, slots=True)
class _Start:
    """Start of a run.

    :ivar at: seconds since the epoch.
    :ivar due: the eta in seconds since the epoch; 0 if there is none.
    """

    worker: str
    name: str
    at: float
    due: float


class Recorder:
    """Records events as metrics; a `flower_proxy.events.listener.Listener`.

    `begin` must be called before the first event.

    :param buckets: upper bounds of run times in seconds, ascending.
    :param max_task_names: maximum number of task names in the metrics; the rest are aggregated as ``other``.
    :param max_series: maximum number of series per family; the tasks of further ones are aggregated by worker.
    :param max_in_flight: maximum number of tasks tracked at workers; the oldest are dropped first.
    :param clock: returns monotonic seconds.
    """

    _state: EventsState
    _queues_of: Callable[[str], Sequence[str]]

    def __init__(
        self,
        buckets: Sequence[float],
        *,
        max_task_names: int = 1000,
        max_series: int = 50_000,
        max_in_flight: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._task_names = LabelLimit(max_task_names, "other")
        self._exceptions = LabelLimit(_MAX_EXCEPTIONS, _UNKNOWN_EXCEPTION)
        self._queues = LabelLimit(_MAX_QUEUES, "other")
        self._producers = LabelLimit(_MAX_PRODUCERS, "gen@other")
        self._types = LabelLimit(_MAX_TYPES, "other")
        self._limits = {
            "hostname": self._producers,
            "name": self._task_names,
            "exception": self._exceptions,
            "queue_name": self._queues,
            "type": self._types,
        }
        self._tasks = TaskFamilies(buckets, max_series)
        self._workers: set[str] = set()
        self._in_flight = InFlight(max_in_flight)
        # By task and retries: runs sent but not started, and started but not sent; either event may come first
        self._sent: BoundedDict[tuple[str, int], float] = BoundedDict(max_in_flight)
        self._unsent: BoundedDict[tuple[str, int], _Start] = BoundedDict(_MAX_UNSENT)

    @property
    def task_names_overflow(self) -> int:
        """The number of events whose task name was aggregated under ``other``."""
        return self._task_names.overflow

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Record events, which the state must have processed, and no later ones."""
        for event in batch:
            if event["type"].startswith("task-"):
                self._on_task(event, task_of(self._state, event["uuid"]))
            else:
                self._on_worker(event)

    def _on_task(self, event: Mapping[str, Any], task: Task) -> None:
        # The state merges late events into the task, so the type is read from the event
        kind, worker = event["type"], event["hostname"]
        known = self._in_flight.get(event["uuid"])
        # Only task-sent and task-received have the name, and the state may have evicted the task since
        name = self._task_names(event.get("name") or task.name or (known.name if known else ""))
        queue = self._queue(worker, task)
        if kind == "task-sent":
            producer = self._producers(_CLIENT_PROCESS.sub("gen", worker))
            self._tasks.events.inc(producer, kind, name)
            self._tasks.celery[kind].inc(name, producer, queue)
            self._on_sent(event, task)
            return
        self._add_worker(worker)
        self._tasks.events.inc(worker, self._types(kind), name)
        series = (name, worker, queue)
        self._tasks.create(series)
        if kind == "task-failed":
            self._tasks.celery[kind].inc(*series, self._exceptions(_exception_class(event.get("exception"))))
        elif kind in self._tasks.celery:
            self._tasks.celery[kind].inc(*series)
        # A task that was redelivered to another worker no longer belongs to this one
        self._track(event, name, worker, queue, known if known and known.worker == worker else None, task)

    def _on_worker(self, event: Mapping[str, Any]) -> None:
        worker = event["hostname"]
        # Custom events need not come from a worker, and the state ignores worker-offline of an unknown one
        if worker in self._state.workers:
            self._add_worker(worker)
        # A new worker has no tasks, and the broker redelivers those of a stopped one
        if event["type"] in ("worker-online", "worker-offline"):
            self._in_flight.drop(self._in_flight.of(worker))

    def _add_worker(self, worker: str) -> None:
        if worker not in self._workers:
            self._workers.add(worker)
            # Many new names must not use memory until the next scrape
            if len(self._workers) > 2 * self._state.max_workers_in_memory:
                self.forget_evicted()

    def forget_evicted(self) -> set[str]:
        """Forget the workers that the state has evicted, until their next event; clients are kept.

        :returns: the names of the forgotten workers.
        """
        evicted = self._workers.difference(self._state.workers)
        if evicted:
            self._workers -= evicted
            for worker in evicted:
                self._in_flight.drop(self._in_flight.of(worker))
            self._tasks.remove_workers(evicted)
            for label, limit in self._limits.items():
                if limit.is_full:
                    limit.release(self._tasks.values(label))
        return evicted

    def _track(
        self, event: Mapping[str, Any], name: str, worker: str, queue: str, known: InFlightTask | None, task: Task
    ) -> None:
        uuid, kind, timestamp = event["uuid"], event["type"], event["timestamp"]
        if kind == "task-received":
            # A redelivery repeats the run
            to_start = known.to_start[-_MAX_RUNS:] if known else ()
            received = InFlightTask(
                worker,
                name,
                self._clock(),
                timestamp,
                eta=event.get("eta"),
                retries=_retries(event),
                unstarted=tuple(run for run in to_start if run[0] < _retries(event)),
                unended=known.running_since[-_MAX_RUNS:] if known else (),
            )
            self._in_flight.put(uuid, received)
        elif kind == "task-started":
            if known is None:
                run = self._started_run(uuid, int(task.retries or 0))
                known = InFlightTask(worker, name, self._clock(), eta=task.eta, retries=run)
                self._in_flight.put(uuid, known)
            if known.unstarted:
                (retries, eta), *later = known.unstarted
                known.unstarted = tuple(later)
                known.unended = (*known.unended, timestamp)[-_MAX_RUNS:]
            else:
                retries, eta, known.started = known.retries, known.eta, timestamp
            self._on_start((uuid, retries), _Start(worker, name, timestamp, _timestamp(eta)), queue)
        elif kind in _END_TYPES:
            started_at = known.running_since[0] if known and known.running_since else None
            if known and known.unended:
                known.unended = known.unended[1:]
            elif known:
                self._in_flight.drop([uuid])
            runtime = _measured(event.get("runtime"))
            if kind == "task-succeeded" and runtime is not None:
                self._tasks.runtime.observe(runtime, worker, name)
                self._tasks.celery_runtime.observe(runtime, name, worker, queue)
            elif kind in ("task-failed", "task-retried") and started_at is not None:
                self._tasks.runtime.observe(max(0.0, timestamp - started_at), worker, name)

    def _started_run(self, uuid: str, retries: int) -> int:
        """Return the run that a task-started event belongs to; the next run may have been sent before that event."""
        return next((run for run in range(max(0, retries - _MAX_RUNS), retries) if (uuid, run) in self._sent), retries)

    def _on_sent(self, event: Mapping[str, Any], task: Task) -> None:
        run = event["uuid"], _retries(event)
        start = self._unsent.pop(run, None)
        if start is None:
            self._sent.put(run, event["timestamp"])
        elif start.worker in self._workers:
            self._observe_wait(event["timestamp"], start, self._queue(start.worker, task))

    def _on_start(self, run: tuple[str, int], start: _Start, queue: str) -> None:
        sent = self._sent.pop(run, None)
        if sent is None:
            self._unsent.put(run, start)
        else:
            self._observe_wait(sent, start, queue)

    def _observe_wait(self, sent: float, start: _Start, queue: str) -> None:
        self._tasks.celery_wait.observe(max(0.0, start.at - max(sent, start.due)), start.name, start.worker, queue)

    def _queue(self, worker: str, task: Task) -> str:
        # Only task-sent events have the queue
        queue = getattr(task, "queue", None)
        if not isinstance(queue, str):
            queues = self._queues_of(worker)
            queue = queues[0] if len(queues) == 1 else _DEFAULT_QUEUE
        return self._queues(queue)

    # Restored state, inspections

    def begin(self, state: EventsState, queues_of: Callable[[str], Sequence[str]] = lambda worker: ()) -> None:
        """Start with the workers and tasks of a state.

        :param state: read at each event and each scrape.
        :param queues_of: returns the known queues of a worker.
        """
        self._state, self._queues_of = state, queues_of
        self.restore(state.workers, [task for _, task in state.itertasks()])

    def restore(self, workers: Iterable[str], tasks: Iterable[Task]) -> None:
        """Continue with workers and tasks that ``--persistent`` restores after a restart.

        :param workers: names of workers in the state.
        :param tasks: tasks in the state.
        """
        self._workers.update(workers)
        for task in tasks:
            uuid = task.uuid
            if task.sent and not task.started:
                self._sent.put((uuid, task.retries or 0), task.sent)
            if task.state in ("RECEIVED", "STARTED") and task.worker is not None:
                restored = InFlightTask(
                    task.worker.hostname,
                    self._task_names(task.name or ""),
                    self._clock(),
                    task.received,
                    eta=task.eta,
                    retries=task.retries or 0,
                    started=task.started if task.state == "STARTED" else None,
                )
                self._in_flight.put(uuid, restored)
                # Workers that the state has evicted are added too, so that the first scrape forgets their tasks
                self._workers.add(restored.worker)
                self._tasks.create((restored.name, restored.worker, self._queue(restored.worker, task)))

    def reconcile(self, worker: str, ids: Collection[str], inspected_at: float) -> None:
        """Drop the tasks that a worker no longer has, whose last event was lost.

        :param ids: the ids of its active, reserved and scheduled tasks.
        :param inspected_at: the time of the inspection by `clock`; newer tasks are kept.
        """
        tasks = self._in_flight.of(worker)
        self._in_flight.drop(uuid for uuid, task in tasks.items() if task.seen < inspected_at and uuid not in ids)

    # Scrapes

    def families(self, queues: QueueFigures | None, *, groups: Collection[str]) -> list[Family]:
        """Return the current families.

        :param queues: None if unknown.
        :param groups: the groups to include: ``flower``, ``celery``.
        """
        self.forget_evicted()
        active = self._active()
        families: list[Family] = []
        if "flower" in groups:
            families += [*self._tasks.of_flower, *flower_gauges(active, self._in_flight, self._tasks.pairs())]
        if "celery" in groups:
            families += [*self._tasks.of_celery, *celery_gauges(active, queues)]
        return families

    def _active(self) -> dict[str, float | None]:
        """Return the number of running tasks by worker; None for an offline worker."""
        active: dict[str, float | None] = {}
        for name, worker in sorted(self._state.workers.items()):
            active[name] = (_measured(worker.active) or 0) if worker.alive else None
        return active


def _retries(event: Mapping[str, Any]) -> int:
    """Return the number of retries before this run."""
    return int(event.get("retries") or 0)


def _exception_class(representation: object) -> str:
    match = _CLASS_NAME.match(str(representation))
    return match[0] if match else _UNKNOWN_EXCEPTION


def _measured(value: Any) -> float | None:
    """Return a number from an event, at least 0; None if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, number) if isfinite(number) else None


def _timestamp(eta: str | None) -> float:
    """Return an eta in seconds since the epoch; 0.0 if it is missing or malformed.

    Like workers, it reads an eta without a time zone as UTC.
    """
    try:
        due = maybe_iso8601(eta)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    if due is None:
        return 0.0
    return float((due if due.tzinfo else due.replace(tzinfo=timezone.utc)).timestamp())
