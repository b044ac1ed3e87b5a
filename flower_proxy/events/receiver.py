"""The thread that receives events, and their way into the event loop."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from celery.events import EventReceiver
from flower.events import Events
from kombu import Connection

from flower_proxy.events.broker import back_off, connected, mailbox_of, problem_of
from flower_proxy.events.task_events import Unheard

logger = logging.getLogger(__name__)

MOST_WAITING = 50_000
"""How many events may wait for the event loop; what comes beyond is dropped."""

# Seconds; what workers tell between their reconnecting and ours is lost (P30)
_LONGEST_PAUSE = 2.0
_SLICE = 0.005  # seconds that the event loop gives to events before it turns to the rest


class Receiver(Events):
    """Receives events for as long as the process lives, and lets the event loop take them in by slices (P9, P31).

    :param args: as for `flower.events.Events`, like `kwargs`.
    :param most_waiting: how many events may wait for the event loop.
    :ivar connected: whether events can arrive at this moment.
    :ivar received: how many events have arrived, with those that were dropped.
    :ivar dropped: how many were dropped because too many were waiting.
    :ivar reconnects: how often events could arrive again after they could not.
    :ivar last_event: when the last one arrived, by `time.monotonic`; None before the first.
    :ivar on_reconnect: called in this thread when events can arrive again; some may have been missed.
    :ivar unheard: tells which workers run tasks and send no events about them.
    :ivar on_delay: called in the event loop with the seconds from an event's timestamp to its handling, never below 0.
    """

    def __init__(self, *args: Any, most_waiting: int = MOST_WAITING, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = "events"
        self.connected = False
        self.received = 0
        self.dropped = 0
        self.reconnects = 0
        self.last_event: float | None = None
        self.on_reconnect: Callable[[], None] | None = None
        self.on_delay: Callable[[float], None] | None = None
        self.unheard = Unheard(self.state.workers.limit)
        self._has_received = False
        self._stopping = threading.Event()
        self._waiting: deque[dict[str, Any]] = deque()
        self._most_waiting = most_waiting
        self._called = False

    def stop(self) -> None:
        """End the thread, within a second unless the broker keeps it waiting, and save the state if it is kept."""
        self._stopping.set()
        super().stop()

    # In the thread

    def run(self) -> None:
        pauses, missed = back_off(_LONGEST_PAUSE), False
        while not self._stopping.is_set():
            try:
                with connected(self.capp) as connection:
                    try:
                        self._receive(connection)
                    finally:
                        if self.connected:
                            self.connected, pauses, missed = False, back_off(_LONGEST_PAUSE), False
            except Exception as error:
                if not missed:
                    logger.warning("No events arrive: %s; trying again and again", problem_of(error))
                missed = True
                logger.debug("No events arrive", exc_info=True)
                self._stopping.wait(next(pauses))

    def _receive(self, connection: Connection) -> None:
        stream = _Stream(connection, self)
        for _ in stream.consume(limit=None):
            pass

    def on_ready(self) -> None:
        """Note that events can arrive."""
        if self._has_received:
            self.reconnects += 1
            logger.info("Events arrive again")
            if self.on_reconnect is not None:
                self.on_reconnect()
        self.connected = self._has_received = True

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def on_event(self, event: dict[str, Any]) -> None:
        self.received += 1
        self.last_event = time.monotonic()
        if len(self._waiting) >= self._most_waiting:
            self.dropped += 1
            return
        self._waiting.append(event)
        self._call()

    def _call(self) -> None:
        # One callback for all that wait. Two threads may both find none under way: then one of two finds nothing left
        if not self._called:
            self._called = True
            self.io_loop.add_callback(self._take_in)

    # In the event loop

    def _take_in(self) -> None:
        # Before the first look, so that what comes after the last one calls again
        self._called = False
        end = time.perf_counter() + _SLICE
        while self._waiting:
            self._take(self._waiting.popleft())
            if time.perf_counter() >= end:
                self._call()
                return

    def _take(self, event: dict[str, Any]) -> None:
        try:
            self.state.event(event)
            self.unheard.note(event)
            if self.on_delay is not None and "timestamp" in event:
                self.on_delay(max(0.0, time.time() - event["timestamp"]))
        except Exception:
            # What comes after it counts all the same
            logger.exception("An event that cannot be taken in")

    async def on_enable_events(self) -> None:
        # Without a broker it would keep a thread, and the end of the process, waiting (P10)
        if self.connected:
            await super().on_enable_events()


class _Stream(EventReceiver):
    """Consumes events over one connection, until that fails or its receiver stops."""

    def __init__(self, connection: Connection, receiver: Receiver) -> None:
        super().__init__(connection, handlers={"*": receiver.on_event}, app=receiver.capp)
        self._receiver = receiver

    @property
    def should_stop(self) -> bool:
        return self._receiver.stopping

    @contextlib.contextmanager
    def establish_connection(self) -> Iterator[Connection]:
        # In place of a second connection, which would be tried for ever (P9)
        yield self.connection

    def on_consume_ready(self, connection: Connection, *args: Any, **kwargs: Any) -> None:
        # Redis subscribes when it first looks for messages; the heartbeats asked for next would be missed
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=0.01)
        self._receiver.on_ready()
        super().on_consume_ready(connection, *args, **kwargs)

    def wakeup_workers(self, channel: Any = None) -> None:
        mailbox_of(self.app, self.connection).abcast("heartbeat")
