"""The metrics that are scraped, and the readiness that follows from them."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Collection, Sequence

from celery import Celery
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from flower_proxy.events.receiver import Receiver
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.metrics.broker_poller import BrokerPoller
from flower_proxy.metrics.exposition import Family, document, negotiate
from flower_proxy.metrics.process import Connections, EventDelay, ProcessMetrics
from flower_proxy.metrics.recorder import Recorder

_GZIP = 31  # zlib's window bits for a gzip stream
_LEVEL = 1
# Of different forms; each takes the memory of its text
_MAX_SCRAPES = 2


class MetricsCollector:
    """Owns everything that metrics are made of, and renders them.

    :param capp: the Celery application to monitor.
    :param receiver: receives its events; `recorder` and `delay` must be among the listeners.
    :param recorder: the metrics of tasks and workers; begins with the receiver's state.
    :param delay: the delay of events.
    :param connections: the open connections of clients.
    :param groups: the groups of metrics, out of ``flower``, ``celery`` and ``self``.
    :param queues: names of queues in addition to those that are found.
    :ivar replies: counts the replies of workers that are rejected.
    :ivar watch: polls the broker.
    :ivar own: the metrics of group ``self``.
    """

    def __init__(
        self,
        capp: Celery,
        receiver: Receiver,
        recorder: Recorder,
        delay: EventDelay,
        connections: Connections,
        *,
        groups: Collection[str],
        queues: Sequence[str],
    ) -> None:
        self.receiver, self.recorder, self.groups = receiver, recorder, groups
        self.replies = Rejections("a reply", REASONS)
        self.watch = BrokerPoller(
            capp, queues=queues, workers=self._alive_workers, on_held=self._reconcile, rejections=self.replies
        )
        self.own = ProcessMetrics(receiver, recorder, delay, connections, self.replies)
        recorder.begin(receiver.state, lambda worker: self.watch.figures.queues_of.get(worker, ()))
        # Those in progress, by form
        self._scrapes: dict[object, asyncio.Task[list[bytes]]] = {}
        self._rendering = asyncio.Semaphore(_MAX_SCRAPES)

    def start(self) -> None:
        """Start to poll the broker and to measure the event loop."""
        self.watch.start()
        self.own.start()

    def stop(self) -> None:
        self.watch.stop()
        self.own.stop()

    def _alive_workers(self) -> list[str]:
        # Called in the poller's thread: events may change the mapping meanwhile
        return [name for name, worker in list(self.receiver.state.workers.items()) if worker.alive]

    def _reconcile(self, worker: str, ids: set[str], asked_at: float) -> None:
        self.receiver.io_loop.add_callback(self.recorder.reconcile, worker, ids, asked_at)

    # Purging

    def forget_workers(self, silent_for: float | None) -> set[str]:
        """Forget the workers that have been offline for so long, and those that the state has evicted.

        :param silent_for: seconds; None keeps offline workers until they are evicted.
        :returns: the names of these workers.
        """
        state = self.receiver.state
        if silent_for is not None:
            heard_before = time.time() - silent_for
            offline = [(name, worker) for name, worker in state.workers.items() if not worker.alive]
            for name, worker in offline:
                if (worker.timestamp or 0) <= heard_before:
                    del state.workers[name]
        state.forget_evicted()
        return self.recorder.forget_evicted()

    # Scrapes and readiness

    def families(self) -> list[Family]:
        """Return the metrics of tasks, workers and queues, as they are now."""
        return self.recorder.families(self.watch.figures, groups=self.groups)

    async def scrape(self, *, accept: str, names: Collection[str], gzip: bool) -> tuple[str, list[bytes]]:
        """Return the content type and the text in parts; requests for the same form share a scrape in progress.

        :param accept: the ``Accept`` header.
        :param names: of the samples to return; empty for all.
        :param gzip: whether to compress it.
        """
        encoder, content_type = negotiate(accept)
        form = content_type, frozenset(names), gzip
        scrape = self._scrapes.get(form)
        if scrape is None:
            scrape = self._scrapes[form] = asyncio.ensure_future(self._render(encoder, *form))
            scrape.add_done_callback(lambda _: self._scrapes.pop(form))
        # The client that came first may go away, and its handler with it
        return content_type, await asyncio.shield(scrape)

    async def _render(
        self, encoder: Callable[[Collector], bytes], content_type: str, names: Collection[str], gzip: bool
    ) -> list[bytes]:
        compressor = zlib.compressobj(_LEVEL, wbits=_GZIP) if gzip else None
        rest = self.own if "self" in self.groups else CollectorRegistry()
        openmetrics = "openmetrics" in content_type
        parts = []
        async with self._rendering:
            for data in document(self.families(), rest, encoder=encoder, openmetrics=openmetrics, names=names or None):
                parts.append(compressor.compress(data) if compressor else data)
                # Pages are answered between slices
                await asyncio.sleep(0)
        if compressor:
            parts.append(compressor.flush())
        return parts

    def unready(self) -> list[str]:
        """Return the reasons for which the application is not ready; an empty list if it is."""
        reasons = [] if self.receiver.connected else ["not connected to the broker for events"]
        if problem := self.watch.problem:
            reasons.append(problem)
        return reasons
