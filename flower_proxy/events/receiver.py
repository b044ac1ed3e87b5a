"""The thread that receives events, and their way into the event loop."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from celery.events import EventReceiver
from kombu import Connection
from kombu.transport import virtual

from flower_proxy._flower import Events
from flower_proxy.events.broker import back_off, connected, mailbox_of, problem_of
from flower_proxy.events.listener import Listener
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.state import State
from flower_proxy.events.validation import REASONS, UNDECODABLE, InvalidEventError, validate

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""How many events may wait for the event loop; further ones are dropped."""

# Seconds; events that workers send between their reconnecting and ours are lost (P30)
_MAX_PAUSE = 2.0
_FAILED = "processing_failed"
_SLICE = 0.005  # seconds that the event loop gives to events before it turns to the rest


class Receiver(Events):
    """Receives events as long as the process lives; the event loop processes them in slices (P9, P31).

    Each event goes to Flower's state first, then to the listeners in their order.

    :param args: as for Flower's `Events`, like `kwargs`.
    :param max_tasks_in_memory: how many tasks the state keeps.
    :param max_workers_in_memory: how many workers the state keeps.
    :param listeners: process the events that the state has accepted.
    :param on_reconnect: called in this thread when events can arrive again; some may have been missed.
    :param max_waiting: how many events may wait for the event loop.
    :ivar connected: whether events can arrive at this moment.
    :ivar received: how many valid events have arrived, including those that were dropped.
    :ivar dropped: how many were dropped because too many were waiting.
    :ivar rejections: the events and messages that were invalid.
    :ivar reconnects: how often events could arrive again after they could not.
    :ivar last_event: when the last one arrived, by `time.monotonic`; None before the first.
    """

    def __init__(
        self,
        *args: Any,
        max_tasks_in_memory: int,
        max_workers_in_memory: int = 5000,
        listeners: Sequence[Listener] = (),
        on_reconnect: Callable[[], None] = lambda: None,
        max_waiting: int = MAX_WAITING,
        **kwargs: Any,
    ) -> None:
        limits = {"max_workers_in_memory": max_workers_in_memory, "max_tasks_in_memory": max_tasks_in_memory}
        super().__init__(*args, **limits, **kwargs)
        self.state: State = State.restored(self.state, **limits)
        self.name = "events"
        self.connected = False
        self.received = 0
        self.dropped = 0
        self.rejections = Rejections("an event", (*REASONS, _FAILED))
        self.reconnects = 0
        self.last_event: float | None = None
        self._listeners = tuple(listeners)
        self._on_reconnect = on_reconnect
        self._has_received = False
        self._stopping = threading.Event()
        self._waiting: deque[dict[str, Any]] = deque()
        self._max_waiting = max_waiting
        self._called = False

    def stop(self) -> None:
        """End the thread, within a second unless the broker keeps it waiting, and save the state if it is kept."""
        self._stopping.set()
        super().stop()

    # In the thread

    def run(self) -> None:
        pauses, missed = back_off(_MAX_PAUSE), False
        while not self._stopping.is_set():
            try:
                with connected(self.capp) as connection:
                    try:
                        self._receive(connection)
                    finally:
                        if self.connected:
                            self.connected, pauses, missed = False, back_off(_MAX_PAUSE), False
            except Exception as error:
                if not missed:
                    logger.warning("No events arrive: %s; trying again and again", problem_of(error))
                missed = True
                logger.debug("No events arrive", exc_info=True)
                self._stopping.wait(next(pauses))

    def _receive(self, connection: Connection) -> None:
        stream = Stream(connection, self)
        for _ in stream.consume(limit=None):
            pass

    def on_ready(self) -> None:
        """Note that events can arrive."""
        if self._has_received:
            self.reconnects += 1
            logger.info("Events arrive again")
            self._on_reconnect()
        self.connected = self._has_received = True

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def on_event(self, event: dict[str, Any]) -> None:
        self.received += 1
        self.last_event = time.monotonic()
        if len(self._waiting) >= self._max_waiting:
            self.dropped += 1
            return
        self._waiting.append(event)
        self._call()

    def _call(self) -> None:
        # One callback for all that wait. Two threads may both find none under way: then one of two finds nothing left
        if not self._called:
            self._called = True
            self.io_loop.add_callback(self._process_waiting)

    # In the event loop

    def _process_waiting(self) -> None:
        # Reset before the queue is read, so that an event which arrives after the last read schedules another call
        self._called = False
        end = time.perf_counter() + _SLICE
        while self._waiting:
            self.process(self._waiting.popleft())
            if time.perf_counter() >= end:
                self._call()
                return

    def process(self, event: dict[str, Any]) -> None:
        """Hand an event to the state, and then to the listeners.

        One at a time, since the state is to be read as it is right after the event. Exceptions are counted and logged.
        An event that the state fails to process reaches no listener; a listener that fails keeps it from no other.
        """
        try:
            self.state.event(event)
        except Exception as error:
            self._fail(error)
            return
        batch = (event,)
        for listener in self._listeners:
            try:
                listener.on_events(batch)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.rejections.count(_FAILED, f"{type(error).__name__}: {error}")
        logger.debug("Failed to process an event", exc_info=True)

    async def on_enable_events(self) -> None:
        # Without a broker it would keep a thread, and the end of the process, waiting (P10)
        if self.connected:
            await super().on_enable_events()


class Stream(EventReceiver):
    """Consumes events over one connection, until that fails or its receiver stops.

    Invalid messages and events are rejected; none of them ends the connection.
    """

    def __init__(self, connection: Connection, receiver: Receiver) -> None:
        super().__init__(connection, app=receiver.capp)
        self._receiver = receiver

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        if isinstance(channel, virtual.Channel):
            channel.Message = _tolerant(type(channel).Message)
        return list(super().get_consumers(consumer, channel))

    @contextlib.contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[Any]:
        logger_of_redis = logging.getLogger("kombu.transport.redis")
        logger_of_redis.addFilter(self._count_undecodable)
        try:
            with super().consumer_context(**kwargs) as context:
                yield context
        finally:
            logger_of_redis.removeFilter(self._count_undecodable)

    def _count_undecodable(self, record: logging.LogRecord) -> bool:
        # The only trace of a message that is no JSON; kombu logs each with a traceback
        if record.thread != self._receiver.ident or not record.msg.startswith("Cannot process event on channel"):
            return True
        self._receiver.rejections.count(UNDECODABLE, "the message is no JSON")
        return False

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        # In place of a log line for each. It need not be acknowledged, as none is
        self._receiver.rejections.count(UNDECODABLE, f"{type(exc).__name__}: {exc}")

    def _receive(self, body: object, message: Any = None) -> None:
        for part in body if type(body) is list else [body]:
            try:
                event = validate(part)
            except InvalidEventError as error:
                self._receiver.rejections.count(error.reason, str(error))
            else:
                self._receiver.on_event(self.event_from_message(event, localize=False)[1])

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


@lru_cache
def _tolerant(kind: type[virtual.Message]) -> type[virtual.Message]:
    """Return a class of messages that are undecodable, where the given one fails, if their envelope is invalid."""

    class Tolerant(kind):
        def __init__(self, payload: Any, **kwargs: Any) -> None:
            try:
                super().__init__(payload, **kwargs)
            except Exception:
                super().__init__({"properties": {"delivery_tag": None}}, **kwargs)
                # Raised when the message is decoded, as for a body that cannot be
                self.errors.append(sys.exc_info())

    return Tolerant
