"""Processing of events in the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery
from tornado.ioloop import IOLoop

from flower_proxy.events.buffer import Batch, Decode, EventBuffer, Raw
from flower_proxy.events.listener import Listener
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.state import State
from flower_proxy.events.validation import REASONS, UNDECODABLE, InvalidEventError, validate

logger = logging.getLogger(__name__)

_FAILED = "processing_failed"
_MAX_SLICE = 0.005  # seconds for which events may block the event loop
_NOTHING = object()


class Dispatcher:
    """Decodes and validates messages in slices, and passes each event to the state, then to the listeners in order.

    No exception, of whichever step, stops it.

    :param capp: the Celery application, whose logical clock follows the events.
    :param io_loop: the event loop.
    :param state: processes events first.
    :param listeners: process events after the state.
    :param max_size: maximum size of waiting messages in bytes.
    :ivar rejections: counts invalid events and messages.
    :ivar is_paused: whether messages wait, because the saved state is being loaded.
    :ivar last_event: time of the last event, by `time.monotonic`; None before the first.
    """

    def __init__(
        self, capp: Celery, io_loop: IOLoop, state: State, *, listeners: Sequence[Listener], max_size: int
    ) -> None:
        self.rejections = Rejections("an event", (*REASONS, _FAILED))
        self.is_paused = False
        self.last_event: float | None = None
        self._clock = capp.clock
        self._io_loop = io_loop
        self._state = state
        self._listeners = [listener.on_event for listener in listeners]
        self._buffer = EventBuffer(max_size)
        self._is_scheduled = False
        self._processed = 0
        # The rest of the messages that arrived together
        self._received = 0.0
        self._parts: Iterator[object] = iter(())
        # Of the clock, which takes a lock, until the end of the slice
        self._logical_time = 0

    @property
    def received(self) -> int:
        """The number of valid events, including dropped ones."""
        return self._processed + self._buffer.dropped

    @property
    def dropped(self) -> int:
        """The number of events dropped because too many messages were waiting."""
        return self._buffer.dropped

    # In the thread of the source

    def put(self, decode: Decode, messages: Sequence[Raw]) -> None:
        """Queue messages for the event loop; drop those that exceed the limit.

        :param decode: decodes each of them; raises any exception if it is invalid.
        """
        try:
            self._buffer.put(decode, messages)
        except Exception as error:
            self._fail(error)
        self._schedule()

    def _schedule(self) -> None:
        # One callback for all waiting messages; a second one, scheduled in a race of two threads, finds none left
        if self._is_scheduled:
            return
        self._is_scheduled = True
        try:
            self._io_loop.add_callback(self.process)
        except Exception as error:
            self._is_scheduled = False
            self._fail(error)

    # In the event loop

    def resume(self) -> None:
        """Process the messages that have waited, and those that follow."""
        self.is_paused = False
        self._schedule()

    def process(self) -> None:
        """Process waiting messages for a few milliseconds, then the rest in further iterations of the event loop."""
        # Reset before the buffer is read, so that a message which arrives after the last read schedules another call
        self._is_scheduled = False
        if self.is_paused:
            return
        is_done, processed, self._logical_time = False, self._processed, self._clock.value
        try:
            is_done = self._process_until(time.perf_counter() + _MAX_SLICE)
        finally:
            if not is_done:
                self._schedule()
            if self._processed > processed:
                self.last_event = time.monotonic()
                self._adjust_clock()

    def _process_until(self, end: float) -> bool:
        """Process messages.

        :returns: whether none is left.
        """
        while time.perf_counter() < end:
            for part in self._parts:
                if part is not _NOTHING:
                    self._process(part)
                if time.perf_counter() >= end:
                    return False
            batch = self._buffer.pop()
            if batch is None:
                return True
            self._received, self._parts = batch.received, self._decoded(batch)
        return False

    def _decoded(self, batch: Batch) -> Iterator[object]:
        """Yield the events of messages; `_NOTHING` for a message that cannot be decoded."""
        decode = batch.decode
        for raw in batch.messages:
            try:
                body = decode(raw)
            except Exception as error:
                self.rejections.count(UNDECODABLE, f"{type(error).__name__}: {error}")
                yield _NOTHING
            else:
                if type(body) is list:
                    yield from body
                else:
                    yield body

    def _process(self, part: object) -> None:
        try:
            event = validate(part)
            self._stamp(event)
        except InvalidEventError as error:
            self.rejections.count(error.reason, str(error))
        except Exception as error:
            self._fail(error)
        else:
            self._processed += 1
            self.dispatch(event)

    def _stamp(self, event: dict[str, Any]) -> None:
        """Set the logical time, where it is missing, and the time of arrival, as Celery's receiver does."""
        event["local_received"] = self._received
        now = self._logical_time
        if event["type"] == "task-sent":
            # Clients do not synchronize their clocks, so such an event comes right before the next one
            clock = event["clock"] = (now or 1) - 1
        elif "clock" in event:
            clock = event["clock"]
        else:
            event["clock"] = self._logical_time = now + 1
            return
        self._logical_time = (clock if clock > now else now) + 1

    def _adjust_clock(self) -> None:
        try:
            self._clock.adjust(self._logical_time - 1)
        except Exception as error:
            self._fail(error)

    def dispatch(self, event: dict[str, Any]) -> None:
        """Pass an event to the state, then to each listener.

        Exceptions are counted and logged. An event that the state fails to process reaches no listener; a failing
        listener does not affect the others.
        """
        try:
            self._state.event(event)
        except Exception as error:
            self._fail(error)
            return
        for on_event in self._listeners:
            try:
                on_event(event)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.rejections.count(_FAILED, f"{type(error).__name__}: {error}")
        logger.debug("Failed to process an event", exc_info=error)
