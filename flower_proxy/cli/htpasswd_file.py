"""The htpasswd file that ``flower-proxy hash-password --output`` updates."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path

from flower_proxy.auth.passwords import CredentialsError
from flower_proxy.auth.user_files import set_user

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HtpasswdFile:
    """An htpasswd file that may not exist yet.

    :param path: the path; symbolic links are resolved.
    :raises OSError: the path is not a regular file, or its folder is not writable.
    """

    def __init__(self, path: str) -> None:
        self._name = path
        self._path = os.path.realpath(path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise OSError(EINVAL, "not a regular file")
        # Fails before the password prompt if the folder is not writable
        with tempfile.TemporaryFile(dir=os.path.dirname(self._path)):
            self._read()

    def set_user(self, user: str, hashed: str) -> str:
        """Add or replace a user atomically; an existing file keeps its mode and owner, a new one gets mode 0600.

        :returns: a line that reports the change.
        :raises CredentialsError: the file has another format.
        :raises OSError: the file cannot be written; it stays unchanged.
        """
        try:
            text, known = set_user(self._read(), user, hashed)
        except CredentialsError as error:
            raise CredentialsError(f"--output: {self._name!r} {error}") from None
        mode = self._replace(text)
        done = "Replaced the password of the user {!r} in" if known else "Added the user {!r} to"
        return f"{done.format(user)} {self._name!r} (mode {mode:04o})"

    def _read(self) -> str:
        try:
            return Path(self._path).read_bytes().decode()
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError:
            raise CredentialsError(f"--output: {self._name!r} is not UTF-8") from None

    def _replace(self, text: str) -> int:
        with _signals_delayed():
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(self._path), prefix=".htpasswd-")
            try:
                with open(descriptor, "wb") as file:
                    # The umask may have removed permissions
                    os.fchmod(descriptor, 0o600)
                    with contextlib.suppress(FileNotFoundError):
                        # A reverse proxy may have access through the file's group
                        before = os.stat(self._path)
                        os.fchown(descriptor, before.st_uid, before.st_gid)
                        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                    file.write(text.encode())
                    file.flush()
                    os.fsync(descriptor)
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise
        return mode


@contextlib.contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay terminating signals until the end of the block, so that no temporary file remains."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
