"""A worker in the state of the cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery.events import state

from flower_proxy.events.saved_state import SavedWorker

_FIELDS = ("pid", "freq", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")


class Worker(state.Worker):
    """Celery's worker, online or offline whatever the wall clocks of the two hosts do.

    The last event is dated by our monotonic clock; times since the epoch are computed when they are read.

    :ivar ahead: seconds by which the worker's clock was ahead of ours at its latest event; None before the first.
    """

    ahead: float | None = None
    _heard: float | None = None
    _stopped = False

    @classmethod
    def restored(cls, saved: SavedWorker) -> Worker:
        """Return the worker that was saved."""
        worker = cls(**saved.fields)
        if saved.heard is not None:
            worker._hear(saved.heard)
        worker._stopped = saved.stopped
        return worker

    def __reduce__(self) -> tuple[Any, ...]:
        # As Celery's own, so that Flower can load what was saved here; Celery would leave the timestamp behind
        _, arguments = super().__reduce__()
        return state.Worker, arguments, {"timestamp": self.timestamp}

    def _create_event_handler(self) -> Any:
        return self._on_event

    def _on_event(
        self,
        kind: str | None,
        timestamp: float,
        local_received: float,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if fields is None:
            # Celery swaps the two times for events of tasks
            local_received = timestamp
        else:
            for name in _FIELDS:
                if name in fields:
                    setattr(self, name, fields[name])
            self.ahead = timestamp - local_received
        self._hear(local_received)
        self._stopped = kind == "offline"

    def _hear(self, at: float) -> None:
        now, age = time.monotonic(), time.time() - at
        heard = now - age if age > 0 else now
        # A step of our clock while the event waited does not make it older than those before
        if self._heard is None or heard > self._heard:
            self._heard = heard

    @property
    def alive(self) -> bool:
        heard = self._heard
        if heard is None or self._stopped:
            return False
        return bool(time.monotonic() < state.heartbeat_expires(heard, self.freq, self.expire_window))

    @property
    def timestamp(self) -> float | None:
        """When it was last heard, in seconds since the epoch by today's wall clock; None for never."""
        heard = self._heard
        return None if heard is None else time.time() - (time.monotonic() - heard)

    @property
    def heartbeats(self) -> list[float]:
        """The same; empty once it has stopped."""
        timestamp = self.timestamp
        return [] if timestamp is None or self._stopped else [timestamp]

    @heartbeats.setter
    def heartbeats(self, times: Sequence[float]) -> None:
        if times:
            self._hear(max(times))
