"""Thread that receives messages with events, and reconnects."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from kombu import Connection

from flower_proxy._flower import Events
from flower_proxy._timer import Timer
from flower_proxy.events.broker import back_off, connected, problem_of
from flower_proxy.events.dispatcher import Dispatcher
from flower_proxy.events.listener import Listener
from flower_proxy.events.source import source_for
from flower_proxy.events.state import State

logger = logging.getLogger(__name__)

EVENTS_BUFFER = 64 * 10**6
"""Default maximum size of the messages that wait for the event loop, in bytes."""

# Short, since events that workers send before the receiver reconnects are lost
_MAX_RECONNECT_INTERVAL = 2.0  # seconds


class Receiver(Events):
    """Receives messages and reconnects until stopped; the dispatcher processes their events in the event loop.

    :param args: passed to Flower's `Events`, like `kwargs`.
    :param max_tasks_in_memory: maximum number of tasks in the state.
    :param max_workers_in_memory: maximum number of workers in the state.
    :param listeners: process events after the state.
    :param on_reconnect: called in this thread after a reconnection; events may have been missed.
    :param silent_workers: called regularly; returns the names of workers to ask for task events, None for all.
    :param events_buffer: maximum size of the messages that wait for the event loop, in bytes.
    :ivar dispatcher: decodes the messages and passes their events to the state and the listeners.
    :ivar connected: whether the receiver is subscribed to events.
    :ivar reconnects: number of reconnections.
    """

    def __init__(
        self,
        *args: Any,
        max_tasks_in_memory: int,
        max_workers_in_memory: int = 5000,
        listeners: Sequence[Listener] = (),
        on_reconnect: Callable[[], None] = lambda: None,
        events_buffer: int = EVENTS_BUFFER,
        silent_workers: Callable[[], Collection[str] | None] = lambda: None,
        **kwargs: Any,
    ) -> None:
        limits = {"max_workers_in_memory": max_workers_in_memory, "max_tasks_in_memory": max_tasks_in_memory}
        super().__init__(*args, **limits, **kwargs)
        self.state: State = State(**limits)
        self.timer = Timer(self.on_enable_events, self.events_enable_interval / 1000)
        self.name = "events"
        self.connected = False
        self.dispatcher = Dispatcher(self.capp, self.io_loop, self.state, listeners=listeners, max_size=events_buffer)
        self.reconnects = 0
        self._on_reconnect, self._silent_workers = on_reconnect, silent_workers
        self._was_connected = False
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread, within a second unless the broker hangs."""
        self._stopping.set()
        super().stop()

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
        kind = source_for(connection)
        if not self._was_connected:
            logger.info("Receiving events through %s", kind.name)
        kind(
            connection,
            self.capp,
            rejections=self.dispatcher.rejections,
            on_ready=self.on_ready,
            deliver=self.dispatcher.put,
            is_stopping=self._stopping.is_set,
        ).receive()

    def on_ready(self) -> None:
        """Record that the receiver is subscribed to events."""
        if self._was_connected:
            self.reconnects += 1
            logger.info("Reconnected to the broker")
            self._on_reconnect()
        self.connected = self._was_connected = True

    # In the event loop

    async def on_enable_events(self) -> None:
        """Ask silent workers to send task events, while the broker is connected."""
        # Without a broker, the call blocks a thread and the end of the process (mher/flower#771)
        if not (self.connected and self.enable_events):
            return
        names = self._silent_workers()
        if names is None or names:
            destination = None if names is None else list(names)
            try:
                await self.io_loop.run_in_executor(
                    None, partial(self.capp.control.enable_events, destination=destination)
                )
            except Exception as error:
                logger.warning("Failed to ask workers for task events: %s", problem_of(error))
