"""The HTTP client of ``flower-proxy check``: target and response, sockets, deadlines and limits."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from flower_proxy.check.report import Report, parse_json, validate_report
from flower_proxy.proxy.addresses import DEFAULT_PORTS, without_default_port
from flower_proxy.proxy.paths import parse_mount

CHECK_TIMEOUT = 30.0
"""Seconds for all requests together."""

MAX_RESPONSE_SIZE = 10_000_000
"""Bytes of a response, including status line, headers and framing."""

_REQUEST_TIMEOUT = 15.0
_CHUNK = 65536
_TLS_RECORD = 16384


@dataclass(frozen=True)
class Target:
    """The public address of Flower.

    :ivar netloc: host and port as in the URL argument.
    :ivar prefix: the path, as `parse_mount` returns it.
    """

    scheme: str
    hostname: str
    port: int
    netloc: str
    prefix: str

    @property
    def host(self) -> str:
        """Return the value of the ``Host`` header."""
        return without_default_port(self.netloc.lower(), self.scheme)

    @property
    def origin(self) -> str:
        """Return the value of the ``Origin`` header."""
        return f"{self.scheme}://{self.host}"

    def __str__(self) -> str:
        return f"{self.origin}{self.prefix}/"


def parse_target(url: str) -> Target:
    """Parse the URL argument.

    :raises ValueError: it is not an HTTP URL, or has more than host, port and path.
    """
    if re.match(r"[^/]*//[^/]*@", url):
        raise ValueError("URL contains a password, which other users can see: remove it, and use --user")
    try:
        parts = urlsplit(url)
        port, prefix = parts.port or DEFAULT_PORTS.get(parts.scheme, 0), parse_mount(parts.path)
    except ValueError as error:
        raise ValueError(f"URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"URL {url!r}: expected an address such as https://example.com/flower/")
    if parts.query or parts.fragment:
        raise ValueError(f"URL {url!r}: remove the query and the fragment")
    return Target(parts.scheme, parts.hostname, port, parts.netloc, prefix)


@dataclass(frozen=True)
class Response:
    """The response to one request.

    :ivar status: 0 without a response.
    :ivar headers: by lower-case name.
    :ivar problem: why the response is missing or incomplete; empty if it is complete.
    :ivar port: the local port of the connection.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.problem or f"{self.status} {http.client.responses.get(self.status, '')}".rstrip()

    @property
    def is_ok(self) -> bool:
        """Return whether the status is 200."""
        return self.status == HTTPStatus.OK

    @property
    def is_redirect(self) -> bool:
        """Return whether the status is 3xx."""
        return self.status in range(300, 400)

    @property
    def text(self) -> str:
        """Return the body as text; invalid UTF-8 is replaced."""
        return self.body.decode(errors="replace")

    @cached_property
    def report(self) -> Report | None:
        """Return the launcher's report; None if the response is not one."""
        try:
            return validate_report(parse_json(self.body)) if self.is_ok else None
        except (ValueError, TypeError):
            return None


class CheckTimeoutError(Exception):
    """The requests together exceeded `CHECK_TIMEOUT`; the message is one line."""


class _TooLargeError(Exception):
    pass


class _Reader(io.RawIOBase):
    """A reader of at most `MAX_RESPONSE_SIZE` bytes until a deadline; a socket's own timeout applies to each read."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline, self._left = sock, deadline, MAX_RESPONSE_SIZE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        size = self._sock.recv_into(buffer)
        self._left -= size
        if self._left < 0:
            raise _TooLargeError
        return size


class _Socket:
    """The part of a socket that http.client uses, with a deadline for all of it."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, content: bytes) -> None:
        # TLS applies the socket's timeout to each record
        for start in range(0, len(content), _TLS_RECORD):
            self._sock.settimeout(_left(self._deadline))
            self._sock.sendall(content[start : start + _TLS_RECORD])

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Do nothing: http.client closes its socket before it reads the response."""


def _left(deadline: float) -> float:
    """Return the seconds until the deadline.

    :raises TimeoutError: it has passed.
    """
    if (left := deadline - monotonic()) <= 0:
        raise TimeoutError
    return left


class Client:
    """An HTTP client for one target that follows no redirects and keeps no cookies.

    :param credentials: ``user:password``, or empty.
    :param context: for TLS.
    :param timeout: seconds for all requests together, excluding the DNS lookup.
    """

    def __init__(
        self, target: Target, credentials: str, context: ssl.SSLContext, *, timeout: float = CHECK_TIMEOUT
    ) -> None:
        self.target, self._context = target, context
        self._timeout, self._deadline, self._addresses = timeout, monotonic() + timeout, list[Any]()
        self._authorization = (
            {"Authorization": "Basic " + b64encode(credentials.encode()).decode()} if credentials else {}
        )

    def request(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        authenticated: bool = True,
    ) -> Response:
        """Send one request, on a new connection.

        :param path: from the root of the host.
        :param authenticated: whether to send the credentials.
        :returns: the response, or the part of it that arrived, with the problem.
        :raises CheckTimeoutError: the timeout for all requests has passed.
        """
        target, received = self.target, Response()
        connection = (
            http.client.HTTPSConnection(target.hostname, target.port, context=self._context)
            if target.scheme == "https"
            else http.client.HTTPConnection(target.hostname, target.port)
        )
        sent = {"User-Agent": "flower-proxy check", **(self._authorization if authenticated else {}), **(headers or {})}
        try:
            self._look_up()
            deadline = min(monotonic() + _REQUEST_TIMEOUT, self._deadline)
            with contextlib.closing(self._connect(deadline)) as sock:
                connection.sock = _Socket(sock, deadline)
                received = replace(received, port=sock.getsockname()[1])
                # A proxy that rejects a body may respond and close the connection before it has read all of it
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body=body, headers=sent)
                response = connection.getresponse()
                received_headers = {name.lower(): value for name, value in response.getheaders()}
                received = replace(received, status=response.status, headers=received_headers)
                return replace(received, body=_read(response))
        except (OSError, ValueError, http.client.HTTPException, _TooLargeError) as error:
            if isinstance(error, TimeoutError) and monotonic() >= self._deadline:
                raise CheckTimeoutError(
                    f"{target.netloc} does not answer all requests within {self._timeout:g} seconds"
                ) from None
            return replace(received, problem=_describe(error, target))

    def _look_up(self) -> None:
        """Resolve the hostname once, and start the deadline afterwards, since a lookup cannot be interrupted."""
        if not self._addresses:
            self._addresses = socket.getaddrinfo(self.target.hostname, self.target.port, type=socket.SOCK_STREAM)
            self._deadline = monotonic() + self._timeout

    def _connect(self, deadline: float) -> socket.socket:
        """Connect to the first address of the hostname that accepts the connection."""
        problem = OSError("no address")
        for family, kind, protocol, _, address in self._addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.target.scheme == "https":
                    sock.settimeout(_left(deadline))
                    sock = self._context.wrap_socket(sock, server_hostname=self.target.hostname)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem


def _read(response: http.client.HTTPResponse) -> bytes:
    # Reading in chunks prevents http.client from allocating the announced length up front
    body = b"".join(iter(lambda: response.read(_CHUNK), b""))
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _describe(error: Exception, target: Target) -> str:
    """Describe in one line why the response is missing or incomplete, and what to do."""
    where = target.netloc
    match error:
        case http.client.IncompleteRead():
            return "the response is incomplete"
        case _TooLargeError():
            return f"{where} sends a response of more than {MAX_RESPONSE_SIZE // 1_000_000} MB"
        case socket.gaierror() | UnicodeEncodeError():
            return f"the hostname {target.hostname} does not resolve: check its spelling and the DNS"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not valid: {error.verify_message}; use --ca=FILE to trust its issuer,"
                " or --insecure to skip the verification"
            )
        case ssl.SSLError():
            return f"the TLS handshake with {where} failed: use http:// if it does not speak TLS"
        case ConnectionRefusedError():
            return f"{where} refuses the connection: start the proxy, or correct the port"
        case TimeoutError():
            message = f"{where} does not answer within {_REQUEST_TIMEOUT:g} seconds"
            return f"{message}: check the firewall, and the upstream of the proxy"
        case http.client.HTTPException() | ValueError():
            return f"{where} does not answer in HTTP: check the port, and whether it expects https://"
    return f"{where} cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
