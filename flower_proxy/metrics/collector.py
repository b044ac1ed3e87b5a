"""Collection and rendering of metrics, and readiness checks."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Collection, Sequence

from celery import Celery
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from flower_proxy.events.ends import Ends
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.broker_poller import BrokerPoller
from flower_proxy.metrics.exposition import Family, document, negotiate
from flower_proxy.metrics.process import Connections, EventDelay, ProcessMetrics
from flower_proxy.metrics.recorder import Recorder

_GZIP_WINDOW_BITS = 31  # a gzip stream, for zlib
_GZIP_LEVEL = 1
# Each concurrent rendering holds a full copy of the text in memory
_MAX_RENDERINGS = 2


class MetricsCollector:
    """Owns the sources of all metrics and renders them.

    :param capp: the Celery application to monitor.
    :param receiver: receives its events; `recorder` and `delay` must be among the listeners.
    :param recorder: the metrics of tasks and workers; starts with the receiver's state.
    :param delay: the event delay histogram.
    :param connections: the open client connections.
    :param task_events: counts missed tasks; must be among the listeners.
    :param groups: the enabled groups of metrics: ``flower``, ``celery``, ``self``.
    :param queues: names of additional queues.
    :ivar replies: counts rejected replies of workers.
    :ivar watch: the broker poller.
    :ivar ends: the tasks that have ended without an event.
    :ivar own: the metrics of group ``self``.
    """

    def __init__(
        self,
        capp: Celery,
        receiver: Receiver,
        recorder: Recorder,
        delay: EventDelay,
        connections: Connections,
        task_events: TaskEvents,
        *,
        groups: Collection[str],
        queues: Sequence[str],
    ) -> None:
        self.receiver, self.recorder, self.groups = receiver, recorder, groups
        self.replies = Rejections("a reply", REASONS)
        self.watch = BrokerPoller(
            capp, queues=queues, workers=self._online_workers, on_tasks=self._reconcile, rejections=self.replies
        )
        self.ends = Ends(capp, lambda: receiver.state, rejections=self.replies, run=receiver.io_loop.add_callback)
        self.own = ProcessMetrics(receiver, recorder, delay, connections, self.replies, task_events)
        recorder.begin(receiver.state, lambda worker: self.watch.figures.queues_of.get(worker, ()))
        # In progress, by content type, names and compression
        self._scrapes: dict[object, asyncio.Task[list[bytes]]] = {}
        self._rendering = asyncio.Semaphore(_MAX_RENDERINGS)

    def start(self) -> None:
        """Start polling the broker and measuring the event loop."""
        self.watch.start()
        self.own.start()

    def stop(self) -> None:
        """Stop polling the broker, asking the result backend and measuring the event loop."""
        self.watch.stop()
        self.ends.stop()
        self.own.stop()

    def join(self) -> None:
        """Wait for the threads that `stop` has told to stop."""
        if self.watch.ident is not None:
            self.watch.join()
        self.ends.join()

    def _online_workers(self) -> list[str]:
        # The poller's thread calls this while events may change the mapping
        return [name for name, worker in list(self.receiver.state.workers.items()) if worker.alive]

    def _reconcile(self, worker: str, ids: set[str], inspected_at: float) -> None:
        for listener in (self.recorder.reconcile, self.ends.on_inspection):
            self.receiver.io_loop.add_callback(listener, worker, ids, inspected_at)

    # Purging

    def forget_workers(self, offline_for: float | None) -> set[str]:
        """Forget workers that have been offline for `offline_for` seconds, and those that the state has evicted.

        :param offline_for: seconds since the last event; None keeps offline workers until they are evicted.
        :returns: the names of the forgotten workers.
        """
        state = self.receiver.state
        if offline_for is not None:
            last_event_before = time.time() - offline_for
            offline = [(name, worker) for name, worker in state.workers.items() if not worker.alive]
            for name, worker in offline:
                if (worker.timestamp or 0) <= last_event_before:
                    del state.workers[name]
        state.forget_evicted()
        return self.recorder.forget_evicted()

    # Scrapes and readiness

    def families(self) -> list[Family]:
        """Return the current metrics of tasks, workers and queues."""
        return self.recorder.families(self.watch.figures, groups=self.groups)

    async def scrape(self, *, accept: str, names: Collection[str], gzip: bool) -> tuple[str, list[bytes]]:
        """Render the metrics; concurrent scrapes with equal arguments share one rendering.

        :param accept: the ``Accept`` header.
        :param names: the samples to return; empty for all.
        :param gzip: whether to compress the text.
        :returns: the content type, and the text in parts.
        """
        encoder, content_type = negotiate(accept)
        key = content_type, frozenset(names), gzip
        scrape = self._scrapes.get(key)
        if scrape is None:
            scrape = self._scrapes[key] = asyncio.ensure_future(self._render(encoder, *key))
            scrape.add_done_callback(lambda _: self._scrapes.pop(key))
        # A disconnected client cancels its handler, but must not cancel the rendering for the others
        return content_type, await asyncio.shield(scrape)

    async def _render(
        self, encoder: Callable[[Collector], bytes], content_type: str, names: Collection[str], gzip: bool
    ) -> list[bytes]:
        compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW_BITS) if gzip else None
        rest = self.own if "self" in self.groups else CollectorRegistry()
        openmetrics = "openmetrics" in content_type
        parts = []
        async with self._rendering:
            for data in document(self.families(), rest, encoder=encoder, openmetrics=openmetrics, names=names or None):
                parts.append(compressor.compress(data) if compressor else data)
                # Other requests are served between slices
                await asyncio.sleep(0)
        if compressor:
            parts.append(compressor.flush())
        return parts

    def unready(self) -> list[str]:
        """Return the reasons why the application is not ready; an empty list if it is."""
        reasons = [] if self.receiver.connected else ["not connected to the broker for events"]
        if problem := self.watch.problem:
            reasons.append(problem)
        if self.receiver.dispatcher.is_paused:
            reasons.append("loading the saved state")
        return reasons
