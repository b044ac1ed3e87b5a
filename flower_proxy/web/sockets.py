"""Listening sockets: TCP, unix, and socket activation."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from tornado.netutil import bind_sockets, bind_unix_socket

_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START
_CONNECT_TIMEOUT = 1.0  # seconds


class ListenError(OSError):
    """An address or socket that cannot be bound; the message is one line and names the option."""


class AddressError(ListenError):
    """An address that cannot be resolved."""


def bind(address: str, port: int, *, prefix: str = "") -> list[socket.socket]:
    """Bind TCP sockets to an address.

    :param address: a host name or address; empty for all interfaces.
    :param prefix: the prefix of the option names in error messages.
    :raises ListenError: the address cannot be bound.
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
    """The file of a unix socket on which this process listens."""

    path: str
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)


def bind_unix(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """Bind a unix socket, and replace a file left over from a process that has exited.

    :param mode: the permissions of the file.
    :raises ListenError: the socket cannot be created, or another process listens on it.
    """
    try:
        if os.path.exists(path):
            _refuse_live_socket(path)
        bound = bind_unix_socket(path, mode=mode)
        return bound, SocketFile(path, os.stat(path).st_ino)
    except (OSError, ValueError) as error:
        raise ListenError(f"--unix_socket: cannot listen on {path!r}: {_reason(error)}") from None


def handed_over() -> list[socket.socket]:
    """Return the sockets passed by systemd socket activation, see sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(os.environ.get("LISTEN_FDS", "0")))
    return [socket.socket(fileno=number) for number in numbers]


def _refuse_live_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_CONNECT_TIMEOUT)
        probe.connect(path)
        raise OSError("another process listens on it")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
