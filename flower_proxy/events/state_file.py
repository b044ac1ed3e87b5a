"""Locking and replacement of the files that preserve the state across restarts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import weakref

from flower_proxy.events.shelf import reason_of, sync

# Depending on the dbm backend, a shelf is one file or several
_SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal", "-shm", "-journal")
# Paths that this process has locked
_locked: set[str] = set()


class StateFileError(OSError):
    """The state file cannot be used; the message is one line and names the option."""


class StateFile:
    """Shelf with a state, in the format of Flower's ``--db``. One `StateFile` at a time holds its lock.

    The lock is a `lockf` on a file with the suffix ``.lock``, which is never removed. All files have mode 0600, since
    they contain the arguments and results of tasks. Saving is atomic, even if the process is killed: new files are
    written to a folder with the suffix ``.saving``; renamed to ``.saved``, it is complete.

    :param path: value of ``--db``. The target of a symbolic link is locked and replaced.
    :raises StateFileError: another process holds the lock, or locking fails.
    :ivar release: function that releases the lock; idempotent.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(os.path.expanduser(path))
        self._folder = f"{self.path}.saving"
        self.release = weakref.finalize(self, _unlock, self.path, _lock(self.path))

    def find(self) -> bool:
        """Return whether there is a saved state, after completing a save that a crash interrupted.

        :raises StateFileError: the files cannot be accessed.
        """
        try:
            self._move_into_place()
            files = self._files()
            for file in files:
                # Stock Flower creates files with the mode of the umask
                os.chmod(file, 0o600)
        except OSError as error:
            raise StateFileError(f"--db: {self.path!r} cannot be loaded: {reason_of(error)}") from None
        return bool(files)

    def move_aside(self) -> None:
        """Rename the files, with the suffix ``.corrupt``."""
        for file in self._files():
            os.replace(file, f"{file}.corrupt")

    def begin(self) -> str:
        """Return the path for the files of a new save, in an empty folder.

        :raises OSError: the folder cannot be created.
        """
        self._move_into_place()
        # In a private folder, since some backends restrict the mode of a file only after creating it
        self.discard()
        os.mkdir(self._folder, 0o700)
        return os.path.join(self._folder, os.path.basename(self.path))

    def commit(self) -> None:
        """Replace the saved state by the new files, which must be complete and synced."""
        os.rename(self._folder, f"{self.path}.saved")
        complete = os.listdir(f"{self.path}.saved")
        for file in self._files():
            # A file of another backend would be loaded instead of the new one
            if os.path.basename(file) not in complete:
                os.unlink(file)
        self._move_into_place()

    def discard(self) -> None:
        """Remove the files of an incomplete save."""
        shutil.rmtree(self._folder, ignore_errors=True)

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
            sync(folder)

    def _files(self) -> list[str]:
        return [file for suffix in _SUFFIXES if os.path.lexists(file := f"{self.path}{suffix}")]


def _lock(path: str) -> int:
    file, in_use = f"{path}.lock", f"--db: another process uses {path!r}; stop it, or choose another file"
    # POSIX locks exclude only other processes, and closing any descriptor of the file would release ours
    if path in _locked:
        raise StateFileError(in_use)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateFileError(f"--db: cannot open {file!r}: {reason_of(error)}") from None
    try:
        # Not flock: a child that a killed process was starting would keep the lock
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        # POSIX allows both
        if isinstance(error, BlockingIOError | PermissionError):
            raise StateFileError(in_use) from None
        raise StateFileError(f"--db: cannot lock {file!r}: {reason_of(error)}") from None
    _locked.add(path)
    return descriptor


def _unlock(path: str, descriptor: int) -> None:
    os.close(descriptor)
    _locked.discard(path)
