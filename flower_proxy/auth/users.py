"""Users with a password, from options and from files that are reloaded on change."""

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
_CHECK_INTERVAL = 1.0  # seconds
_MAX_BYTES = 1024 * 1024


class _File:
    """A file of users.

    :ivar where: option and path, for messages.
    :ivar users: the users of the last valid version.
    """

    def __init__(self, option: str, path: str, parse: Callable[[str], Mapping[str, Secret]]) -> None:
        self.where = f"{option}: {path!r}"
        self.users: Mapping[str, Secret] = {}
        self._path = Path(path)
        self._parse = parse
        self._version: object = None
        self._world_readable = False

    def read(self, *, running: bool) -> bool:
        """Read the file if it has changed since it was last read.

        :param running: accept only regular files; at start-up, pipes are read too, which may block.
        :returns: whether it was read.
        :raises CredentialsError: the file is invalid; `users` stays unchanged.
        """
        # Of the path, since editors replace the file and Kubernetes a symbolic link in the path,
        # and before reading, so that a concurrent write counts as another version
        version = self._stat()
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

    def _stat(self) -> object:
        try:
            status = self._path.stat()
        except OSError as error:
            return error.errno
        # The mode of a device is the system's choice
        world_readable = stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IROTH)
        if world_readable and not self._world_readable:
            logger.warning("%s: world-readable; run: chmod o-r %s", self.where, shlex.quote(str(self._path)))
        self._world_readable = world_readable
        if not stat.S_ISREG(status.st_mode):
            # A pipe such as <(command) can be read only once, so a constant version prevents another read
            return stat.S_IFMT(status.st_mode)
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: Path, *, running: bool) -> str:
    # Without O_NONBLOCK, opening a FIFO blocks the event loop
    flags = os.O_NONBLOCK | os.O_NOCTTY if running else 0
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        if running and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CredentialsError("not a regular file")
        # Bounded, since /dev/zero is endless
        content = file.read(_MAX_BYTES + 1) or b""
    if len(content) > _MAX_BYTES:
        raise CredentialsError("larger than the maximum of 1 MB")
    return content.decode()


class Users:
    """The users with a password.

    :param entries: the value of ``--basic_auth``: ``user:password`` each.
    :param password_file: the path of ``--basic_auth_file``.
    :param auth_file: the path of ``--auth_file``.
    :param clock: returns the time in seconds.
    :raises CredentialsError: a source is invalid, or two contain the same user; the message names option and path.

    False if none of the three is given.
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
        self._checked_at = clock()

    def __bool__(self) -> bool:
        return bool(self._entries or self._files)

    def names(self) -> list[str]:
        """Return the names of all users, those of the options first."""
        return list(self.current())

    def current(self) -> Mapping[str, Secret]:
        """Return all users; reload changed files, checked at most once a second.

        A new version that is invalid, or contains a user of another source, is logged once and ignored.
        """
        now = self._clock()
        if now - self._checked_at >= _CHECK_INTERVAL:
            self._checked_at = now
            self._reload()
        return self._users

    def _reload(self) -> None:
        changed = []
        for file in self._files:
            try:
                if file.read(running=True):
                    changed.append(file)
            except CredentialsError as error:
                _log_failure(error)
        if not changed:
            return
        try:
            self._users = self._merge()
        except CredentialsError as error:
            _log_failure(error)
            return
        for file in changed:
            logger.info("%s: reloaded, users: %d", file.where, len(file.users))

    def _merge(self) -> Mapping[str, Secret]:
        users: dict[str, Secret] = {**self._entries}
        for file in self._files:
            for user, secret in file.users.items():
                if user in users:
                    raise CredentialsError(f"{file.where}: user {user!r} is also in {self._source_of(user)}")
                users[user] = secret
        return users

    def _source_of(self, user: str) -> str:
        return _ENTRIES if user in self._entries else next(file.where for file in self._files if user in file.users)


def _log_failure(error: CredentialsError) -> None:
    logger.error("%s; keeping the previous users", error)
