"""Metric families of tasks, workers and queues: names, help texts, labels.

``flower_*`` names are those of stock Flower and ``celery_*`` names those of celery-exporter, so that dashboards for
either keep working.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flower_proxy.metrics.broker_poller import QueueFigures
from flower_proxy.metrics.exposition import (
    Counter,
    Distribution,
    Family,
    Gauge,
    Histogram,
    Number,
    SeriesLimit,
)
from flower_proxy.metrics.in_flight import InFlight

_WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds

_CELERY_COUNTERS = {
    "task-sent": ("celery_task_sent", "Tasks sent; requires task_send_sent_event."),
    "task-received": ("celery_task_received", "Tasks received by a worker."),
    "task-started": ("celery_task_started", "Tasks started by a worker."),
    "task-succeeded": ("celery_task_succeeded", "Tasks that succeeded."),
    "task-failed": ("celery_task_failed", "Tasks that failed, by exception."),
    "task-rejected": ("celery_task_rejected", "Tasks that a worker rejected or requeued."),
    "task-revoked": ("celery_task_revoked", "Tasks that were revoked or expired."),
    "task-retried": ("celery_task_retried", "Task runs that failed and were scheduled for a retry."),
}


class LabelLimit:
    """Cardinality limit of a label: the first values are kept, further ones are aggregated until `release`.

    :param limit: maximum number of values that are kept.
    :param other: the value that replaces further ones.
    :ivar overflow: how often a value was aggregated.
    """

    def __init__(self, limit: int, other: str) -> None:
        self._limit, self._other = limit, other
        self._kept: set[str] = set()
        self.overflow = 0

    def __call__(self, value: str) -> str:
        """Return the label value to use: `value`, or `other` beyond the limit."""
        if value not in self._kept:
            if len(self._kept) >= self._limit:
                self.overflow += 1
                return self._other
            self._kept.add(value)
        return value

    def __contains__(self, value: str) -> bool:
        """Return whether a value is kept."""
        return value in self._kept

    @property
    def is_full(self) -> bool:
        """Whether a new value would be aggregated."""
        return len(self._kept) >= self._limit

    def release(self, used: Collection[str]) -> None:
        """Forget all values that are not in `used`, to make room for new ones."""
        self._kept.intersection_update(used)


@dataclass(slots=True)
class EventSeries:
    """Series of the events with the same type, task name, worker and queue.

    :ivar name: label values, like `worker` and `queue`.
    :ivar events: series of ``flower_events_total``.
    :ivar celery: series of the ``celery_*`` counter; None for ``task-failed`` and custom types.
    :ivar runtimes: series of run times; empty before the first one.
    """

    name: str
    worker: str
    queue: str
    events: Number
    celery: Number | None
    runtimes: tuple[Distribution, ...] = ()


class TaskFamilies:
    """Counters and histograms of tasks.

    :param buckets: upper bounds of run times in seconds, ascending.
    :param max_series: maximum number of series per family; task names and queues of further ones are aggregated per
        worker.
    :ivar events: ``flower_events_total`` by worker, type and task; `runtime` by worker and task.
    :ivar celery: the ``celery_*`` counters by event type, each by name, worker and queue, and ``task-failed`` also by
        exception; `celery_runtime` and `celery_wait` by name, worker and queue.
    """

    def __init__(self, buckets: Sequence[float], max_series: int) -> None:
        # Each label is limited, but their combinations would take gigabytes
        limit = SeriesLimit(max_series, labels={"task", "name", "queue_name"}, other="other")
        self.events = Counter("flower_events", "Task events.", ("worker", "type", "task"), limit=limit)
        self.runtime = Histogram(
            "flower_task_runtime_seconds",
            "Run time of tasks that succeeded, failed or were retried, in seconds.",
            ("worker", "task"),
            buckets=buckets,
            limit=limit,
        )
        labels = ("name", "hostname", "queue_name")
        self.celery = {
            kind: Counter(name, help_, (*labels, "exception") if kind == "task-failed" else labels, limit=limit)
            for kind, (name, help_) in _CELERY_COUNTERS.items()
        }
        self.celery_runtime = Histogram(
            "celery_task_runtime", "Run time of tasks that succeeded, in seconds.", labels, buckets=buckets, limit=limit
        )
        self.celery_wait = Histogram(
            "celery_task_queue_wait_time",
            "Time from sending a task, or from its eta, to its start, in seconds.",
            labels,
            buckets=_WAIT_BUCKETS,
            limit=limit,
        )
        self.of_flower: list[Counter | Histogram] = [self.events, self.runtime]
        self.of_celery: list[Counter | Histogram] = [*self.celery.values(), self.celery_runtime, self.celery_wait]
        # Combinations of name, worker and queue; a dict keeps their order
        self._known: dict[tuple[str, str, str], None] = {}
        self._max_known = max_series

    def create(self, series: tuple[str, str, str]) -> None:
        """Create the ``celery_*`` counters of a task name, worker and queue, within the limit."""
        if series not in self._known and len(self._known) < self._max_known:
            self._known[series] = None
            # All counters start at 0, since increase() ignores the first value of a series
            for kind, counter in self.celery.items():
                counter.series(*series, *([""] if kind == "task-failed" else []))

    def event_series(self, kind: str, label: str, name: str, worker: str, queue: str) -> EventSeries:
        """Return the series of an event, which count until its worker is removed.

        :param kind: the event type.
        :param label: its label value, like `name`, `worker` and `queue`.
        """
        counter = None if kind == "task-failed" else self.celery.get(kind)
        celery = None if counter is None else counter.series(name, worker, queue)
        return EventSeries(name, worker, queue, self.events.series(worker, label, name), celery)

    def observe_runtime(self, runtime: float, of: EventSeries) -> None:
        """Count the run time of a task that succeeded.

        :param runtime: seconds.
        :param of: the series of its task-succeeded event.
        """
        if not of.runtimes:
            of.runtimes = (
                self.runtime.series(of.worker, of.name),
                self.celery_runtime.series(of.name, of.worker, of.queue),
            )
        for series in of.runtimes:
            series.observe(runtime)

    def values(self, label: str) -> set[str]:
        """Return the values of a label in all series.

        :param label: ``type``, or a label of the ``celery_*`` families.
        """
        families = [self.events] if label == "type" else self.of_celery
        return set().union(*(family.values(label) for family in families if label in family.labels))

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Return the worker and task name of all series."""
        return dict.fromkeys((worker, name) for name, worker, _ in self._known)

    def remove_workers(self, names: Collection[str]) -> None:
        """Remove the series of workers."""
        self._known = {known: None for known in self._known if known[1] not in names}
        for family in self.of_flower:
            family.remove("worker", names)
        for family in self.of_celery:
            family.remove("hostname", names)


def flower_gauges(
    active: Mapping[str, float | None], in_flight: InFlight, pairs: Iterable[tuple[str, str]]
) -> list[Family]:
    """Return the gauges of stock Flower.

    :param active: the number of running tasks by worker; None for an offline worker.
    :param in_flight: the tasks at workers.
    :param pairs: the worker and task name of all series.
    """
    prefetch_time = Gauge(
        "flower_task_prefetch_time_seconds",
        "Prefetch time of the running task that was started last, in seconds; 0 if none is running.",
        ("worker", "task"),
    )
    prefetched = Gauge(
        "flower_worker_prefetched_tasks",
        "Tasks prefetched by a worker and not started, without those that wait for their eta.",
        ("worker", "task"),
    )
    online = Gauge("flower_worker_online", "1 if the worker sends heartbeats, 0 if it is offline.", ("worker",))
    executing = Gauge("flower_worker_number_of_currently_executing_tasks", "Running tasks of a worker.", ("worker",))
    alive = {worker for worker, number in active.items() if number is not None}
    waiting, last_started = in_flight.waiting(alive), in_flight.last_started(alive)
    for pair in pairs:
        prefetched.set(waiting.get(pair, 0), *pair)
        prefetch_time.set(last_started[pair].waited if pair in last_started else 0, *pair)
    for worker, number in active.items():
        online.set(0 if number is None else 1, worker)
        executing.set(number or 0, worker)
    return [prefetch_time, prefetched, online, executing]


def celery_gauges(active: Mapping[str, float | None], queues: QueueFigures | None) -> list[Family]:
    """Return the gauges of celery-exporter.

    :param active: the number of running tasks by worker; None for an offline worker.
    :param queues: None if unknown.
    """
    up = Gauge("celery_worker_up", "1 if the worker sends heartbeats, 0 if it is offline.", ("hostname",))
    running = Gauge("celery_worker_tasks_active", "Running tasks of a worker.", ("hostname",))
    for worker, number in active.items():
        up.set(0 if number is None else 1, worker)
        running.set(number or 0, worker)
    length = Gauge("celery_queue_length", "Ready messages in a queue.", ("queue_name",))
    consumers = Gauge(
        "celery_active_consumer_count",
        "Consumers of a queue; the number of workers if the broker does not count consumers.",
        ("queue_name",),
    )
    workers = Gauge("celery_active_worker_count", "Workers that consume from a queue.", ("queue_name",))
    processes = Gauge(
        "celery_active_process_count",
        "Pool processes of the workers that consume from a queue.",
        ("queue_name",),
    )
    if queues is not None:
        figures = (queues.lengths, queues.consumers, queues.workers, queues.processes)
        for gauge, numbers in zip((length, consumers, workers, processes), figures, strict=True):
            for queue, number in numbers.items():
                gauge.set(number, queue)
    return [up, running, length, consumers, workers, processes]
