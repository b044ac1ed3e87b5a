"""The metrics of tasks, workers and queues: names, help texts, labels.

``flower_*`` are the families of stock Flower, ``celery_*`` those of celery-exporter, so that dashboards made for either
go on working.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from flower_proxy.metrics.broker_poller import QueueFigures
from flower_proxy.metrics.exposition import Counter, Family, Gauge, Histogram, SeriesLimit
from flower_proxy.metrics.in_flight import InFlight

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


class LabelLimit:
    """Values of a label: the first ones are kept, all others are aggregated until one of these is gone.

    :param limit: maximum number of values that are kept.
    :param other: the value of the others.
    :ivar overflow: how often a value was aggregated.
    """

    def __init__(self, limit: int, other: str) -> None:
        self._limit, self._other = limit, other
        self._kept: set[str] = set()
        self.overflow = 0

    def __call__(self, value: str) -> str:
        if value not in self._kept:
            if len(self._kept) >= self._limit:
                self.overflow += 1
                return self._other
            self._kept.add(value)
        return value

    @property
    def is_full(self) -> bool:
        """Whether a new value would be aggregated."""
        return len(self._kept) >= self._limit

    def release(self, used: Collection[str]) -> None:
        """Make room for other values in place of those that are no longer used."""
        self._kept.intersection_update(used)


class TaskFamilies:
    """Counters and histograms of tasks.

    :param buckets: of run times, upper bounds in seconds, ascending.
    :param max_series: maximum number of series of a family; names and queues of further ones are aggregated, for each
        worker.
    :ivar events: ``flower_*``, by worker, type and task; `runtime` by worker and task.
    :ivar celery: the ``celery_*`` counters of event types, by name, worker and queue, ``task-failed`` by exception,
        too; `celery_runtime` and `celery_wait` by name, worker and queue.
    """

    def __init__(self, buckets: Sequence[float], max_series: int) -> None:
        # Each label is bounded, but their combinations would take gigabytes
        limit = SeriesLimit(max_series, labels={"task", "name", "queue_name"}, other="other")
        self.events = Counter("flower_events", "Events of tasks.", ("worker", "type", "task"), limit=limit)
        self.runtime = Histogram(
            "flower_task_runtime_seconds",
            "How long tasks ran that succeeded, failed or are to be run again.",
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
            "celery_task_runtime", "How many seconds tasks ran that succeeded.", labels, buckets=buckets, limit=limit
        )
        self.celery_wait = Histogram(
            "celery_task_queue_wait_time",
            "Seconds from when a task was sent, or from its eta, until it was started.",
            labels,
            buckets=_WAITS,
            limit=limit,
        )
        self.of_flower: list[Counter | Histogram] = [self.events, self.runtime]
        self.of_celery: list[Counter | Histogram] = [*self.celery.values(), self.celery_runtime, self.celery_wait]
        # In the order in which they were first seen together
        self._known: dict[tuple[str, str, str], None] = {}
        self._max_known = max_series

    def meet(self, series: tuple[str, str, str]) -> None:
        """Create the ``celery_*`` counters of a task name, worker and queue, if there is room and they do not exist."""
        if series not in self._known and len(self._known) < self._max_known:
            self._known[series] = None
            # All counters at once, with 0: Prometheus sees no increase in one that appears with 1
            for kind, counter in self.celery.items():
                counter.touch(*series, *([""] if kind == "task-failed" else []))

    def values(self, label: str) -> set[str]:
        """Return the values that a label has in the series.

        :param label: ``type``, or one of the ``celery_*`` families.
        """
        families = [self.events] if label == "type" else self.of_celery
        return set().union(*(family.values(label) for family in families if label in family.labels))

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Return the pairs of worker and task name that have series."""
        return dict.fromkeys((worker, name) for name, worker, _ in self._known)

    def remove_workers(self, names: Collection[str]) -> None:
        """Forget the series of workers."""
        self._known = {known: None for known in self._known if known[1] not in names}
        for family in self.of_flower:
            family.remove("worker", names)
        for family in self.of_celery:
            family.remove("hostname", names)


def flower_gauges(
    active: Mapping[str, float | None], in_flight: InFlight, pairs: Iterable[tuple[str, str]]
) -> list[Family]:
    """Return the gauges of stock Flower.

    :param active: the number of running tasks by worker; None for one that is offline.
    :param in_flight: the tasks that workers have.
    :param pairs: the workers and task names that have series.
    """
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
    executing = Gauge("flower_worker_number_of_currently_executing_tasks", "Tasks that a worker runs now.", ("worker",))
    alive = {worker for worker, number in active.items() if number is not None}
    waiting, last_started = in_flight.waiting(alive), in_flight.last_started(alive)
    for pair in pairs:
        prefetched.set(waiting.get(pair, 0), *pair)
        time_waited.set(last_started[pair].waited if pair in last_started else 0, *pair)
    for worker, number in active.items():
        online.set(0 if number is None else 1, worker)
        executing.set(number or 0, worker)
    return [time_waited, prefetched, online, executing]


def celery_gauges(active: Mapping[str, float | None], queues: QueueFigures | None) -> list[Family]:
    """Return the gauges of celery-exporter.

    :param active: the number of running tasks by worker; None for one that is offline.
    :param queues: None if unknown.
    """
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
