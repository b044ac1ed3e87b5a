"""Construction of the receiver of events and of the metrics from the options."""

from __future__ import annotations

from celery import Celery
from tornado.options import OptionParser

from flower_proxy._flower import FlowersLoop
from flower_proxy.events.discovery import Discovery
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.collector import MetricsCollector
from flower_proxy.metrics.follower import Follower
from flower_proxy.metrics.process import Connections, EventDelay
from flower_proxy.metrics.recorder import Recorder


def build_collector(
    capp: Celery,
    options: OptionParser,
    io_loop: FlowersLoop,
    connections: Connections,
    task_events: TaskEvents,
    discovery: Discovery,
    follower: Follower,
    *,
    events_buffer: int,
) -> MetricsCollector:
    """Return the collector of a receiver's metrics.

    :param capp: the Celery application to monitor.
    :param options: options of Flower and flower-proxy.
    :param io_loop: the event loop.
    :param connections: the open client connections.
    :param task_events: counts missed tasks.
    :param discovery: finds new workers.
    :param follower: counts what the metrics count.
    :param events_buffer: maximum size of the events that wait for processing, in bytes.
    """

    def on_reconnect() -> None:
        monitor.watch.ask_workers()
        discovery.ask_all()

    recorder = Recorder(
        options.task_runtime_metric_buckets,
        max_task_names=options.metrics_max_task_names,
        max_in_flight=options.max_tasks,
        follower=follower,
    )
    delay = EventDelay()
    receiver = Receiver(
        capp,
        io_loop=io_loop,
        enable_events=options.enable_events,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
        events_buffer=events_buffer,
        listeners=[recorder, delay, task_events, discovery],
        on_reconnect=on_reconnect,
        silent_workers=discovery.silent,
    )
    monitor = MetricsCollector(
        capp, receiver, recorder, delay, connections, task_events, groups=options.metrics, queues=options.queues
    )
    return monitor
