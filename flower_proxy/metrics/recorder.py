"""Metrics of tasks and workers, recorded from their events.

Gauges (prefetched tasks, online workers) are computed at each scrape from the current state, because gauges that are
incremented and decremented by events drift (mher/flower#1128, mher/flower#1364).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from flower_proxy._flower import EventsState, task_of
from flower_proxy.metrics.broker_poller import QueueFigures
from flower_proxy.metrics.exposition import Family
from flower_proxy.metrics.families import EventSeries, LabelLimit, TaskFamilies, celery_gauges, flower_gauges
from flower_proxy.metrics.follower import Follower
from flower_proxy.metrics.in_flight import InFlight, InFlightTask
from flower_proxy.metrics.queue_waits import MAX_RUNS, QueueWaits, Start

if TYPE_CHECKING:
    from celery.events.state import Task

_MAX_EXCEPTIONS = 100
_MAX_QUEUES = 1000
_MAX_PRODUCERS = 1000
_MAX_TYPES = 100
# Combinations of type, worker, name and queue whose series are looked up at once
_MAX_CACHED = 20_000

_UNKNOWN_EXCEPTION = "UnknownException"
_DEFAULT_QUEUE = "celery"
_END_TYPES = frozenset({"task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected"})

# Clients are named gen<process id>@<host>, and each process would add series (danihodovic/celery-exporter#116)
_CLIENT_PROCESS = re.compile(r"^gen\d+(?=@)")
_CLASS_NAME = re.compile(r"\w+(?=\()")


class Recorder:
    """Records events as metrics; a `flower_proxy.events.listener.Listener`.

    `begin` must be called before the first event.

    :param buckets: upper bounds of run times in seconds, ascending.
    :param max_task_names: maximum number of task names in the metrics; the rest are aggregated as ``other``.
    :param max_series: maximum number of series per family; the tasks of further ones are aggregated by worker.
    :param max_in_flight: maximum number of tasks tracked at workers; the oldest are dropped first.
    :param clock: returns monotonic seconds.
    :param follower: called after each count; None for none.
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
        follower: Follower | None = None,
    ) -> None:
        self._clock, self._follower = clock, follower
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
        self._waits = QueueWaits(max_in_flight)
        # By type, worker, name and queue of the events, while all of these are label values
        self._series: dict[tuple[str, str, str, str], EventSeries] = {}

    @property
    def task_names_overflow(self) -> int:
        """The number of events whose task name was aggregated under ``other``."""
        return self._task_names.overflow

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Record an event, which the state must have processed, and no later one."""
        if event["type"].startswith("task-"):
            self._on_task(event, task_of(self._state, event["uuid"]))
        else:
            self._on_worker(event)

    def _on_task(self, event: Mapping[str, Any], task: Task) -> None:
        # The state merges late events into the task, so the type is read from the event
        kind, worker, uuid = event["type"], event["hostname"], event["uuid"]
        known = self._in_flight.get(uuid)
        # Only task-sent and task-received have the name, and the state may have evicted the task since
        name = event.get("name") or task.name or (known.name if known else "")
        key = kind, worker, name, self._queue(worker, task)
        series = self._series.get(key) or self._find(*key)
        series.events.value += 1
        if series.celery is not None:
            series.celery.value += 1
        if self._follower is not None:
            self._follower.count(kind, series.name, worker, series.queue)
        if kind == "task-sent":
            self._on_sent(event, task)
            return
        if kind == "task-failed":
            exception = self._exceptions(_exception_class(event.get("exception")))
            self._tasks.celery[kind].inc(series.name, worker, series.queue, exception)
        # A task that was redelivered to another worker no longer belongs to this one
        self._track(event, series, known if known and known.worker == worker else None, task)

    def _find(self, kind: str, worker: str, name: str, queue: str) -> EventSeries:
        """Return the series of an event."""
        label, queue_label = self._task_names(name), self._queues(queue)
        if kind == "task-sent":
            producer = self._producers(_CLIENT_PROCESS.sub("gen", worker))
            return self._tasks.event_series(kind, kind, label, producer, queue_label)
        self._add_worker(worker)
        self._tasks.create((label, worker, queue_label))
        series = self._tasks.event_series(kind, self._types(kind), label, worker, queue_label)
        # Aggregated events are counted anew each time
        if worker in self._workers and kind in self._types and name in self._task_names and queue in self._queues:
            if len(self._series) >= _MAX_CACHED:
                self._series.clear()
            self._series[kind, worker, name, queue] = series
        return series

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
            self._series.clear()
            for label, limit in self._limits.items():
                if limit.is_full:
                    limit.release(self._tasks.values(label))
        return evicted

    def _track(self, event: Mapping[str, Any], series: EventSeries, known: InFlightTask | None, task: Task) -> None:
        kind = event["type"]
        if kind == "task-received":
            self._on_received(event, series, known)
        elif kind == "task-started":
            self._on_started(event, series, known, task)
        elif kind in _END_TYPES:
            self._on_end(event, series, known)

    def _on_received(self, event: Mapping[str, Any], series: EventSeries, known: InFlightTask | None) -> None:
        received = InFlightTask(
            series.worker, series.name, self._clock(), event["timestamp"], event.get("eta"), _retries(event)
        )
        if known:
            # A redelivery repeats the run
            to_start = known.to_start[-MAX_RUNS:]
            received.unstarted = tuple(run for run in to_start if run[0] < received.retries)
            received.unended = known.running_since[-MAX_RUNS:]
        self._in_flight.put(event["uuid"], received)

    def _on_started(
        self, event: Mapping[str, Any], series: EventSeries, known: InFlightTask | None, task: Task
    ) -> None:
        uuid, timestamp = event["uuid"], event["timestamp"]
        if known is None:
            run = self._waits.started_run(uuid, int(task.retries or 0))
            known = InFlightTask(series.worker, series.name, self._clock(), eta=task.eta, retries=run)
            self._in_flight.put(uuid, known)
        if known.unstarted:
            (retries, eta), *later = known.unstarted
            known.unstarted = tuple(later)
            known.unended = (*known.unended, timestamp)[-MAX_RUNS:]
        else:
            retries, eta, known.started = known.retries, known.eta, timestamp
        start = Start(series.worker, series.name, timestamp, eta)
        sent = self._waits.on_start((uuid, retries), start)
        if sent is not None:
            self._observe_wait(sent, start, series.queue)

    def _on_end(self, event: Mapping[str, Any], series: EventSeries, known: InFlightTask | None) -> None:
        kind = event["type"]
        started_at = known.running_since[0] if known and known.running_since else None
        if known and known.unended:
            known.unended = known.unended[1:]
        elif known:
            self._in_flight.drop([event["uuid"]])
        runtime = None
        if kind == "task-succeeded":
            runtime = _measured(event.get("runtime"))
            if runtime is not None:
                self._tasks.observe_runtime(runtime, series)
        elif kind in ("task-failed", "task-retried") and started_at is not None:
            runtime = max(0.0, event["timestamp"] - started_at)
            self._tasks.runtime.observe(runtime, series.worker, series.name)
        if runtime is not None and self._follower is not None:
            self._follower.observe_runtime(runtime, series.name, series.worker, series.queue)

    def _on_sent(self, event: Mapping[str, Any], task: Task) -> None:
        start = self._waits.on_sent((event["uuid"], _retries(event)), event["timestamp"])
        if start is not None and start.worker in self._workers:
            self._observe_wait(event["timestamp"], start, self._queues(self._queue(start.worker, task)))

    def _observe_wait(self, sent: float, start: Start, queue: str) -> None:
        wait = start.wait(sent)
        self._tasks.celery_wait.observe(wait, start.name, start.worker, queue)
        if self._follower is not None:
            self._follower.observe_wait(wait, start.name, start.worker, queue)

    def _queue(self, worker: str, task: Task) -> str:
        # Only task-sent events have the queue
        queue = getattr(task, "queue", None)
        if isinstance(queue, str):
            return queue
        queues = self._queues_of(worker)
        return queues[0] if len(queues) == 1 else _DEFAULT_QUEUE

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
                self._waits.on_sent((uuid, task.retries or 0), task.sent)
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
                self._tasks.create((restored.name, restored.worker, self._queues(self._queue(restored.worker, task))))

    def reconcile(self, worker: str, ids: Collection[str], inspected_at: float) -> None:
        """Drop the tasks that a worker no longer has, whose last event was lost.

        A task that has just ended is kept until the next inspection, since its last event may still be on its way.

        :param ids: the ids of its active, reserved and scheduled tasks.
        :param inspected_at: the time of the inspection by `clock`; newer tasks are kept.
        """
        for uuid, task in self._in_flight.of(worker).items():
            if uuid in ids:
                task.unlisted = None
            elif task.unlisted is None:
                task.unlisted = self._clock() if task.seen < inspected_at else None
            elif task.unlisted < inspected_at:
                self._in_flight.drop([uuid])

    # Scrapes

    def families(self, queues: QueueFigures | None, *, groups: Collection[str]) -> list[Family]:
        """Return the current families.

        :param queues: None if unknown.
        :param groups: the groups to include: ``flower``, ``celery``.
        """
        self.forget_evicted()
        active = self.active()
        families: list[Family] = []
        if "flower" in groups:
            families += [*self._tasks.of_flower, *flower_gauges(active, self._in_flight, self._tasks.pairs())]
        if "celery" in groups:
            families += [*self._tasks.of_celery, *celery_gauges(active, queues)]
        return families

    def active(self) -> dict[str, float | None]:
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
