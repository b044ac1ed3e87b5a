"""Discovery of workers from their events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from flower_proxy._bounded import BoundedDict

if TYPE_CHECKING:
    from flower_proxy.events.receiver import Receiver

# Workers without heartbeats send no event before they are asked to
_BROADCAST_INTERVAL = 300.0  # seconds
_REPEAT_INTERVAL = 60.0  # seconds
# A worker sends its first events before it accepts commands, and a busy one may never reply
_FIRST_RETRY, _MAX_RETRY = 1.0, 300.0  # seconds
# More new workers are inspected together, by a broadcast
_MAX_ADDRESSED = 10


class Discovery:
    """Makes a worker known at its first event, and decides which workers to ask for task events.

    A `flower_proxy.events.listener.Listener`. `begin` must be called before the first event.

    :param sends_task_events: returns whether a worker sends task events; None if unknown.
    :param max_workers: maximum number of workers in memory.
    :param clock: returns monotonic seconds.
    """

    _receiver: Receiver
    _known: Mapping[str, Any]
    _inspect: Callable[[str | None], Awaitable[None]]

    def __init__(
        self,
        sends_task_events: Callable[[str], bool | None],
        *,
        max_workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sends_task_events, self._clock = sends_task_events, clock
        self._broadcast_at = 0.0
        # By worker: when it was last asked for task events
        self._asked: BoundedDict[str, float] = BoundedDict(max_workers)
        # By worker without a reply to an inspection: when to inspect it again, and the interval after that
        self._retries: BoundedDict[str, tuple[float, float]] = BoundedDict(max_workers)
        self._new: dict[str, None] = {}
        # Inspected, but not yet asked for task events
        self._inspected: Collection[str] = ()
        self._is_greeting = self._is_stopped = False

    def begin(
        self, receiver: Receiver, known: Mapping[str, Any], inspect: Callable[[str | None], Awaitable[None]]
    ) -> None:
        """Set the source of the events.

        :param receiver: receives the events.
        :param known: the workers that Flower knows; reading a missing one adds it.
        :param inspect: inspects a worker; None for all.
        """
        self._receiver, self._known, self._inspect = receiver, known, inspect

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Process an event; see `flower_proxy.events.listener.Listener`."""
        name, is_start = event["hostname"], event["type"] == "worker-online"
        info = self._known.get(name)
        if info is not None:
            if is_start:
                # Those of the previous process would hide that an inspection has failed
                info.pop("stats", None)
            elif "stats" in info and "active_queues" in info:
                # The first commands to a worker may be lost, each on its own
                return
        if name in self._receiver.state.workers:
            self._known[name]
            self._add(name, is_start=is_start)

    def _add(self, name: str, *, is_start: bool) -> None:
        now = self._clock()
        due, interval = (now, _FIRST_RETRY) if is_start else self._retries.get(name, (now, _FIRST_RETRY))
        if now < due or self._is_stopped or not self._receiver.connected:
            return
        self._retries.put(name, (now + interval, min(2 * interval, _MAX_RETRY)))
        self._new[name] = None
        if not self._is_greeting:
            self._is_greeting = True
            self._receiver.io_loop.add_callback(self._greet)

    async def _greet(self) -> None:
        """Inspect new workers, and ask them for task events; those that come meanwhile wait for the next round."""
        try:
            while self._new:
                names = list(self._new)
                self._new.clear()
                addressed: list[str | None] = [*names] if len(names) <= _MAX_ADDRESSED else [None]
                await asyncio.gather(*map(self._inspect, addressed), return_exceptions=True)
                if self._is_stopped:
                    return
                # A worker that has replied to an inspection does not miss the question
                self._inspected = names
                await self._receiver.on_enable_events()
        finally:
            self._is_greeting = False

    def stop(self) -> None:
        """Ask and inspect no further workers."""
        self._is_stopped = True
        self._new.clear()

    def ask_all(self) -> None:
        """Let `silent` return all workers next time: after a reconnection, some may have missed the last question."""
        self._broadcast_at = 0.0

    def silent(self) -> Collection[str] | None:
        """Return the workers to ask for task events: new ones, and those that have run tasks without sending any.

        A worker is asked again after a minute; all are asked every five minutes.

        :returns: their names; None for all workers.
        """
        now, workers = self._clock(), self._receiver.state.workers
        new, self._inspected = self._inspected, ()
        if now >= self._broadcast_at:
            self._broadcast_at = now + _BROADCAST_INTERVAL
            for name in workers:
                self._asked.put(name, now + _REPEAT_INTERVAL)
            return None
        silent = [
            name
            for name, worker in workers.items()
            if worker.alive
            and (name in new or (self._sends_task_events(name) is False and now >= self._asked.get(name, 0.0)))
        ]
        for name in silent:
            self._asked.put(name, now + _REPEAT_INTERVAL)
        return silent
