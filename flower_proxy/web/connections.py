"""Limits on the number of client connections, and their timeouts."""

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
"""Maximum seconds from the start of a connection, or the previous response, to the end of the request headers.

nginx and HAProxy close idle upstream connections earlier, so they do not send requests on a connection being closed.
"""

BODY_TIMEOUT = 60.0
"""Maximum seconds from the end of the headers to the end of the request body."""

WRITE_TIMEOUT = 60.0
"""Maximum seconds without a client accepting any byte of the response; then the connection is closed."""

# Each connection can hold 64 KB of headers and 64 KB of body in memory
_MAX_CONNECTIONS = 2000
# Listening sockets, connections to the broker, logs, the state file
_OTHER_DESCRIPTORS = 64
# The socket and the static file being sent
_DESCRIPTORS_PER_CONNECTION = 2
_LOG_INTERVAL = 60.0  # seconds
# Seconds for a new connection to send its first request during shutdown
_FIRST_REQUEST_TIMEOUT = 0.5
_DRAIN_INTERVAL = 0.02


def max_connections(wanted: int | None) -> int:
    """Return the maximum number of concurrent connections.

    :param wanted: the value of ``--max_connections``; None for as many as file descriptors allow, at most 2,000.
    :raises ValueError: the limit on file descriptors is too low.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted or _MAX_CONNECTIONS
    possible = max(1, (descriptors - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION)
    if wanted is not None and wanted > possible:
        needed = wanted * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS
        raise ValueError(
            f"--max_connections: {wanted} need {needed} file descriptors, and the limit is {descriptors}:"
            " raise the limit (LimitNOFILE in systemd, ulimit -n in a shell) or lower the option"
        )
    return wanted or min(possible, _MAX_CONNECTIONS)


class ConnectionLimit:
    """The open connections of one or more servers.

    At the limit, a new connection replaces the one that has been idle longest, or else the one with the oldest request
    in progress. Client addresses are ignored: behind a proxy all connections have the same one.

    :param maximum: maximum number of connections.
    :param clock: returns the time in seconds.
    :ivar replaced: number of connections closed in favor of new ones.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self.replaced = 0
        self._clock = clock
        # Oldest first
        self._waiting: OrderedDict[IOStream, bool] = OrderedDict()  # True after its first request
        self._busy: OrderedDict[IOStream, None] = OrderedDict()
        self._log_at = clock()
        self._replaced_before = 0

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._waiting) + len(self._busy)

    def add(self, stream: IOStream) -> None:
        """Add a new connection and replace others if necessary."""
        while len(self) >= self.maximum:
            self._replace_one()
        self._waiting[stream] = False

    def waits(self, stream: IOStream) -> None:
        """Mark a connection as idle, unless it has been replaced."""
        if stream in self._busy:
            del self._busy[stream]
            self._waiting[stream] = True

    def works(self, stream: IOStream) -> None:
        """Mark a connection as busy: the headers of a request have arrived."""
        if stream in self._waiting:
            del self._waiting[stream]
            self._busy[stream] = None

    def remove(self, stream: IOStream) -> None:
        """Remove a closed connection."""
        self._waiting.pop(stream, None)
        self._busy.pop(stream, None)

    async def drain(self, timeout: float) -> None:
        """Wait for requests in progress, and for the first request of new connections.

        Clients have to expect that a reused connection is closed (RFC 9112, section 9.3.1).

        :param timeout: maximum seconds.
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
    """An HTTP server with limits on connections and timeouts.

    :param router: handles the requests.
    :param connections: the connection limit, which servers can share.
    :param ssl_options: the TLS configuration, as for `tornado.httpserver.HTTPServer`.
    :param idle_timeout: seconds, see `IDLE_TIMEOUT`; likewise `body_timeout` and `write_timeout`.
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
        """Initialize the server; Tornado calls this in place of ``__init__``."""
        # xheaders stays off: PublicRouter evaluates forwarded headers, from trusted peers only
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
        """Stop accepting connections, and close each after its next response."""
        super().stop()
        self.conn_params.no_keep_alive = True

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Handle a new connection."""
        self.limit.add(stream)
        if stream.socket.family != socket.AF_UNIX:
            # Tornado does not see the progress of a large write, but the kernel does; see tcp(7)
            milliseconds = int(self.write_timeout * 1000)
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Return the delegate of a new request."""
        stream: IOStream = request_conn.stream  # type: ignore[attr-defined]
        self.limit.waits(stream)
        return _HeadObserver(super().start_request(server_conn, request_conn), lambda: self.limit.works(stream))

    def on_close(self, server_conn: object) -> None:
        """Remove a closed connection from the limit."""
        super().on_close(server_conn)
        self.limit.remove(server_conn.stream)  # type: ignore[attr-defined]


class _HeadObserver(HTTPMessageDelegate):
    """A delegate that calls back when the headers of a request have arrived."""

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
