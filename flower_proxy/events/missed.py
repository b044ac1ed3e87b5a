"""Number of tasks whose events did not arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_MAX_SILENT = 1  # heartbeats
_LOG_DELAY = 10.0  # seconds; the misses of all workers are known after their next two heartbeats
_INCIDENT_GAP = 60.0  # seconds


@dataclass(slots=True)
class Starts:
    """Starts of tasks at one worker: those that its heartbeats count, and those whose events have arrived.

    A heartbeat has the number of tasks that the worker has started since its own start. The events of some of these
    may arrive after it, but before the next heartbeat; the worker's logical clock tells them from those of later tasks.
    A miss counts if two consecutive heartbeats agree on it, since a worker with threads may send a heartbeat between
    counting a task and creating its event.

    Unless task events arrive between heartbeats, the worker may not send any. So counting begins with the first
    heartbeat after a task event, anew after a restart of the worker, and after several heartbeats during which it has
    started tasks without sending events.

    :ivar missed: number of tasks that the worker has started without a task-started event.
    :ivar heard: whether a task event has arrived since the latest heartbeat, for the caller to set.
    """

    missed: int = 0
    heard: bool = False
    # The worker's number of tasks at the first heartbeat, None while it may not send task events; and at the latest
    _first: int | None = None
    _last: int = 0
    # Logical time of the latest heartbeat
    _clock: float = 0
    # Tasks started between the first and the latest heartbeat, and after that, by their events
    _before: int = 0
    _after: int = 0
    # Consecutive heartbeats that counted further tasks, none of which sent an event
    _silent: int = 0
    # Negative if the first heartbeat counted tasks whose events came after it
    _surplus: int = 0
    _counted: int = 0

    def on_start(self, clock: float | None) -> None:
        """Record a task-started event.

        :param clock: its logical time.
        """
        if clock is not None and clock < self._clock:
            self._before += 1
        else:
            self._after += 1

    def on_heartbeat(self, processed: int, clock: float | None) -> int:
        """Compare a heartbeat with the events before it.

        :param processed: the number of tasks that the worker has started.
        :param clock: its logical time.
        :returns: the number of tasks that are missed in addition.
        """
        grown, heard, last = processed - self._last, self.heard, self._last
        self._last, self._clock, self.heard = processed, clock or 0, False
        self._silent = self._silent + 1 if grown and not heard else 0
        if self._first is None or grown < 0 or self._silent > _MAX_SILENT:
            self._begin(processed if heard else None)
            return 0
        earlier = last - self._first - self._before
        self._before, self._after = self._before + self._after, 0
        latest = processed - self._first - self._before
        self._surplus = min(self._surplus, max(earlier, latest))
        further = min(earlier, latest) - self._surplus - self._counted
        if self._silent or further <= 0:
            return 0
        self._counted += further
        self.missed += further
        return further

    def _begin(self, first: int | None) -> None:
        self._first, self._before, self._after, self._silent = first, 0, 0, 0
        self._surplus = self._counted = 0


class Incident:
    """Log of misses: one line for all misses of all workers without a pause of a minute.

    :param clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers: dict[str, int] = {}
        self._log_at: float | None = None
        self._last = -_INCIDENT_GAP

    def add(self, worker: str, tasks: int) -> None:
        """Record that tasks of a worker were missed."""
        now = self._clock()
        if now - self._last >= _INCIDENT_GAP:
            self._workers, self._log_at = {}, now + _LOG_DELAY
        self._last = now
        if self._log_at is not None:
            self._workers[worker] = self._workers.get(worker, 0) + tasks

    def log(self) -> None:
        """Log the incident, if it is new and the workers had the time to report their misses."""
        if self._log_at is None or self._clock() < self._log_at:
            return
        self._log_at = None
        logger.warning(
            "Missed task events (tasks: %d, workers: %d, most at %r); pages and metrics lack these tasks. "
            "flower_proxy_tasks_missed_total has the numbers",
            sum(self._workers.values()),
            len(self._workers),
            max(self._workers, key=self._workers.__getitem__),
        )
