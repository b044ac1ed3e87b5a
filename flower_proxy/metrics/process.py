"""Metrics of flower-proxy itself: ``flower_proxy_*``, by prometheus_client, since they are few."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import celery
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from tornado.web import RequestHandler

from flower_proxy import __version__
from flower_proxy._flower import STOCK_FAMILIES, flower_version
from flower_proxy._timer import Timer
from flower_proxy.auth.authenticator import LoginFailure
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.rejections import Rejections
from flower_proxy.metrics.recorder import Recorder

_METHODS = RequestHandler.SUPPORTED_METHODS
_LOOK_AT_LOOP = 0.5  # seconds
_DELAYS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Connections(Protocol):
    """The open connections of clients.

    :ivar replaced: how many connections were closed in favour of new ones.
    """

    replaced: int

    def __len__(self) -> int: ...


class EventDelay:
    """Observes the delay of events, as `flower_proxy.events.listener.Listener`.

    :ivar histogram: of seconds from an event's timestamp to its handling, never below 0.
    """

    def __init__(self) -> None:
        self.histogram = Histogram(
            "flower_proxy_event_delay_seconds",
            "From the timestamp of an event to its handling here: network, queues, load, and clocks that differ.",
            buckets=_DELAYS,
            registry=None,
        )

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Observe the delay of each event that has a timestamp."""
        for event in batch:
            if "timestamp" in event:
                self.histogram.observe(max(0.0, time.time() - event["timestamp"]))


class ProcessMetrics(Collector):
    """The metrics of flower-proxy and its process, and those that the application registers.

    :param receiver: receives the events.
    :param recorder: counts the events of tasks.
    :param delay: measures the delay of events.
    :param connections: the open connections of clients.
    :param replies: counts the replies of workers that are rejected.
    """

    def __init__(
        self,
        receiver: Receiver,
        recorder: Recorder,
        delay: EventDelay,
        connections: Connections,
        replies: Rejections,
    ) -> None:
        self._receiver, self._recorder, self._connections, self._replies = receiver, recorder, connections, replies
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
            "HTTP requests answered, by the route that they matched.",
            ["route", "method", "status"],
            registry=own,
        )
        # prometheus_client looks the labels up under a lock each time; there are only so many
        self._answered = lru_cache(maxsize=None)(requests.labels)
        own.register(delay.histogram)
        self._loop_delay = Histogram(
            "flower_proxy_event_loop_delay_seconds",
            "How late the event loop comes to what is due; every page waits as long.",
            buckets=_DELAYS,
            registry=own,
        )
        failures = Counter("flower_proxy_login_failures", "Logins that failed, by reason.", ["reason"], registry=own)
        # All at once, with 0: Prometheus sees no increase in one that appears with 1
        self._login_failures = {failure: failures.labels(failure.value) for failure in LoginFailure}
        self._own = own
        self._made_at = time.monotonic()
        self._due = 0.0
        self._timer = Timer(self._look_at_loop, _LOOK_AT_LOOP)

    def count_request(self, *, route: str, method: str, status: int) -> None:
        self._answered(route, method if method in _METHODS else "other", str(status)).inc()

    def count_login_failure(self, failure: LoginFailure) -> None:
        self._login_failures[failure].inc()

    def start(self) -> None:
        """Begin to watch the event loop."""
        self._due = time.monotonic() + _LOOK_AT_LOOP
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def _look_at_loop(self) -> None:
        now = time.monotonic()
        self._loop_delay.observe(max(0.0, now - self._due))
        self._due = now + _LOOK_AT_LOOP

    def collect(self) -> Iterator[Metric]:
        yield from self._own.collect()
        yield from self._of_the_moment()
        # Of the process, and what the application has registered; Flower's own are there once more, and empty
        yield from (metric for metric in REGISTRY.collect() if metric.name not in STOCK_FAMILIES)

    def _of_the_moment(self) -> Iterator[Metric]:
        receiver, state = self._receiver, self._receiver.state
        last = receiver.last_event
        silence = time.monotonic() - (self._made_at if last is None else last)
        gauges = {
            "broker_connected": ("Whether events can arrive.", float(receiver.connected)),
            "seconds_since_last_event": (
                "Since the last event of a worker; before the first, since the start.",
                silence,
            ),
            "tasks_in_memory": ("Tasks that are kept.", len(state.tasks)),
            "connections": ("Open connections of clients.", len(self._connections)),
            "workers_in_memory": ("Workers that are kept, dead ones too.", len(state.workers)),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"flower_proxy_{name}", help_, value=value)
        counters = {
            "events_received": ("Events that arrived.", receiver.received),
            "events_dropped": (
                "Events that were dropped, since they came faster than they could be handled.",
                receiver.dropped,
            ),
            "connections_replaced": (
                "Connections that were closed in favour of new ones.",
                self._connections.replaced,
            ),
            "event_reconnects": ("Times that the connection for events was lost.", receiver.reconnects),
            "task_names_overflow": (
                "Events of tasks whose name was counted as other.",
                self._recorder.task_names_overflow,
            ),
        }
        for name, (help_, count) in counters.items():
            yield CounterMetricFamily(f"flower_proxy_{name}", help_, value=count)
        yield _rejected("events", "Events that were invalid, or failed to be processed.", receiver.rejections)
        yield _rejected("replies", "Replies of workers that were rejected, by reason.", self._replies)


def _rejected(what: str, help_: str, rejections: Rejections) -> Metric:
    family = CounterMetricFamily(f"flower_proxy_{what}_rejected", help_, labels=["reason"])
    for reason, count in rejections.counts.items():
        family.add_metric([reason], count)
    return family
