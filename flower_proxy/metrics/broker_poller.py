"""The thread that polls the broker for its queues, and the workers for what they have (P4)."""

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
_WORKERS_TIMEOUT = 1.0  # seconds
# Beyond what a question may take where it is given up in time, the workers' seconds included
_PATIENCE = 2 * ANSWER_TIMEOUT
# A task moves from left to right, so that whoever asks in this order misses none
_HOLDS = ("scheduled", "reserved", "active")


@dataclass(frozen=True)
class QueueFigures:
    """What is known about queues.

    :ivar lengths: messages that wait, by queue; empty while the broker does not answer.
    :ivar consumers: how many consume a queue, by queue, as the broker says; where it does not say, the workers that
        consume it. Empty while the broker does not answer.
    :ivar workers: how many workers consume a queue, by queue.
    :ivar processes: how many processes, or threads, these have, by queue.
    :ivar queues_of: the queues that a worker consumes, by worker.
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
    """Polls the lengths and consumers of queues. A broker that hangs blocks only this thread.

    The queues are those given, those configured, those that workers consume, and those of `refresh`.

    :param capp: the Celery application whose broker is polled.
    :param queues: names of queues in addition to those that are found.
    :param workers: called in this thread, returns the names of the workers that are online.
    :param on_held: called in this thread with a worker, the ids of all the tasks it has been given and not finished,
        and when it was asked, by `time.monotonic`.
    :param rejections: counts the replies of workers that are rejected, by the reasons of
        `flower_proxy.events.replies`.
    :param interval: seconds between two polls of the broker.
    :param inspect_every: seconds between two inspections of the workers; a new one is inspected at the next poll.
    :ivar figures: the latest; replaced as a whole, never changed.
    :ivar answered_at: when the broker last answered, by `time.monotonic`; None before the first time.
    """

    def __init__(
        self,
        capp: Celery,
        *,
        queues: Sequence[str] = (),
        workers: Callable[[], Collection[str]],
        on_held: Callable[[str, set[str], float], None],
        rejections: Rejections,
        interval: float = 5.0,
        inspect_every: float = 15.0,
    ) -> None:
        super().__init__(name="broker-poller", daemon=True)
        self.figures = QueueFigures()
        self.answered_at: float | None = None
        self._capp = capp
        self._given = tuple(queues)
        self._alive = workers
        self._on_held, self._rejections = on_held, rejections
        self._interval = interval
        self._inspect_every = inspect_every
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._counted_at = 0.0
        self._ended = _pending()
        self._requested: tuple[str, ...] = ()
        self._problem: str | None = _NOT_YET
        self._asking_since: float | None = None
        self._workers: dict[str, _Worker] = {}
        self._asked: set[str] = set()
        self._queues: dict[str, None] = {}
        self._inspect_at = 0.0

    @property
    def problem(self) -> str | None:
        """What is wrong with the broker, as one of a few phrases without any part of its URL; None if it answers."""
        since = self._asking_since
        if since is not None and time.monotonic() - since > _PATIENCE:
            return NO_ANSWER
        return self._problem

    def ask_workers(self) -> None:
        """Inspect all workers at the next poll, even if `inspect_every` is not over."""
        self._inspect_at = 0.0

    def stop(self) -> None:
        """End the thread, at once unless the broker keeps it waiting; does not wait for that."""
        self._stopping.set()
        self._wake.set()

    async def refresh(self, names: Iterable[str], *, timeout: float = ANSWER_TIMEOUT) -> QueueFigures:
        """Poll the broker now; requests that wait at the same time share a poll.

        :param names: queues to count too, from now on.
        :param timeout: seconds to wait at most.
        :returns: figures counted after the call; the latest, if `problem` says why or the broker takes longer.
        """
        self._requested = tuple(names)
        asked_at = time.monotonic()
        self._wake.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._counted_after(asked_at), timeout)
        return self.figures

    async def _counted_after(self, moment: float) -> None:
        while True:
            # Read first, so that a poll which ends during the checks is not waited for
            ended = self._ended
            if self._counted_at >= moment or self.problem not in (None, _NOT_YET) or not self.is_alive():
                return
            await asyncio.wrap_future(ended)

    def _end_poll(self) -> None:
        ended, self._ended = self._ended, _pending()
        ended.set_result(None)

    def run(self) -> None:
        pauses = back_off(_MAX_PAUSE)
        while not self._stopping.is_set():
            self._asking_since = time.monotonic()
            try:
                with connected(self._capp) as connection:
                    try:
                        self._watch(connection)
                    except Exception as error:
                        pauses = back_off(_MAX_PAUSE)
                        # Now, as to close the connection may take as long again
                        self._fail(error)
                        raise
            except Exception as error:
                self._fail(error)
                self._stopping.wait(next(pauses))

    def _fail(self, error: Exception) -> None:
        problem = problem_of(error)
        if problem != self._problem:
            logger.warning("No queue lengths: %s; trying again and again", problem)
        logger.debug("No queue lengths", exc_info=True)
        self._asking_since, self._problem = None, problem
        # Who was asked last may not have got the question
        self.ask_workers()
        self.figures = _sum_up({}, self._known_workers(self._alive()), told=False)
        self._end_poll()

    def _watch(self, connection: Connection) -> None:
        told = connection.transport.driver_type == "amqp"
        while not self._stopping.is_set():
            self._asking_since = time.monotonic()
            alive = self._alive()
            self._inspect(connection, alive)
            workers = self._known_workers(alive)
            counted_at = time.monotonic()
            self.figures = _sum_up(self._count(connection, workers), workers, told=told)
            self._counted_at = counted_at
            self.answered_at = time.monotonic()
            if self._problem not in (None, _NOT_YET):
                logger.info("The broker answers again")
            self._asking_since = self._problem = None
            self._end_poll()
            self._wake.wait(self._interval)
            self._wake.clear()

    # Queues

    def _count(self, connection: Connection, workers: Mapping[str, _Worker]) -> dict[str, Counted]:
        consumed = chain.from_iterable(worker.queues for worker in workers.values())
        found = chain(self._given, list(self._capp.amqp.queues), consumed, self._requested)
        # Also those that nobody consumes any more: there it is that messages pile up
        self._queues = dict.fromkeys(islice(dict.fromkeys(chain(found, self._queues)), MAX_QUEUES))
        counted = {name: count(connection, name) for name in self._queues}
        return {name: counted for name, counted in counted.items() if counted is not None}

    # Workers

    def _known_workers(self, alive: Collection[str]) -> dict[str, _Worker]:
        # One that is too busy to answer still consumes what it said before
        self._workers = {name: self._workers[name] for name in alive if name in self._workers}
        return self._workers

    def _inspect(self, connection: Connection, alive: Collection[str]) -> None:
        now = time.monotonic()
        # One that is back under its name is a new one
        self._asked &= set(alive)
        if now < self._inspect_at and self._asked.issuperset(alive):
            return
        self._inspect_at, self._asked = now + self._inspect_every, set(alive)
        question = partial(
            ask, mailbox_of(self._capp, connection), timeout=_WORKERS_TIMEOUT, rejections=self._rejections
        )
        queues = question("active_queues", destination=alive)
        # Who did not answer the first question is not waited for again
        stats = question("stats", destination=queues)
        for name, told in stats.items():
            self._workers[name] = _Worker(tuple(queue["name"] for queue in queues[name]), _processes(told))
        asked_at = time.monotonic()
        held = [question(command, destination=queues) for command in _HOLDS]
        for name in queues:
            if all(name in answers for answers in held):
                requests = chain.from_iterable(answers[name] for answers in held)
                self._on_held(name, {request.get("request", request)["id"] for request in requests}, asked_at)


def _pending() -> Future[None]:
    """Return a future that those who wait for it cannot cancel for the others."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


def _processes(stats: Mapping[str, Any]) -> int:
    pool = stats.get("pool", {})
    processes = pool.get("processes", pool.get("max-concurrency"))
    return len(processes) if isinstance(processes, list) else int(processes or 0)


def _sum_up(counted: Mapping[str, Counted], workers: Mapping[str, _Worker], *, told: bool) -> QueueFigures:
    """Sum up what is known; `told` is whether the broker knows the consumers."""
    consuming: Counter[str] = Counter()
    processes: Counter[str] = Counter()
    for worker in workers.values():
        consuming.update(worker.queues)
        processes.update(dict.fromkeys(worker.queues, worker.processes))
    # Workers may name more queues than are counted
    names = dict.fromkeys(islice(dict.fromkeys(chain(counted, consuming)), MAX_QUEUES))
    return QueueFigures(
        lengths={name: found.messages for name, found in counted.items()},
        consumers={name: found.consumers if told else consuming[name] for name, found in counted.items()},
        workers={name: consuming[name] for name in names},
        processes={name: processes[name] for name in names},
        queues_of={name: worker.queues for name, worker in workers.items()},
    )
