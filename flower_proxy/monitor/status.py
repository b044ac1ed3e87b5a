"""The current status of the cluster and of flower-proxy, for the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flower_proxy.events.broker import NO_ANSWER
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.collector import MetricsCollector


@dataclass(frozen=True)
class Status:
    """What is measured each second.

    :ivar connected: whether events can be received.
    :ivar reconnects: number of reconnections so far.
    :ivar dropped: number of events dropped so far.
    :ivar missed: number of tasks missed so far.
    :ivar executing: number of running tasks by online worker.
    :ivar lengths: number of messages by queue.
    """

    connected: bool
    reconnects: int
    dropped: int
    missed: int
    executing: Mapping[str, int]
    lengths: Mapping[str, int]


def status_of(collector: MetricsCollector, task_events: TaskEvents) -> Status:
    """Return the current status."""
    receiver, watch = collector.receiver, collector.watch
    return Status(
        # A broker that hangs closes no connection
        connected=receiver.connected and watch.problem != NO_ANSWER and not receiver.dispatcher.is_paused,
        reconnects=receiver.reconnects,
        dropped=receiver.dispatcher.dropped,
        missed=task_events.total_missed,
        executing={name: int(number) for name, number in collector.recorder.active().items() if number is not None},
        lengths=watch.figures.lengths,
    )
