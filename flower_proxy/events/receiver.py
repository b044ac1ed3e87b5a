"""Thread that receives events and passes them to the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kombu import Connection

from flower_proxy._flower import Events
from flower_proxy._timer import Timer
from flower_proxy.events.broker import back_off, connected, problem_of
from flower_proxy.events.listener import Listener
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.saved_state import SavedState
from flower_proxy.events.state import State
from flower_proxy.events.state_file import StateFile
from flower_proxy.events.stream import Stream
from flower_proxy.events.validation import REASONS

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Maximum number of events that wait for the event loop; further events are dropped."""

# Short, since events that workers send before the receiver reconnects are lost
_MAX_RECONNECT_INTERVAL = 2.0  # seconds
_FAILED = "processing_failed"
_MAX_SLICE = 0.005  # seconds for which events may block the event loop


class Receiver(Events):
    """Receives events and reconnects until stopped; the event loop processes the events in slices.

    Each event goes to Flower's state first, then to the listeners in order.

    :param args: passed to Flower's `Events`, like `kwargs`.
    :param max_tasks_in_memory: maximum number of tasks in the state.
    :param max_workers_in_memory: maximum number of workers in the state.
    :param listeners: process events after the state.
    :param on_reconnect: called in this thread after a reconnection; events may have been missed.
    :param max_waiting: maximum number of events that wait for the event loop.
    :ivar connected: whether the receiver is subscribed to events.
    :ivar received: number of valid events, including dropped ones.
    :ivar dropped: number of events dropped because too many were waiting.
    :ivar rejections: counts invalid events and messages.
    :ivar reconnects: number of reconnections.
    :ivar saved: whether the last attempt to save the state succeeded; True before the first.
    :ivar last_event: time of the last event, by `time.monotonic`; None before the first.
    """

    # Flower's constructor calls `load_state`
    _state_file: StateFile | None = None
    _loaded: SavedState | None = None

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
        self.state: State = State(**limits)
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None
        self.timer = Timer(self.on_enable_events, self.events_enable_interval / 1000)
        saves = self.persistent and self.state_save_interval
        self.state_save_timer = Timer(self.save_state, self.state_save_interval / 1000) if saves else None
        self.name = "events"
        self.connected = False
        self.received = 0
        self.dropped = 0
        self.rejections = Rejections("an event", (*REASONS, _FAILED))
        self.reconnects = 0
        self.saved = True
        self.last_event: float | None = None
        self._listeners = tuple(listeners)
        self._on_reconnect = on_reconnect
        self._was_connected = False
        self._stopping = threading.Event()
        self._waiting: deque[dict[str, Any]] = deque()
        self._max_waiting = max_waiting
        self._is_scheduled = False

    def stop(self) -> None:
        """End the thread, within a second unless the broker hangs, and save a persistent state."""
        self._stopping.set()
        super().stop()
        self.release()

    def release(self) -> None:
        """Release the lock of the state file."""
        if self._state_file is not None:
            self._state_file.release()

    def load_state(self) -> None:
        """Load the saved state, for validation by `_restore`."""
        self._state_file = StateFile(self.db, self.state_save_interval / 1000)
        self._loaded = self._state_file.load()

    def _restore(self, saved: SavedState) -> None:
        self.state.restore(saved)
        if saved.invalid:
            logger.warning(
                "Skipped %d invalid workers and tasks in %r; the first is %r",
                len(saved.invalid),
                self.db,
                saved.invalid[0],
            )

    def save_state(self) -> None:
        """Save the state to its file, if it is persistent."""
        if self._state_file is not None:
            self.saved = self._state_file.save(self.state, last=self._stopping.is_set())

    # In the thread

    def run(self) -> None:
        """Receive events until `stop`; after an error, reconnect."""
        intervals, is_logged = back_off(_MAX_RECONNECT_INTERVAL), False
        while not self._stopping.is_set():
            try:
                with connected(self.capp) as connection:
                    try:
                        self._receive(connection)
                    finally:
                        if self.connected:
                            self.connected, intervals, is_logged = False, back_off(_MAX_RECONNECT_INTERVAL), False
            except Exception as error:
                if not is_logged:
                    logger.warning("Lost the broker connection (%s); reconnecting", problem_of(error))
                is_logged = True
                logger.debug("Lost the broker connection", exc_info=True)
                self._stopping.wait(next(intervals))

    def _receive(self, connection: Connection) -> None:
        stream = Stream(
            connection,
            self.capp,
            rejections=self.rejections,
            on_ready=self.on_ready,
            on_event=self.on_event,
            is_stopping=self._stopping.is_set,
        )
        for _ in stream.consume(limit=None):
            pass

    def on_ready(self) -> None:
        """Record that the receiver is subscribed to events."""
        if self._was_connected:
            self.reconnects += 1
            logger.info("Reconnected to the broker")
            self._on_reconnect()
        self.connected = self._was_connected = True

    def on_event(self, event: dict[str, Any]) -> None:
        """Queue a valid event for the event loop; drop it if too many are waiting."""
        self.received += 1
        self.last_event = time.monotonic()
        if len(self._waiting) >= self._max_waiting:
            self.dropped += 1
            return
        self._waiting.append(event)
        self._schedule()

    def _schedule(self) -> None:
        # One callback for all waiting events; a second one, scheduled in a race of two threads, finds none left
        if not self._is_scheduled:
            self._is_scheduled = True
            self.io_loop.add_callback(self._process_waiting)

    # In the event loop

    def _process_waiting(self) -> None:
        # Reset before the queue is read, so that an event which arrives after the last read schedules another call
        self._is_scheduled = False
        end = time.perf_counter() + _MAX_SLICE
        while self._waiting:
            self.process(self._waiting.popleft())
            if time.perf_counter() >= end:
                self._schedule()
                return

    def process(self, event: dict[str, Any]) -> None:
        """Pass an event to the state, then to each listener.

        Events are passed one at a time, since listeners read the state right after the event. Exceptions are counted
        and logged. An event that the state fails to process reaches no listener; a failing listener does not affect
        the others.
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
        logger.debug("Failed to process an event", exc_info=error)

    async def on_enable_events(self) -> None:
        """Ask workers to send task events, while the broker is connected."""
        # Without a broker, the call blocks a thread and the end of the process (mher/flower#771)
        if self.connected:
            await super().on_enable_events()
