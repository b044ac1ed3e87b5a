"""Sockets to listen on: where the options say, those that somebody else has made, and the file of a unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from tornado.netutil import bind_sockets, bind_unix_socket

_FIRST_HANDED_OVER = 3  # SD_LISTEN_FDS_START
_SECONDS_TO_CONNECT = 1.0


class ListenError(OSError):
    """The address or socket cannot be bound; the message is one line that names the option."""


class AddressError(ListenError):
    """There is no such address."""


def bind(address: str, port: int, *, prefix: str = "") -> list[socket.socket]:
    """Listen on an address.

    :param address: empty for all interfaces.
    :param prefix: with which the names of the options begin that say so, for messages.
    :raises ListenError: it cannot be bound.
    """
    try:
        return bind_sockets(port, address=address)
    except socket.gaierror as error:
        raise AddressError(f"--{prefix}address: {address!r}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        where = f"{address or 'all interfaces'}, port {port}"
        raise ListenError(f"--{prefix}port: cannot listen on {where}: {_reason(error)}") from None


@dataclass(frozen=True)
class SocketFile:
    """The file of a unix socket that this process listens on."""

    path: str
    inode: int

    def remove(self) -> None:
        """Remove it, unless another process has put its own there meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)


def bind_unix(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """Listen on a unix socket; a file that a dead process left is replaced.

    :param mode: of the file.
    :raises ListenError: it cannot be made, or somebody else listens there.
    """
    try:
        if os.path.exists(path):
            _refuse_live_socket(path)
        bound = bind_unix_socket(path, mode=mode)
        return bound, SocketFile(path, os.stat(path).st_ino)
    except (OSError, ValueError) as error:
        raise ListenError(f"--unix_socket: cannot listen on {path!r}: {_reason(error)}") from None


def handed_over() -> list[socket.socket]:
    """Return the sockets on which systemd, or another parent, already listens for this process: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_FIRST_HANDED_OVER, _FIRST_HANDED_OVER + int(os.environ.get("LISTEN_FDS", "0")))
    return [socket.socket(fileno=number) for number in numbers]


def _refuse_live_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_SECONDS_TO_CONNECT)
        probe.connect(path)
        raise OSError("another process listens on it")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
