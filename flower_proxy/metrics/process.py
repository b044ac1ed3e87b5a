"""Metrics of flower-proxy itself, ``flower_proxy_*``."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import celery
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from tornado.web import RequestHandler

from flower_proxy import __version__
from flower_proxy._flower import STOCK_FAMILIES, flower_version
from flower_proxy._timer import Timer
from flower_proxy.auth.authenticator import LoginFailure
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.exposition import Distribution
from flower_proxy.metrics.recorder import Recorder

_METHODS = RequestHandler.SUPPORTED_METHODS
_LOOP_CHECK_INTERVAL = 0.5  # seconds
_DELAY_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Connections(Protocol):
    """Open client connections.

    :ivar replaced: how many connections were closed to make room for new ones.
    """

    replaced: int

    def __len__(self) -> int: ...


class EventDelay(Collector):
    """Event delay histogram, fed as a `flower_proxy.events.listener.Listener`.

    It counts the seconds from an event's timestamp to its processing, at least 0.
    """

    def __init__(self) -> None:
        # prometheus_client takes a lock for each value
        self._delays = Distribution("", _DELAY_BUCKETS)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Observe the delay of an event."""
        delay = time.time() - event["timestamp"]
        self._delays.observe(delay if delay > 0 else 0.0)

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        bounds = [*map(str, _DELAY_BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "flower_proxy_event_delay_seconds",
            "Time from the timestamp of an event to its processing, in seconds, including clock skew.",
            buckets=list(zip(bounds, accumulate(self._delays.counts), strict=True)),
            sum_value=self._delays.sum,
        )


class ProcessMetrics(Collector):
    """Metrics of flower-proxy and its process, and those that the application registers.

    :param receiver: receives the events.
    :param recorder: counts the task events.
    :param delay: the event delay histogram.
    :param connections: the open client connections.
    :param replies: counts rejected replies of workers.
    :param task_events: counts missed tasks.
    """

    def __init__(
        self,
        receiver: Receiver,
        recorder: Recorder,
        delay: EventDelay,
        connections: Connections,
        replies: Rejections,
        task_events: TaskEvents,
    ) -> None:
        self._receiver, self._recorder, self._connections, self._replies = receiver, recorder, connections, replies
        self._task_events = task_events
        own = CollectorRegistry()
        build = Gauge(
            "flower_proxy_build_info",
            "Versions; the value is always 1.",
            ["version", "flower", "celery", "python"],
            registry=own,
        )
        build.labels(__version__, flower_version, celery.__version__, platform.python_version()).set(1)
        requests = Counter(
            "flower_proxy_requests",
            "HTTP requests by matched route.",
            ["route", "method", "status"],
            registry=own,
        )
        # prometheus_client locks on each label lookup, and the combinations are few
        self._requests = lru_cache(maxsize=None)(requests.labels)
        own.register(delay)
        self._loop_delay = Histogram(
            "flower_proxy_event_loop_delay_seconds",
            "Event loop lag in seconds.",
            buckets=_DELAY_BUCKETS,
            registry=own,
        )
        failures = Counter("flower_proxy_login_failures", "Failed logins by reason.", ["reason"], registry=own)
        # All reasons start at 0, since increase() ignores the first value of a series
        self._login_failures = {failure: failures.labels(failure.value) for failure in LoginFailure}
        self._own = own
        self._created_at = time.monotonic()
        self._due = 0.0
        self._timer = Timer(self._check_loop, _LOOP_CHECK_INTERVAL)

    def count_request(self, *, route: str, method: str, status: int) -> None:
        """Count an HTTP request; unknown methods are aggregated as ``other``."""
        self._requests(route, method if method in _METHODS else "other", str(status)).inc()

    def count_login_failure(self, failure: LoginFailure) -> None:
        """Count a failed login."""
        self._login_failures[failure].inc()

    def start(self) -> None:
        """Start measuring the event loop lag."""
        self._due = time.monotonic() + _LOOP_CHECK_INTERVAL
        self._timer.start()

    def stop(self) -> None:
        """Stop measuring the event loop lag."""
        self._timer.stop()

    def _check_loop(self) -> None:
        now = time.monotonic()
        self._loop_delay.observe(max(0.0, now - self._due))
        self._due = now + _LOOP_CHECK_INTERVAL

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as `prometheus_client.registry.Collector`."""
        yield from self._own.collect()
        yield from self._current()
        # Flower registers its families in REGISTRY too, where they stay empty
        yield from (metric for metric in REGISTRY.collect() if metric.name not in STOCK_FAMILIES)

    def _current(self) -> Iterator[Metric]:
        receiver, state = self._receiver, self._receiver.state
        events = receiver.dispatcher
        last = events.last_event
        silence = time.monotonic() - (self._created_at if last is None else last)
        gauges = {
            "broker_connected": ("1 if connected to the broker for events.", float(receiver.connected)),
            "seconds_since_last_event": (
                "Seconds since the last worker event; since the start if there was none.",
                silence,
            ),
            "tasks_in_memory": ("Tasks in memory.", len(state.tasks)),
            "connections": ("Open client connections.", len(self._connections)),
            "workers_in_memory": ("Workers in memory, including offline ones.", len(state.workers)),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"flower_proxy_{name}", help_, value=value)
        counters = {
            "events_received": ("Events received.", events.received),
            "events_dropped": (
                "Events dropped because the buffer of events was full.",
                events.dropped,
            ),
            "connections_replaced": (
                "Client connections closed to make room for new ones.",
                self._connections.replaced,
            ),
            "event_reconnects": ("Reconnections to the broker for events.", receiver.reconnects),
            "task_names_overflow": (
                "Task events whose task name was aggregated under other.",
                self._recorder.task_names_overflow,
            ),
        }
        for name, (help_, count) in counters.items():
            yield CounterMetricFamily(f"flower_proxy_{name}", help_, value=count)
        yield _rejected("events", "Events that were invalid or could not be processed, by reason.", events.rejections)
        yield _rejected("replies", "Rejected replies of workers, by reason.", self._replies)
        missed = CounterMetricFamily(
            "flower_proxy_tasks_missed", "Tasks started by a worker whose events did not arrive.", labels=["worker"]
        )
        for name in state.workers:
            missed.add_metric([name], self._task_events.missed(name))
        yield missed


def _rejected(kind: str, help_: str, rejections: Rejections) -> Metric:
    family = CounterMetricFamily(f"flower_proxy_{kind}_rejected", help_, labels=["reason"])
    for reason, count in rejections.counts.items():
        family.add_metric([reason], count)
    return family
