"""Who may enter with a password: the users of the options and of files, which are read again when they change."""

from __future__ import annotations

import logging
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flower_proxy.auth.passwords import CredentialsError, Secret
from flower_proxy.auth.user_files import parse_auth_file, parse_entries, parse_password_file

logger = logging.getLogger(__name__)

_ENTRIES = "--basic_auth"
_SECONDS_BETWEEN_LOOKS = 1.0
_MAX_BYTES = 1024 * 1024


class _File:
    """A file of users.

    :ivar where: its option and path, for messages.
    :ivar users: those of the last version that was good.
    """

    def __init__(self, option: str, path: str, parse: Callable[[str], Mapping[str, Secret]]) -> None:
        self.where = f"{option}: {path!r}"
        self.users: Mapping[str, Secret] = {}
        self._path = Path(path)
        self._parse = parse
        self._version: object = None
        self._open_to_all = False

    def read(self, *, running: bool) -> bool:
        """Read the file if it is not the version that was read last, be that one good or not.

        :param running: accept regular files only; at start-up it may be a pipe too, which is waited for.
        :returns: whether it was read.
        :raises CredentialsError: it cannot be used; the users stay those of the last good version.
        """
        # Of the path, not of an open file: an editor replaces the file, Kubernetes a link on the way to it.
        # And before it is read: what is written meanwhile is another version.
        version = self._look()
        if version == self._version:
            return False
        self._version = version
        try:
            self.users = self._parse(_read(self._path, running=running))
        except OSError as error:
            raise CredentialsError(f"{self.where}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CredentialsError(f"{self.where}: not UTF-8") from None
        except CredentialsError as error:
            raise CredentialsError(f"{self.where}: {error}") from None
        return True

    def _look(self) -> object:
        try:
            status = self._path.stat()
        except OSError as error:
            return error.errno
        # Not of a device, whose mode is the system's
        open_to_all = stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IROTH)
        if open_to_all and not self._open_to_all:
            logger.warning(
                "%s: everybody on this machine can read it: chmod o-r %s", self.where, shlex.quote(str(self._path))
            )
        self._open_to_all = open_to_all
        if not stat.S_ISREG(status.st_mode):
            # A pipe, as of <(command), can be read once; it would be waited for the second time
            return stat.S_IFMT(status.st_mode)
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: Path, *, running: bool) -> str:
    # Without O_NONBLOCK a FIFO would be waited for, and the event loop with it
    flags = os.O_NONBLOCK | os.O_NOCTTY if running else 0
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        if running and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CredentialsError("not a regular file")
        # Bounded, since /dev/zero has no end
        content = file.read(_MAX_BYTES + 1) or b""
    if len(content) > _MAX_BYTES:
        raise CredentialsError("larger than the maximum of 1 MB")
    return content.decode()


class Users:
    """The users that may enter with a password.

    :param entries: of ``--basic_auth``, each ``user:password``.
    :param password_file: the path of ``--basic_auth_file``.
    :param auth_file: the path of ``--auth_file``.
    :param clock: the time in seconds.
    :raises CredentialsError: one of them cannot be used, or two have the same user; the message names option and path.

    False if none of the three was given.
    """

    def __init__(
        self,
        entries: Iterable[str] = (),
        password_file: str | None = None,
        auth_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._entries = parse_entries(entries)
        except CredentialsError as error:
            raise CredentialsError(f"{_ENTRIES}: {error}") from None
        self._files: list[_File] = []
        if password_file is not None:
            self._files.append(_File("--basic_auth_file", password_file, parse_password_file))
        if auth_file is not None:
            self._files.append(_File("--auth_file", auth_file, parse_auth_file))
        for file in self._files:
            file.read(running=False)
        self._users = self._merge()
        self._clock = clock
        self._looked_at = clock()

    def __bool__(self) -> bool:
        return bool(self._entries or self._files)

    def names(self) -> list[str]:
        """Return the names of all users, those of the options first."""
        return list(self.current())

    def current(self) -> Mapping[str, Secret]:
        """Return all users; once a second at most, look whether a file has changed.

        A new version that cannot be used, or has a user that somebody else has, changes nothing: the log says so once.
        """
        now = self._clock()
        if now - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            self._read_again()
        return self._users

    def _read_again(self) -> None:
        changed = []
        for file in self._files:
            try:
                if file.read(running=True):
                    changed.append(file)
            except CredentialsError as error:
                _keep(error)
        if not changed:
            return
        try:
            self._users = self._merge()
        except CredentialsError as error:
            _keep(error)
            return
        for file in changed:
            logger.info("%s: read again, users: %d", file.where, len(file.users))

    def _merge(self) -> Mapping[str, Secret]:
        users: dict[str, Secret] = {**self._entries}
        for file in self._files:
            for user, secret in file.users.items():
                if user in users:
                    raise CredentialsError(f"{file.where}: the user {user!r} is in {self._source_of(user)} too")
                users[user] = secret
        return users

    def _source_of(self, user: str) -> str:
        return _ENTRIES if user in self._entries else next(file.where for file in self._files if user in file.users)


def _keep(error: CredentialsError) -> None:
    logger.error("%s; the users stay as they were", error)
