"""Metrics of tasks and workers, from their events.

Counters and histograms follow the events. Gauges (waiting tasks, workers online) are computed at each scrape from what
is known then, so they cannot drift (P3, P17).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
# Runs without a task-sent event so far; clients without task_send_sent_event never send one
_MAX_UNSENT = 5000

_UNKNOWN_EXCEPTION = "UnknownException"
_DEFAULT_QUEUE = "celery"
_ENDS = frozenset({"task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected"})

# A client is named gen<process id>@<host>: each process would add series for ever (P16)
_PROCESS = re.compile(r"^gen\d+(?=@)")
_CALLED = re.compile(r"\w+(?=\()")


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of a run, and its eta in seconds since the epoch; 0 for none."""

    worker: str
    name: str
    at: float
    due: float


class Recorder:
    """Turns events into metrics, as `flower_proxy.events.listener.Listener`.

    `begin` must be called before the first event.

    :param buckets: of run times, upper bounds in seconds, ascending.
    :param max_task_names: maximum number of task names in the metrics; the rest are aggregated as ``other``.
    :param max_series: maximum number of series of a family; the tasks of further ones are aggregated by worker.
    :param max_in_flight: maximum number of tasks known to be at a worker; beyond it the oldest are forgotten.
    :param clock: the time in seconds; only differences count, and a step of the wall clock must not change it.
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
        # By task and retries: runs sent but not started, and started but not sent, since either event may come first
        self._sent: BoundedDict[tuple[str, int], float] = BoundedDict(max_in_flight)
        self._unsent: BoundedDict[tuple[str, int], _Start] = BoundedDict(_MAX_UNSENT)

    @property
    def task_names_overflow(self) -> int:
        """Number of events whose task name was aggregated under ``other``."""
        return self._task_names.overflow

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Count events. The state has processed these and no later ones."""
        for event in batch:
            if event["type"].startswith("task-"):
                self._on_task(event, task_of(self._state, event["uuid"]))
            else:
                self._on_worker(event)

    def _on_task(self, event: Mapping[str, Any], task: Task) -> None:
        # The state merges late events into the task, so the type is read from the event
        kind, worker = event["type"], event["hostname"]
        held = self._in_flight.get(event["uuid"])
        # Only task-sent and task-received have the name, and the state may have dropped the task since
        name = self._task_names(event.get("name") or task.name or (held.name if held else ""))
        queue = self._queue(worker, task)
        if kind == "task-sent":
            producer = self._producers(_PROCESS.sub("gen", worker))
            self._tasks.events.inc(producer, kind, name)
            self._tasks.celery[kind].inc(name, producer, queue)
            self._note_sent(event, task)
            return
        self._meet(worker)
        self._tasks.events.inc(worker, self._types(kind), name)
        series = (name, worker, queue)
        self._tasks.meet(series)
        if kind == "task-failed":
            self._tasks.celery[kind].inc(*series, self._exceptions(_exception_class(event.get("exception"))))
        elif kind in self._tasks.celery:
            self._tasks.celery[kind].inc(*series)
        # A task that was redelivered to another worker is no longer this one's
        self._follow(event, name, worker, queue, held if held and held.worker == worker else None, task)

    def _on_worker(self, event: Mapping[str, Any]) -> None:
        worker = event["hostname"]
        # Custom events may come from anywhere, and an unknown worker that stops is not worth keeping
        if worker in self._state.workers:
            self._meet(worker)
        # A new worker has no tasks yet; the broker redelivers those of a stopped one
        if event["type"] in ("worker-online", "worker-offline"):
            self._in_flight.drop(self._in_flight.of(worker))

    def _meet(self, worker: str) -> None:
        if worker not in self._workers:
            self._workers.add(worker)
            # A flood of new names must not have to wait for the next scrape
            if len(self._workers) > 2 * self._state.max_workers_in_memory:
                self.forget_evicted()

    def forget_evicted(self) -> set[str]:
        """Forget the workers that the state no longer has, until their next event; clients that send tasks are kept.

        :returns: the names of these workers.
        """
        gone = self._workers.difference(self._state.workers)
        if gone:
            self._workers -= gone
            for worker in gone:
                self._in_flight.drop(self._in_flight.of(worker))
            self._tasks.remove_workers(gone)
            for label, limit in self._limits.items():
                if limit.is_full:
                    limit.release(self._tasks.values(label))
        return gone

    def _follow(
        self, event: Mapping[str, Any], name: str, worker: str, queue: str, held: InFlightTask | None, task: Task
    ) -> None:
        uuid, kind, timestamp = event["uuid"], event["type"], event["timestamp"]
        if kind == "task-received":
            held = InFlightTask(
                worker,
                name,
                self._clock(),
                timestamp,
                eta=event.get("eta"),
                retries=_retries(event),
                # The same run may be delivered again
                unstarted=tuple(run for run in held.to_start[-_MAX_RUNS:] if run[0] < _retries(event)) if held else (),
                unended=held.begun[-_MAX_RUNS:] if held else (),
            )
            self._in_flight.put(uuid, held)
        elif kind == "task-started":
            if held is None:
                run = self._next_run(uuid, int(task.retries or 0))
                held = InFlightTask(worker, name, self._clock(), eta=task.eta, retries=run)
                self._in_flight.put(uuid, held)
            if held.unstarted:
                (retries, eta), *later = held.unstarted
                held.unstarted = tuple(later)
                held.unended = (*held.unended, timestamp)[-_MAX_RUNS:]
            else:
                retries, eta, held.started = held.retries, held.eta, timestamp
            self._note_start((uuid, retries), _Start(worker, name, timestamp, _timestamp(eta)), queue)
        elif kind in _ENDS:
            begin = held.begun[0] if held and held.begun else None
            if held and held.unended:
                held.unended = held.unended[1:]
            elif held:
                self._in_flight.drop([uuid])
            runtime = _measured(event.get("runtime"))
            if kind == "task-succeeded" and runtime is not None:
                self._tasks.runtime.observe(runtime, worker, name)
                self._tasks.celery_runtime.observe(runtime, name, worker, queue)
            elif kind in ("task-failed", "task-retried") and begin is not None:
                self._tasks.runtime.observe(max(0.0, timestamp - begin), worker, name)

    def _next_run(self, uuid: str, retries: int) -> int:
        """Return which run of a task is started; the next one may have been sent before the start is told."""
        return next((run for run in range(max(0, retries - _MAX_RUNS), retries) if (uuid, run) in self._sent), retries)

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
        self._tasks.celery_wait.observe(max(0.0, start.at - max(sent, start.due)), start.name, start.worker, queue)

    def _queue(self, worker: str, task: Task) -> str:
        # Only task-sent has the queue
        queue = getattr(task, "queue", None)
        if not isinstance(queue, str):
            queues = self._queues_of(worker)
            queue = queues[0] if len(queues) == 1 else _DEFAULT_QUEUE
        return self._queues(queue)

    # Other sources than events

    def begin(self, state: EventsState, queues_of: Callable[[str], Sequence[str]] = lambda worker: ()) -> None:
        """Start with the workers and tasks of a state, which ``--persistent`` keeps over a restart (P17).

        :param state: is read at each event and each scrape.
        :param queues_of: returns the queues that a worker consumes, as far as they are known.
        """
        self._state, self._queues_of = state, queues_of
        self._workers.update(state.workers)
        for uuid, task in state.itertasks():
            if task.sent and not task.started:
                self._sent.put((uuid, task.retries or 0), task.sent)
            if task.state in ("RECEIVED", "STARTED") and task.worker is not None:
                held = InFlightTask(
                    task.worker.hostname,
                    self._task_names(task.name or ""),
                    self._clock(),
                    task.received,
                    eta=task.eta,
                    retries=task.retries or 0,
                    started=task.started if task.state == "STARTED" else None,
                )
                self._in_flight.put(uuid, held)
                # Even one that the state has evicted, so that it is forgotten at the first scrape
                self._workers.add(held.worker)
                self._tasks.meet((held.name, held.worker, self._queue(held.worker, task)))

    def reconcile(self, worker: str, ids: Collection[str], asked_at: float) -> None:
        """Drop the tasks that a worker no longer has, whose events were missed (P30).

        :param ids: its tasks: active, reserved and scheduled.
        :param asked_at: when it was asked, by `clock`; newer tasks are kept.
        """
        held = self._in_flight.of(worker)
        self._in_flight.drop(uuid for uuid, task in held.items() if task.seen < asked_at and uuid not in ids)

    # Scrapes

    def families(self, queues: QueueFigures | None, *, groups: Collection[str]) -> list[Family]:
        """Return the families as they are at this moment.

        :param queues: None if unknown.
        :param groups: which of ``flower`` and ``celery``.
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
        """Return the number of active tasks by worker; None for one that is offline (P3)."""
        active: dict[str, float | None] = {}
        for name, worker in sorted(self._state.workers.items()):
            active[name] = (_measured(worker.active) or 0) if worker.alive else None
        return active


def _retries(event: Mapping[str, Any]) -> int:
    """Return the number of retries before this run."""
    return int(event.get("retries") or 0)


def _exception_class(representation: object) -> str:
    match = _CALLED.match(str(representation))
    return match[0] if match else _UNKNOWN_EXCEPTION


def _measured(value: Any) -> float | None:
    """Return a number of an event, at least 0; None if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, number) if isfinite(number) else None


def _timestamp(eta: str | None) -> float:
    """Return an eta in seconds since the epoch; 0.0 for none or a malformed one.

    An eta without a time zone is in UTC, as workers take it.
    """
    try:
        due = maybe_iso8601(eta)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    if due is None:
        return 0.0
    return float((due if due.tzinfo else due.replace(tzinfo=timezone.utc)).timestamp())
