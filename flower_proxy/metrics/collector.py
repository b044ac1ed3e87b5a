"""All that is known for monitoring, and its text."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from celery import Celery
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from flower_proxy.events.receiver import Receiver
from flower_proxy.metrics.broker_poller import BrokerPoller
from flower_proxy.metrics.exposition import Family, render
from flower_proxy.metrics.process import Filtered, SelfMetrics
from flower_proxy.metrics.recorder import Recorder, is_producer
from flower_proxy.web.connections import ConnectionLimit

_GZIP = 31  # zlib's window bits for a gzip stream
_LEVEL = 1
# Of different forms; each takes the memory of its text
_MAX_SCRAPES = 2


class Monitor:
    """All that is known for monitoring.

    :param capp: the Celery application that is watched.
    :param receiver: of its events; its state gets a recorder.
    :param connections: of the clients.
    :param groups: of metrics, out of ``flower``, ``celery`` and ``self``.
    :param buckets: of the runtime histograms, in seconds.
    :param most_task_names: beyond so many, all others are counted as ``other``.
    :param most_tasks: so many are kept in memory.
    :param queues: that are counted besides those that are found.
    """

    def __init__(
        self,
        capp: Celery,
        receiver: Receiver,
        connections: ConnectionLimit,
        *,
        groups: Collection[str],
        buckets: Sequence[float],
        most_task_names: int,
        most_tasks: int,
        queues: Sequence[str],
    ) -> None:
        self.receiver, self.groups = receiver, groups
        self.recorder = Recorder(
            buckets,
            most_task_names=most_task_names,
            most_in_flight=most_tasks,
            queues_of=lambda worker: self.watch.figures.queues_of.get(worker, ()),
        )
        self.watch = BrokerPoller(capp, queues=queues, workers=self._alive_workers, on_held=self._reconcile)
        self.own = SelfMetrics(receiver, self.recorder, connections)
        receiver.state.metrics = self.recorder
        receiver.on_reconnect = self.watch.ask_workers
        receiver.on_delay = self.own.event_delay.observe
        self.recorder.rebuild(receiver.state)
        # Those in progress, by form
        self._scrapes: dict[object, asyncio.Task[list[bytes]]] = {}
        self._rendering = asyncio.Semaphore(_MAX_SCRAPES)

    def start(self) -> None:
        """Begin to watch broker and event loop."""
        self.watch.start()
        self.own.start()

    def stop(self) -> None:
        self.watch.stop()
        self.own.stop()

    def _alive_workers(self) -> list[str]:
        # In the watch's thread: of a list, since events go on meanwhile
        return [name for name, worker in list(self.receiver.state.workers.items()) if worker.alive]

    def _reconcile(self, worker: str, ids: set[str], asked_at: float) -> None:
        self.receiver.io_loop.add_callback(self.recorder.reconcile, worker, ids, asked_at)

    # What is forgotten

    def forget_producers(self) -> None:
        """Let go of what Flower counts for each process that sends tasks, and never shows (P16)."""
        counter = self.receiver.state.counter
        for name in [name for name in counter if is_producer(name)]:
            del counter[name]

    def forget_workers(self, silent_for: float) -> list[str]:
        """Forget the workers that have been silent for so many seconds, and return their names."""
        state, heard_before = self.receiver.state, time.time() - silent_for
        gone = [name for name, worker in state.workers.items() if not worker.alive and _heard(worker) <= heard_before]
        self.recorder.remove_workers(gone)
        for name in gone:
            state.workers.pop(name, None)
            state.counter.pop(name, None)
        return gone

    # What is told

    def families(self) -> list[Family]:
        """Return those of tasks, workers and queues, as they are now."""
        return self.recorder.families(self.receiver.state, self.watch.figures, groups=self.groups)

    async def scrape(self, *, accept: str, names: Collection[str], gzip: bool) -> tuple[str, list[bytes]]:
        """Return the content type and the text in parts; requests for the same form share a scrape in progress.

        :param accept: the header of that name.
        :param names: of samples; empty for all.
        :param gzip: whether to compress it.
        """
        encoder, content_type = _negotiate(accept)
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
        openmetrics = "openmetrics" in content_type
        compressor = zlib.compressobj(_LEVEL, wbits=_GZIP) if gzip else None
        parts = []
        async with self._rendering:
            for text in self._slices(encoder, names or None, openmetrics=openmetrics):
                data = text.encode()
                parts.append(compressor.compress(data) if compressor else data)
                # Pages are answered between slices
                await asyncio.sleep(0)
        if compressor:
            parts.append(compressor.flush())
        return parts

    def _slices(
        self, encoder: Callable[[Collector], bytes], names: Collection[str] | None, *, openmetrics: bool
    ) -> Iterator[str]:
        yield from render(self.families(), openmetrics=openmetrics, names=names)
        own = encoder(Filtered(self.own, names)).decode() if "self" in self.groups else ""
        yield own.removesuffix("# EOF\n")
        if openmetrics:
            yield "# EOF\n"

    def unready(self) -> list[str]:
        """Return why it is not ready; an empty list if it is."""
        reasons = [] if self.receiver.connected else ["not connected to the broker for events"]
        if problem := self.watch.problem:
            reasons.append(problem)
        return reasons


def _heard(worker: Any) -> float:
    return float(max(worker.heartbeats[-1:] or [worker.timestamp or 0]))


def _negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # prometheus_client compares whatever a client calls a version with numbers
        return choose_encoder("")
