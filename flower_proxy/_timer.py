"""A periodic callback on the monotonic clock."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from tornado.ioloop import IOLoop

logger = logging.getLogger(__name__)


class Timer:
    """A periodic call in the event loop; exceptions are logged and do not stop it.

    Tornado's `PeriodicCallback` uses the wall clock: if that is set back by an hour, it pauses for an hour.

    :param callback: a function or a coroutine function.
    :param interval: seconds between the end of one call and the start of the next.
    """

    def __init__(self, callback: Callable[[], Any], interval: float) -> None:
        self._callback = callback
        self._interval = interval
        self._loop: IOLoop | None = None
        self._timeout: object = None

    def start(self) -> None:
        """Start; the first call follows after one interval."""
        if self._loop is None:
            self._loop = IOLoop.current()
            self._schedule(self._loop)

    def stop(self) -> None:
        """Cancel the next call."""
        if self._loop is not None:
            self._loop.remove_timeout(self._timeout)
            self._loop = None

    def _schedule(self, loop: IOLoop) -> None:
        self._timeout = loop.call_later(self._interval, self._run)

    async def _run(self) -> None:
        # Tornado runs a coroutine one iteration after its timeout, and `stop` may come in between
        if self._loop is None:
            return
        try:
            result = self._callback()
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("A periodic call failed; the next one follows in %g s", self._interval)
        finally:
            if self._loop is not None:
                self._schedule(self._loop)
