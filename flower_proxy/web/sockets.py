"""Sockets to listen on: those that somebody else has made, and the file of a unix socket."""

from __future__ import annotations

import contextlib
import os
import socket

_FIRST_HANDED_OVER = 3  # SD_LISTEN_FDS_START
_SECONDS_TO_CONNECT = 1.0


def handed_over() -> list[socket.socket]:
    """Return the sockets on which systemd, or another parent, already listens for this process: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_FIRST_HANDED_OVER, _FIRST_HANDED_OVER + int(os.environ.get("LISTEN_FDS", "0")))
    sockets = [socket.socket(fileno=number) for number in numbers]
    for one in sockets:
        one.setblocking(False)
    return sockets


def refuse_live_socket(path: str) -> None:
    """Raise OSError if somebody listens there; a file that a dead process left is replaced by Tornado."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_SECONDS_TO_CONNECT)
        probe.connect(path)
        raise OSError("another process listens on it")


def remove_socket(path: str, inode: int) -> None:
    # Not one that another process has put there meanwhile
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
