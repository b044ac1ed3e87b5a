"""Keeps a history up to date, and in a file."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from flower_proxy._slices import in_slices
from flower_proxy._timer import Timer
from flower_proxy.events.shelf import reason_of
from flower_proxy.monitor import history_file
from flower_proxy.monitor.history import History, Saved
from flower_proxy.monitor.status import Status

logger = logging.getLogger(__name__)

_SAVE_INTERVAL = 60  # seconds


class Keeper:
    """Advances a history each second, measures the gauges, and sets marks.

    :param history: counts events.
    :param status: returns the current status.
    :param path: of the file that keeps the history across restarts; None for none. No other process uses it.
    """

    def __init__(self, history: History, status: Callable[[], Status], path: str | None) -> None:
        self.history = history
        self._read, self._path = status, path
        self._status: Status | None = None
        self._timer: Timer | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._problem = ""
        self._is_lost = False

    def start(self) -> None:
        """Load the history, and start."""
        if self._path is not None:
            self._load(self._path)
            self._timer = Timer(partial(self._save, self._path), _SAVE_INTERVAL)
            self._timer.start()
        self.advance()
        self.history.mark("started")
        self._keeping = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """Stop, and save the history."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        self._keeping = None
        self.advance()
        if self._timer is not None and self._path is not None:
            self._timer.stop()
            await self._save(self._path)

    async def _keep(self) -> None:
        while True:
            # At each second of the wall clock, and so at the end of each slot
            await asyncio.sleep(1 - time.time() % 1)
            try:
                self.advance()
                await in_slices(self.history.digest())
            except Exception:
                logger.exception("Failed to advance the history; the next attempt follows in a second")

    def advance(self) -> None:
        """Close the slots that have ended, and measure."""
        before, status = self._status, self._read()
        self.history.advance(time.time(), time.monotonic(), is_covered=status.connected)
        if status.connected:
            self.history.measure(status.executing, status.lengths)
        self._status = status
        if before is not None:
            self._mark(before, status)

    def _mark(self, before: Status, now: Status) -> None:
        if before.connected and (now.reconnects > before.reconnects or not now.connected):
            self.history.mark("lost")
            self._is_lost = True
        if self._is_lost and now.connected:
            self.history.mark("restored")
            self._is_lost = False
        for kind, number in (("dropped", now.dropped - before.dropped), ("missed", now.missed - before.missed)):
            if number > 0:
                self.history.mark(kind, number)

    # The file

    def _load(self, path: str) -> None:
        try:
            saved = history_file.read(path)
            if saved is not None:
                self.history.restore(saved)
        except (OSError, ValueError) as error:
            logger.error("Failed to load the history from %r (%s); renamed it to *.corrupt", path, reason_of(error))
            try:
                history_file.move_aside(path)
            except OSError as failure:
                logger.error("Failed to rename %r (%s)", path, reason_of(failure))

    async def _save(self, path: str) -> None:
        saved = self.history.save()
        try:
            await asyncio.get_running_loop().run_in_executor(None, _write, path, saved)
        except OSError as error:
            problem = reason_of(error)
            if problem != self._problem:
                logger.error("Failed to save the history to %r (%s); retrying", path, problem)
            self._problem = problem
        else:
            self._problem = ""


def _write(path: str, saved: Saved) -> None:
    history_file.write(path, history_file.encode(saved))
