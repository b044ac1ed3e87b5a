"""Loading and saving of the state, while the event loop runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flower_proxy._timer import Timer
from flower_proxy.events import shelf_process
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.saved_state import Part
from flower_proxy.events.shelf import reason_of
from flower_proxy.events.snapshot import snapshot
from flower_proxy.events.state_file import StateFile
from flower_proxy.events.task import Task

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Persistence:
    """Loads the state of a receiver once, then saves it at intervals and at the end.

    Until the state is loaded, events wait in the receiver's buffer, and nothing is saved.

    :param receiver: its state is empty.
    :param path: value of ``--db``.
    :param interval: seconds between two saves; 0 for a single one at the end.
    :param on_restored: called with names of workers, then with tasks, when they are in the state.
    :raises StateFileError: another process uses the file, or it cannot be accessed.
    :ivar saved: whether the last attempt to save the state succeeded; True before the first.
    """

    def __init__(
        self,
        receiver: Receiver,
        path: str,
        interval: float,
        on_restored: Callable[[Sequence[str], Sequence[Task]], None],
    ) -> None:
        self.saved = True
        self._receiver, self._on_restored = receiver, on_restored
        self._interval = interval
        self._file = StateFile(path)
        self._exists = self._file.find()
        receiver.dispatcher.is_paused = self._exists
        self._timer = Timer(self._save_in_turn, interval)
        self._running: asyncio.Future[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._is_loaded = False
        self._problem = ""

    @property
    def path(self) -> str:
        """The path of the file, without symbolic links."""
        return self._file.path

    def start(self) -> None:
        """Start loading, and then saving at intervals."""
        self._running = asyncio.ensure_future(self._load())

    async def close(self) -> None:
        """Save a loaded state, and release the file."""
        self._timer.stop()
        try:
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait([self._running])
            if self._is_loaded:
                await self._save(last=True)
        finally:
            self._is_loaded = False
            if self._executor is not None:
                self._executor.shutdown()
            self._file.release()

    # Loading

    async def _load(self) -> None:
        if self._exists:
            try:
                problem, invalid, first = await shelf_process.read(self._file.path, self._restore)
            except Exception as error:
                problem, invalid, first = reason_of(error), 0, ""
            if problem:
                logger.error("Failed to load the state from %r (%s); renamed it to *.corrupt", self._file.path, problem)
                self._move_aside()
            if invalid:
                logger.warning(
                    "Skipped %d invalid workers and tasks in %r; the first is %r", invalid, self._file.path, first
                )
        self._is_loaded = True
        self._receiver.dispatcher.resume()
        if self._interval:
            self._timer.start()

    def _move_aside(self) -> None:
        try:
            self._file.move_aside()
        except OSError as error:
            logger.error("Failed to rename %r (%s)", self._file.path, reason_of(error))

    def _restore(self, part: Part) -> None:
        tasks = self._receiver.state.restore(part)
        self._on_restored([worker.hostname for worker in part.workers], tasks)

    # Saving

    async def _save_in_turn(self) -> None:
        self._running = asyncio.ensure_future(self._save())
        # Only `close` cancels it
        await asyncio.wait([self._running])

    async def _save(self, *, last: bool = False) -> None:
        started = time.monotonic()
        try:
            await self._write()
        except Exception as error:
            self._fail(reason_of(error), last=last)
            logger.debug("Failed to save the state", exc_info=True)
            return
        self.saved = True
        if self._problem:
            logger.info("Saved the state to %r again", self._file.path)
            self._problem = ""
        elapsed = time.monotonic() - started
        if self._interval and elapsed > self._interval / 10:
            logger.warning("Saving the state took %.1f s; increase --state_save_interval or lower --max_tasks", elapsed)

    async def _write(self) -> None:
        # A cancelled save continues in the thread, and the next one waits for it
        path = await self._in_thread(self._file.begin)
        try:
            await shelf_process.write(path, snapshot(self._receiver.state))
            await self._in_thread(self._file.commit)
        finally:
            await self._in_thread(self._file.discard)

    def _fail(self, problem: str, *, last: bool) -> None:
        if last:
            logger.error(
                "Failed to save the state to %r (%s); changes since the last save are lost", self._file.path, problem
            )
        elif problem != self._problem:
            logger.error(
                "Failed to save the state to %r (%s); keeping it in memory and retrying", self._file.path, problem
            )
        self.saved, self._problem = False, problem

    async def _in_thread(self, function: Callable[[], T]) -> T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="flower-proxy-files")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)
