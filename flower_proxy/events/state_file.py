"""File that preserves the state across restarts."""

from __future__ import annotations

import contextlib
import dbm
import fcntl
import logging
import os
import pickle
import shutil
import time
import weakref

from flower_proxy._flower import EventsState
from flower_proxy.events.saved_state import SavedState

logger = logging.getLogger(__name__)

# Depending on the dbm backend, a shelf is one file or several
_SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal", "-shm", "-journal")


class StateFileError(OSError):
    """The state file cannot be used; the message is one line and names the option."""


class StateFile:
    """Shelf with a state, in the format of Flower's ``--db``. One `StateFile` at a time holds its lock.

    The lock is a `flock` on a file with the suffix ``.lock``, which is never removed. All files have mode 0600, since
    they contain the arguments and results of tasks. Saving is atomic, even if the process is killed.

    :param path: value of ``--db``. The target of a symbolic link is locked and replaced.
    :param interval: seconds between two saves; 0 for a single one at the end.
    :raises StateFileError: another process holds the lock, or locking fails.
    :ivar release: function that releases the lock; idempotent.
    """

    def __init__(self, path: str, interval: float = 0.0) -> None:
        self.path = os.path.realpath(os.path.expanduser(path))
        self._interval = interval
        self._problem = ""
        self.release = weakref.finalize(self, _unlock, _lock(self.path), os.getpid())

    def load(self) -> SavedState | None:
        """Return the saved state; None if there is none.

        Files that contain no state are renamed, with the suffix ``.corrupt``.

        :raises StateFileError: the files cannot be accessed.
        """
        try:
            self._move_into_place()
            files = self._files()
            for file in files:
                # Stock Flower creates files with the mode of the umask
                os.chmod(file, 0o600)
        except OSError as error:
            raise StateFileError(f"--db: {self.path!r} cannot be loaded: {_reason(error)}") from None
        if not files:
            return None
        try:
            # In read-only mode SQLite leaves its temporary files behind
            with dbm.open(self.path, "w") as database:
                if not database.keys():
                    return None
                # shelve's format; stock Flower may have saved no counts
                counter = pickle.loads(database.get(b"counter") or pickle.dumps({}))  # noqa: S301  only its owner writes it
                return SavedState(database[b"events"], counter)
        except Exception as error:
            logger.error("Failed to load the state from %r (%s); renamed it to *.corrupt", self.path, _reason(error))
            for file in self._files():
                os.replace(file, f"{file}.corrupt")
            return None

    def save(self, state: EventsState, *, last: bool = False) -> bool:
        """Save the state; log a failure, once while its reason stays the same.

        :param last: whether the process ends afterwards.
        :returns: whether it succeeded; after a failure, the previously saved state is unchanged.
        """
        started = time.monotonic()
        try:
            self._save(state)
        except Exception as error:
            problem = _reason(error)
            if last:
                logger.error(
                    "Failed to save the state to %r (%s); changes since the last save are lost", self.path, problem
                )
            elif problem != self._problem:
                logger.error(
                    "Failed to save the state to %r (%s); keeping it in memory and retrying", self.path, problem
                )
            logger.debug("Failed to save the state", exc_info=True)
            self._problem = problem
            return False
        if self._problem:
            logger.info("Saved the state to %r again", self.path)
            self._problem = ""
        elapsed = time.monotonic() - started
        if self._interval and elapsed > self._interval / 10:
            logger.warning("Saving the state took %.1f s; increase --state_save_interval or lower --max_tasks", elapsed)
        return True

    def _save(self, state: EventsState) -> None:
        self._move_into_place()
        # In a private folder, since some backends restrict the mode of a file only after creating it
        folder = f"{self.path}.saving"
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder, 0o700)
        try:
            path = os.path.join(folder, os.path.basename(self.path))
            # shelve's format; shelve.open has no parameter for the mode
            with dbm.open(path, "n", 0o600) as database:
                database["events"] = pickle.dumps(state)
                database["counter"] = pickle.dumps(dict(state.counter))
            for name in os.listdir(folder):
                _sync(os.path.join(folder, name))
            _sync(folder)
            os.rename(folder, f"{self.path}.saved")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        complete = os.listdir(f"{self.path}.saved")
        for file in self._files():
            # A file of another backend would be loaded instead of the new one
            if os.path.basename(file) not in complete:
                os.unlink(file)
        self._move_into_place()

    def _move_into_place(self) -> None:
        """Replace the files by those of the last complete save; completes a save that a crash interrupted."""
        saved, folder = f"{self.path}.saved", os.path.dirname(self.path)
        with contextlib.suppress(FileNotFoundError):
            # Loading a pickle runs code, and other users may be able to write to the folder
            if os.lstat(saved).st_uid != os.geteuid():
                raise PermissionError(f"another user owns {saved!r}; remove it")
            for name in os.listdir(saved):
                os.replace(os.path.join(saved, name), os.path.join(folder, name))
            os.rmdir(saved)
            _sync(folder)

    def _files(self) -> list[str]:
        return [file for suffix in _SUFFIXES if os.path.lexists(file := f"{self.path}{suffix}")]


def _lock(path: str) -> int:
    file = f"{path}.lock"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateFileError(f"--db: cannot open {file!r}: {_reason(error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise StateFileError(f"--db: another process uses {path!r}; stop it, or choose another file") from None
        raise StateFileError(f"--db: cannot lock {file!r}: {_reason(error)}") from None
    return descriptor


def _unlock(descriptor: int, process: int) -> None:
    # A forked child inherits the lock: it must neither release it, nor keep it after the parent's release
    if os.getpid() == process:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__
