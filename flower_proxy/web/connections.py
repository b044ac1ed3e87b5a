"""Connections of clients: how many there may be, and how long they may keep the server waiting."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream

from flower_proxy.web.limits import MAX_BODY

logger = logging.getLogger(__name__)

IDLE_TIMEOUT = 75.0
"""Seconds within which the head of a request has to be there, from the connection or the answer before it on.

nginx and HAProxy drop their idle connections to a server before that, so no request meets one that is being closed.
"""

BODY_TIMEOUT = 60.0
"""Seconds within which a body has to be there, from the end of the head on."""

WRITE_TIMEOUT = 60.0
"""Seconds after which a connection is closed whose client has not accepted a single byte of what is sent."""

# Beyond it each further connection costs memory, up to a head and a body of 64 KB, and helps nobody
_MAX_CONNECTIONS = 2000
# Listening sockets, the broker's connections, logs, the database
_OTHER_DESCRIPTORS = 64
# The socket, and the static file that is sent
_DESCRIPTORS_PER_CONNECTION = 2
_LOG_INTERVAL = 60.0  # seconds
# How long a new connection may take to send its first request once no more are accepted
_FIRST_REQUEST_TIMEOUT = 0.5
_DRAIN_INTERVAL = 0.02


def max_connections(wanted: int | None) -> int:
    """Return how many connections there may be at a time.

    :param wanted: of ``--max_connections``; None for as many as the process has descriptors for, at most 2,000.
    :raises ValueError: there are not enough descriptors for so many.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted or _MAX_CONNECTIONS
    possible = max(1, (descriptors - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION)
    if wanted is not None and wanted > possible:
        needed = wanted * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS
        raise ValueError(
            f"--max_connections: {wanted} need {needed} file descriptors, and the limit is {descriptors}:"
            " raise it (LimitNOFILE in systemd, ulimit -n in a shell)"
        )
    return wanted or min(possible, _MAX_CONNECTIONS)


class ConnectionLimit:
    """The open connections of one or several servers.

    At the limit a new connection replaces the one that has waited longest for a request, whatever its address: that of
    a proxy is everybody's. If none is waiting, it replaces the one that has been at its request for longest.

    :param maximum: how many connections there may be.
    :param clock: the time in seconds.
    :ivar replaced: how many connections had to give way.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self.replaced = 0
        self._clock = clock
        # The one that has been there for longest comes first
        self._waiting: OrderedDict[IOStream, bool] = OrderedDict()  # whether it has sent a request before
        self._busy: OrderedDict[IOStream, None] = OrderedDict()
        self._log_at = clock()
        self._replaced_before = 0

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._waiting) + len(self._busy)

    def add(self, stream: IOStream) -> None:
        """Count a new connection, and make room for it."""
        while len(self) >= self.maximum:
            self._replace_one()
        self._waiting[stream] = False

    def waits(self, stream: IOStream) -> None:
        """Note that a connection waits for its next request, unless it has been replaced."""
        if stream in self._busy:
            del self._busy[stream]
            self._waiting[stream] = True

    def works(self, stream: IOStream) -> None:
        """Note that the head of a request is there, unless the connection has been replaced."""
        if stream in self._waiting:
            del self._waiting[stream]
            self._busy[stream] = None

    def remove(self, stream: IOStream) -> None:
        """Forget a connection that has ended."""
        self._waiting.pop(stream, None)
        self._busy.pop(stream, None)

    async def drain(self, timeout: float) -> None:
        """Wait until each request has been answered, also the first one of a new connection.

        A client that reuses a connection has to expect that it is closed (RFC 9112, section 9.3.1).

        :param timeout: seconds.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while (elapsed := loop.time() - begin) < timeout:
            expected = elapsed < _FIRST_REQUEST_TIMEOUT and not all(self._waiting.values())
            if not (self._busy or expected):
                break
            await asyncio.sleep(_DRAIN_INTERVAL)

    def _replace_one(self) -> None:
        stream, _ = (self._waiting or self._busy).popitem(last=False)
        stream.close()
        self.replaced += 1
        now = self._clock()
        if now < self._log_at:
            return
        logger.warning(
            "All %d connections are in use; closed %d that had waited longest for a request. If they are not an attack,"
            " raise --max_connections",
            self.maximum,
            self.replaced - self._replaced_before,
        )
        self._log_at, self._replaced_before = now + _LOG_INTERVAL, self.replaced


class BoundedServer(HTTPServer):
    """An HTTP server that no client can occupy.

    :param router: what answers.
    :param connections: of this server, and of others that share the limit.
    :param ssl_options: for TLS.
    :param idle_timeout: seconds, as `IDLE_TIMEOUT`; likewise `body_timeout` and `write_timeout`.
    """

    def initialize(  # type: ignore[override]
        self,
        router: HTTPServerConnectionDelegate,
        *,
        connections: ConnectionLimit,
        ssl_options: Any = None,
        idle_timeout: float = IDLE_TIMEOUT,
        body_timeout: float = BODY_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        # Forwarded headers are read in find_handler, with a look at who sends them: xheaders stays off
        super().initialize(
            router,
            ssl_options=ssl_options,
            idle_connection_timeout=idle_timeout,
            body_timeout=body_timeout,
            max_body_size=MAX_BODY,
        )
        self.limit = connections
        self.write_timeout = write_timeout

    def stop(self) -> None:
        """Accept no more connections, and close each after its next answer."""
        super().stop()
        self.conn_params.no_keep_alive = True

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.limit.add(stream)
        if stream.socket.family != socket.AF_UNIX:
            # The kernel sees what is accepted, also where a large answer is one write of Tornado's; see tcp(7)
            milliseconds = int(self.write_timeout * 1000)
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        stream: IOStream = request_conn.stream  # type: ignore[attr-defined]
        self.limit.waits(stream)
        return _Noting(super().start_request(server_conn, request_conn), lambda: self.limit.works(stream))

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.limit.remove(server_conn.stream)  # type: ignore[attr-defined]


class _Noting(HTTPMessageDelegate):
    """Passes a request on, and notes when its head is there."""

    def __init__(self, delegate: HTTPMessageDelegate, on_head: Callable[[], None]) -> None:
        self._delegate, self._on_head = delegate, on_head

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._on_head()
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()
