"""Counts and log lines of what is rejected because it is invalid."""

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
    """Counts what is rejected by reason, and logs it at most once a minute for each reason. Used in any thread.

    :param kind: of what is rejected, for the log, like ``an event``.
    :param reasons: all reasons; each is counted from 0.
    :param clock: returns seconds from any point in time.
    :ivar counts: how many were rejected, by reason.
    """

    def __init__(self, kind: str, reasons: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = dict.fromkeys(reasons, 0)
        self._kind, self._clock = kind, clock
        self._logged: dict[str, _Logged] = {}
        self._lock = threading.Lock()

    def count(self, reason: str, detail: str) -> None:
        """Count one.

        :param reason: one of `reasons`.
        :param detail: any text, also from outside, for the log.
        :raises KeyError: the reason is none of `reasons`.
        """
        now = self._clock()
        with self._lock:
            self.counts[reason] += 1
            logged = self._logged.setdefault(reason, _Logged(next_at=now))
            if now < logged.next_at:
                logged.suppressed += 1
                return
            logged.next_at, suppressed, logged.suppressed = now + _LOG_INTERVAL, logged.suppressed, 0
        # The representation has no line ends, control characters or surrogates
        text = repr(detail[:_MAX_DETAIL])
        logger.warning("Rejected %s (%s): %s; %d more since the last such line", self._kind, reason, text, suppressed)
