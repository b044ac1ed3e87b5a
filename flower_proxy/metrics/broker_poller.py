"""Thread that polls the broker for queue lengths and inspects the workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

from celery import Celery
from kombu import Connection

from flower_proxy.events.broker import (
    ANSWER_TIMEOUT,
    NO_ANSWER,
    Counted,
    back_off,
    connected,
    count,
    mailbox_of,
    problem_of,
)
from flower_proxy.events.control import ask
from flower_proxy.events.rejections import Rejections

logger = logging.getLogger(__name__)

MAX_QUEUES = 1000
"""Maximum number of queues; each takes a request to the broker."""

_MAX_PAUSE = 10.0  # seconds
_NOT_YET = "the broker has not answered yet"
_INSPECT_TIMEOUT = 1.0  # seconds
# Longer than any transport timeout plus `_INSPECT_TIMEOUT`, since not every kombu transport has timeouts
_POLL_TIMEOUT = 2 * ANSWER_TIMEOUT  # seconds
# Tasks move from left to right, so inspecting in this order misses none
_TASK_COMMANDS = ("scheduled", "reserved", "active")


@dataclass(frozen=True)
class QueueFigures:
    """Snapshot of the queues.

    :ivar lengths: ready messages by queue; empty while the broker does not answer.
    :ivar consumers: consumers by queue, counted by the broker; if the transport does not count them, the workers that
        consume from the queue. Empty while the broker does not answer.
    :ivar workers: workers that consume from a queue, by queue.
    :ivar processes: pool processes or threads of these workers, by queue.
    :ivar queues_of: queues that a worker consumes from, by worker.
    """

    lengths: Mapping[str, int] = field(default_factory=dict)
    consumers: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)
    queues_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Worker:
    queues: tuple[str, ...]
    processes: int


class BrokerPoller(threading.Thread):
    """Polls queue lengths and consumers; an unresponsive broker blocks only this thread.

    It polls the queues in `queues`, in the configuration, consumed by workers, and passed to `refresh`.

    :param capp: the Celery application whose broker is polled.
    :param queues: names of additional queues.
    :param workers: called in this thread, returns the names of the online workers.
    :param on_tasks: called in this thread with a worker, the ids of its scheduled, reserved and active tasks, and the
        `time.monotonic` time of the inspection.
    :param rejections: counts rejected replies of workers, by the reasons of `flower_proxy.events.replies`.
    :param interval: seconds between two polls of the broker.
    :param inspect_interval: seconds between two inspections of the workers; a new worker is inspected at the next poll.
    :ivar figures: the latest snapshot; replaced, never modified.
    :ivar answered_at: the `time.monotonic` time of the broker's last answer; None before the first one.
    """

    def __init__(
        self,
        capp: Celery,
        *,
        queues: Sequence[str] = (),
        workers: Callable[[], Collection[str]],
        on_tasks: Callable[[str, set[str], float], None],
        rejections: Rejections,
        interval: float = 5.0,
        inspect_interval: float = 15.0,
    ) -> None:
        super().__init__(name="broker-poller", daemon=True)
        self.figures = QueueFigures()
        self.answered_at: float | None = None
        self._capp = capp
        self._extra_queues = tuple(queues)
        self._online_workers = workers
        self._on_tasks, self._rejections = on_tasks, rejections
        self._interval = interval
        self._inspect_interval = inspect_interval
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._counted_at = 0.0
        self._poll_ended = _pending()
        self._requested_queues: tuple[str, ...] = ()
        self._problem: str | None = _NOT_YET
        self._polling_since: float | None = None
        self._workers: dict[str, _Worker] = {}
        self._inspected: set[str] = set()
        self._queues: dict[str, None] = {}
        self._inspect_at = 0.0

    @property
    def problem(self) -> str | None:
        """The reason why the broker does not answer, a fixed phrase without any part of its URL; None if it does."""
        since = self._polling_since
        if since is not None and time.monotonic() - since > _POLL_TIMEOUT:
            return NO_ANSWER
        return self._problem

    def ask_workers(self) -> None:
        """Inspect all workers at the next poll, even before `inspect_interval` has passed."""
        self._inspect_at = 0.0

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it; a pending answer of the broker delays the end."""
        self._stopping.set()
        self._wake.set()

    async def refresh(self, names: Iterable[str], *, timeout: float = ANSWER_TIMEOUT) -> QueueFigures:
        """Poll the broker now; concurrent requests share a poll.

        :param names: queues to include in this and later polls.
        :param timeout: maximum number of seconds to wait.
        :returns: figures counted after the call, or the latest ones after `timeout` or if the poll fails.
        """
        self._requested_queues = tuple(names)
        requested_at = time.monotonic()
        self._wake.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._counted_after(requested_at), timeout)
        return self.figures

    async def _counted_after(self, moment: float) -> None:
        while True:
            # Read first, so that a poll that ends during the checks is not awaited
            ended = self._poll_ended
            if self._counted_at >= moment or self.problem not in (None, _NOT_YET) or not self.is_alive():
                return
            await asyncio.wrap_future(ended)

    def _end_poll(self) -> None:
        ended, self._poll_ended = self._poll_ended, _pending()
        ended.set_result(None)

    def run(self) -> None:
        """Poll until `stop`; reconnect with back-off after errors."""
        pauses = back_off(_MAX_PAUSE)
        while not self._stopping.is_set():
            self._polling_since = time.monotonic()
            try:
                with connected(self._capp) as connection:
                    try:
                        self._poll(connection)
                    except Exception as error:
                        pauses = back_off(_MAX_PAUSE)
                        # Closing the connection may take another timeout, so the failure is published first
                        self._fail(error)
                        raise
            except Exception as error:
                self._fail(error)
                self._stopping.wait(next(pauses))

    def _fail(self, error: Exception) -> None:
        problem = problem_of(error)
        if problem != self._problem:
            logger.warning("Failed to poll the queues (%s); retrying", problem)
        logger.debug("Failed to poll the queues", exc_info=error)
        self._polling_since, self._problem = None, problem
        # The last inspection may have been lost
        self.ask_workers()
        self.figures = _summarize({}, self._known_workers(self._online_workers()), counts_consumers=False)
        self._end_poll()

    def _poll(self, connection: Connection) -> None:
        counts_consumers = connection.transport.driver_type == "amqp"
        while not self._stopping.is_set():
            self._polling_since = time.monotonic()
            online = self._online_workers()
            self._inspect(connection, online)
            workers = self._known_workers(online)
            counted_at = time.monotonic()
            counted = self._count(connection, workers)
            self.figures = _summarize(counted, workers, counts_consumers=counts_consumers)
            self._counted_at = counted_at
            self.answered_at = time.monotonic()
            if self._problem not in (None, _NOT_YET):
                logger.info("Resumed polling the queues")
            self._polling_since = self._problem = None
            self._end_poll()
            self._wake.wait(self._interval)
            self._wake.clear()

    # Queues

    def _count(self, connection: Connection, workers: Mapping[str, _Worker]) -> dict[str, Counted]:
        consumed = chain.from_iterable(worker.queues for worker in workers.values())
        found = chain(self._extra_queues, list(self._capp.amqp.queues), consumed, self._requested_queues)
        # Queues that lost their last consumer are kept, since messages pile up there
        self._queues = dict.fromkeys(islice(dict.fromkeys(chain(found, self._queues)), MAX_QUEUES))
        counted = {name: count(connection, name) for name in self._queues}
        return {name: counted for name, counted in counted.items() if counted is not None}

    # Workers

    def _known_workers(self, online: Collection[str]) -> dict[str, _Worker]:
        # A worker that is too busy to reply still consumes from the queues of its last reply
        self._workers = {name: self._workers[name] for name in online if name in self._workers}
        return self._workers

    def _inspect(self, connection: Connection, online: Collection[str]) -> None:
        now = time.monotonic()
        # A worker that was offline may have restarted with other queues
        self._inspected &= set(online)
        if now < self._inspect_at and self._inspected.issuperset(online):
            return
        self._inspect_at, self._inspected = now + self._inspect_interval, set(online)
        inspect = partial(
            ask, mailbox_of(self._capp, connection), timeout=_INSPECT_TIMEOUT, rejections=self._rejections
        )
        queues = inspect("active_queues", destination=online)
        # Workers that did not reply to the first command would cost another timeout
        replies = inspect("stats", destination=queues)
        for name, stats in replies.items():
            self._workers[name] = _Worker(tuple(queue["name"] for queue in queues[name]), _processes(stats))
        inspected_at = time.monotonic()
        tasks = [inspect(command, destination=queues) for command in _TASK_COMMANDS]
        for name in queues:
            if all(name in replies for replies in tasks):
                requests = chain.from_iterable(replies[name] for replies in tasks)
                self._on_tasks(name, {request.get("request", request)["id"] for request in requests}, inspected_at)


def _pending() -> Future[None]:
    """Return a running future: no waiter can cancel it for the others."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


def _processes(stats: Mapping[str, Any]) -> int:
    pool = stats.get("pool", {})
    processes = pool.get("processes", pool.get("max-concurrency"))
    return len(processes) if isinstance(processes, list) else int(processes or 0)


def _summarize(
    counted: Mapping[str, Counted], workers: Mapping[str, _Worker], *, counts_consumers: bool
) -> QueueFigures:
    """Combine broker and worker data; `counts_consumers` is whether the broker counts consumers."""
    consuming: Counter[str] = Counter()
    processes: Counter[str] = Counter()
    for worker in workers.values():
        consuming.update(worker.queues)
        processes.update(dict.fromkeys(worker.queues, worker.processes))
    # Workers may consume from more queues than are counted
    names = dict.fromkeys(islice(dict.fromkeys(chain(counted, consuming)), MAX_QUEUES))
    return QueueFigures(
        lengths={name: found.messages for name, found in counted.items()},
        consumers={name: found.consumers if counts_consumers else consuming[name] for name, found in counted.items()},
        workers={name: consuming[name] for name in names},
        processes={name: processes[name] for name in names},
        queues_of={name: worker.queues for name, worker in workers.items()},
    )
