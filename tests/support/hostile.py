"""Servers that answer `flower-proxy check` with invalid HTTP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

from .processes import Address


@contextlib.contextmanager
def answering(pieces: Callable[[bytes], Iterable[bytes]], *, pause: float = 0) -> Iterator[Address]:
    """Answer every connection with these pieces, while the client reads them.

    :param pieces: returns the pieces for the first bytes of the request; then the connection is closed.
    :param pause: between pieces, in seconds.
    """
    ending = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0.1)
            for piece in pieces(connection.recv(65536)):
                if ending.wait(pause):
                    return
                while piece and not ending.is_set():
                    with contextlib.suppress(TimeoutError):
                        piece = piece[connection.send(piece) :]

    def accept() -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                threads.append(threading.Thread(target=serve, args=[server.accept()[0]]))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield Address(server.getsockname()[1])
        finally:
            ending.set()
            acceptor.join()
            for thread in threads:
                thread.join()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def forever(piece: bytes, *, after: bytes = b"") -> Iterable[bytes]:
    return itertools.chain([after] if after else [], itertools.repeat(piece))
