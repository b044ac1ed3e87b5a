"""Worker in the state of the cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery.events import state

from flower_proxy.events.saved_state import SavedWorker

_FIELDS = ("pid", "freq", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")


class Worker(state.Worker):
    """Celery's worker, with an online status that does not depend on wall clocks.

    The time of the last event is kept by the local monotonic clock, and converted to seconds since the epoch on access.

    :ivar ahead: seconds by which the worker's clock was ahead of the local one at its latest event; None before that.
    """

    ahead: float | None = None
    _last_event: float | None = None
    _received: float | None = None
    _stopped = False

    @classmethod
    def restored(cls, saved: SavedWorker) -> Worker:
        """Return a saved worker."""
        worker = cls(**saved.fields)
        if saved.last_event is not None:
            worker._set_last_event(saved.last_event)
        worker._stopped = saved.stopped
        return worker

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as Celery's own class, so that stock Flower can load it; Celery does not save the timestamp
        _, arguments = super().__reduce__()
        return state.Worker, arguments, {"timestamp": self.timestamp}

    def _create_event_handler(self) -> Any:
        return self._on_event

    def _on_event(
        self,
        kind: str,
        timestamp: float,
        local_received: float,
        fields: Mapping[str, Any],
    ) -> None:
        for name in _FIELDS:
            if name in fields:
                setattr(self, name, fields[name])
        self.ahead = timestamp - local_received
        self._set_last_event(local_received)
        self._stopped = kind == "offline"

    def on_task_event(self, local_received: float) -> None:
        """Record the time of a task event, in seconds since the epoch."""
        # The events of messages that have arrived together have the same time
        if local_received != self._received:
            self._received = local_received
            self._set_last_event(local_received)
        self._stopped = False

    def _set_last_event(self, timestamp: float) -> None:
        now, age = time.monotonic(), time.time() - timestamp
        last_event = now - age if age > 0 else now
        # After a step of the wall clock, an event can appear older than the previous one
        if self._last_event is None or last_event > self._last_event:
            self._last_event = last_event

    @property
    def alive(self) -> bool:
        """Return whether the worker is online."""
        last_event = self._last_event
        if last_event is None or self._stopped:
            return False
        return bool(time.monotonic() < state.heartbeat_expires(last_event, self.freq, self.expire_window))

    @property
    def timestamp(self) -> float | None:
        """Return the time of the last event, in seconds since the epoch by the current wall clock; None for never."""
        last_event = self._last_event
        return None if last_event is None else time.time() - (time.monotonic() - last_event)

    @property
    def heartbeats(self) -> list[float]:
        """Return the `timestamp` in a list, which is empty after a shutdown."""
        timestamp = self.timestamp
        return [] if timestamp is None or self._stopped else [timestamp]

    @heartbeats.setter
    def heartbeats(self, times: Sequence[float]) -> None:
        if times:
            self._set_last_event(max(times))
