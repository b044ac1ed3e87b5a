"""The thread that receives events, and their way into the event loop."""

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
    :ivar rejections: the invalid events and messages.
    :ivar reconnects: how often events could arrive again after they could not.
    :ivar saved: whether the last attempt to save the state succeeded; True before the first.
    :ivar last_event: when the last one arrived, by `time.monotonic`; None before the first.
    """

    # Flower loads the state while it is made
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
        self._has_received = False
        self._stopping = threading.Event()
        self._waiting: deque[dict[str, Any]] = deque()
        self._max_waiting = max_waiting
        self._called = False

    def stop(self) -> None:
        """End the thread, within a second unless the broker keeps it waiting, and save the state if it is kept."""
        self._stopping.set()
        super().stop()
        self.release()

    def release(self) -> None:
        """Let another process, or another receiver, have the state file."""
        if self._state_file is not None:
            self._state_file.release()

    def load_state(self) -> None:
        """Load the state that was saved, and return none, as what was saved is validated first."""
        self._state_file = StateFile(self.db, self.state_save_interval / 1000)
        self._loaded = self._state_file.load()

    def _restore(self, saved: SavedState) -> None:
        self.state.restore(saved)
        if saved.invalid:
            logger.warning(
                "Left %d invalid workers and tasks of %r behind; the first is %r",
                len(saved.invalid),
                self.db,
                saved.invalid[0],
            )

    def save_state(self) -> None:
        if self._state_file is not None:
            self.saved = self._state_file.save(self.state, last=self._stopping.is_set())

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
        """Note that events can arrive."""
        if self._has_received:
            self.reconnects += 1
            logger.info("Events arrive again")
            self._on_reconnect()
        self.connected = self._has_received = True

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
