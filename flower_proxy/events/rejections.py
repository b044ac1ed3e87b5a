"""Counters and log lines of rejected input."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_LOG_INTERVAL = 60.0  # seconds
_MAX_DETAIL = 200  # characters


@dataclass(slots=True)
class _Logged:
    next_at: float = 0.0
    suppressed: int = 0


class Rejections:
    """Counts rejections by reason and logs at most one per minute and reason. Thread-safe.

    :param kind: the rejected input in log lines, like ``an event``.
    :param reasons: all reasons; their counters start at 0.
    :param clock: returns monotonic seconds.
    :ivar counts: number of rejections by reason.
    """

    def __init__(self, kind: str, reasons: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = dict.fromkeys(reasons, 0)
        self._kind, self._clock = kind, clock
        self._logged: dict[str, _Logged] = {}
        self._lock = threading.Lock()

    def count(self, reason: str, detail: str) -> None:
        """Count a rejection.

        :param reason: one of `reasons`.
        :param detail: text for the log; may be untrusted.
        :raises KeyError: the reason is not one of `reasons`.
        """
        now = self._clock()
        with self._lock:
            self.counts[reason] += 1
            logged = self._logged.setdefault(reason, _Logged(next_at=now))
            if now < logged.next_at:
                logged.suppressed += 1
                return
            logged.next_at, suppressed, logged.suppressed = now + _LOG_INTERVAL, logged.suppressed, 0
        # repr escapes line breaks, control characters and surrogates
        text = repr(detail[:_MAX_DETAIL])
        logger.warning("Rejected %s (%s): %s; %d more since the last such line", self._kind, reason, text, suppressed)
