"""The HTTP client of ``flower-proxy check``: target and answer, sockets, deadlines and limits."""

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
from http.client import responses
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from flower_proxy.check.report import Seen, parse_json, read_seen
from flower_proxy.proxy.addresses import DEFAULT_PORTS, without_default_port
from flower_proxy.proxy.paths import parse_mount

CHECK_TIMEOUT = 30.0
"""Seconds for all requests together."""

MAX_ANSWER = 10_000_000
"""Bytes of an answer, head and framing included."""

_REQUEST_TIMEOUT = 15.0
_CHUNK = 65536
_TLS_RECORD = 16384


@dataclass(frozen=True)
class Target:
    """The public address of Flower.

    :ivar netloc: host and port as the user wrote them.
    :ivar prefix: the path, as `parse_mount` returns it.
    """

    scheme: str
    hostname: str
    port: int
    netloc: str
    prefix: str

    @property
    def host(self) -> str:
        return without_default_port(self.netloc.lower(), self.scheme)

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}"

    def __str__(self) -> str:
        return f"{self.origin}{self.prefix}/"


def parse_target(url: str) -> Target:
    """Parse the URL argument.

    :raises ValueError: it is not the address of a page; the message says what was expected.
    """
    if re.match(r"[^/]*//[^/]*@", url):
        raise ValueError("URL holds a password, which others can see: leave it out, and name the user by --user")
    try:
        parts = urlsplit(url)
        port, prefix = parts.port or DEFAULT_PORTS.get(parts.scheme, 0), parse_mount(parts.path)
    except ValueError as error:
        raise ValueError(f"URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"URL {url!r} is not an address such as https://example.com/flower/")
    if parts.query or parts.fragment:
        raise ValueError(f"URL {url!r}: leave out what stands behind the path")
    return Target(parts.scheme, parts.hostname, port, parts.netloc, prefix)


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    :ivar status: 0 if there is no answer.
    :ivar headers: by their names in lower case.
    :ivar problem: why the answer is missing or incomplete; empty if it is complete.
    :ivar port: the local port of the connection.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.problem or f"{self.status} {responses.get(self.status, '')}".rstrip()

    @property
    def is_ok(self) -> bool:
        return self.status == HTTPStatus.OK

    @property
    def is_redirect(self) -> bool:
        return self.status in range(300, 400)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @cached_property
    def seen(self) -> Seen | None:
        """The launcher's report; None if the answer is not the launcher's."""
        try:
            return read_seen(parse_json(self.body)) if self.is_ok else None
        except (ValueError, TypeError):
            return None


class CheckTimeoutError(Exception):
    """All requests together took too long; the message is one line."""


class _TooLargeError(Exception):
    pass


class _Reader(io.RawIOBase):
    """A reader of at most `MAX_ANSWER` bytes until a deadline; a socket's own timeout applies to each read."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline, self._left = sock, deadline, MAX_ANSWER

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
        # With TLS the timeout would apply to each record
        for start in range(0, len(content), _TLS_RECORD):
            self._sock.settimeout(_left(self._deadline))
            self._sock.sendall(content[start : start + _TLS_RECORD])

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Do nothing: http.client closes its socket before it has read the answer."""


def _left(deadline: float) -> float:
    """Return the seconds until the deadline.

    :raises TimeoutError: it is over.
    """
    if (left := deadline - monotonic()) <= 0:
        raise TimeoutError
    return left


class Client:
    """An HTTP client for one target that follows no redirects and keeps no cookies.

    :param credentials: ``user:password``, or empty.
    :param context: for TLS.
    :param timeout: seconds for all requests together, without the DNS lookup.
    """

    def __init__(
        self, target: Target, credentials: str, context: ssl.SSLContext, *, timeout: float = CHECK_TIMEOUT
    ) -> None:
        self.target, self._context = target, context
        self._timeout, self._deadline, self._addresses = timeout, monotonic() + timeout, list[Any]()
        self._authorization = (
            {"Authorization": "Basic " + b64encode(credentials.encode()).decode()} if credentials else {}
        )

    def ask(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        authenticated: bool = True,
    ) -> Answer:
        """Send one request, on a connection of its own.

        :param path: from the root of the host.
        :param authenticated: whether to send the credentials.
        :returns: the answer, or as much of it as arrived, with the problem.
        :raises CheckTimeoutError: the timeout for all requests is over.
        """
        target, answer = self.target, Answer()
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
                answer = replace(answer, port=sock.getsockname()[1])
                # A proxy that refuses a body may answer before it has read it, and close
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body=body, headers=sent)
                response = connection.getresponse()
                received = {name.lower(): value for name, value in response.getheaders()}
                answer = replace(answer, status=response.status, headers=received)
                return replace(answer, body=_read(response))
        except (OSError, ValueError, http.client.HTTPException, _TooLargeError) as error:
            if isinstance(error, TimeoutError) and monotonic() >= self._deadline:
                raise CheckTimeoutError(
                    f"{target.netloc} does not answer everything within {self._timeout:g} seconds"
                ) from None
            return replace(answer, problem=_describe(error, target))

    def _look_up(self) -> None:
        """Look the hostname up, once; the deadline starts afterwards, since a lookup cannot be interrupted."""
        if not self._addresses:
            self._addresses = socket.getaddrinfo(self.target.hostname, self.target.port, type=socket.SOCK_STREAM)
            self._deadline = monotonic() + self._timeout

    def _connect(self, deadline: float) -> socket.socket:
        """Connect to the first address of the hostname that accepts."""
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
    # http.client allocates the announced length before it reads, so the body is read in pieces
    body = b"".join(iter(lambda: response.read(_CHUNK), b""))
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _describe(error: Exception, target: Target) -> str:
    """Say in one line why the answer is missing or incomplete, and what to do."""
    where = target.netloc
    match error:
        case http.client.IncompleteRead():
            return "the answer is cut off"
        case _TooLargeError():
            return f"{where} answers with more than {MAX_ANSWER // 1_000_000} megabytes"
        case socket.gaierror() | UnicodeEncodeError():
            return f"the name {target.hostname} is not known: look for a mistake in it, or in DNS"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not good: {error.verify_message}; --ca=FILE names who has signed it,"
                " --insecure takes any"
            )
        case ssl.SSLError():
            return f"{where} does not speak TLS as expected; is it http://{where}?"
        case ConnectionRefusedError():
            return f"nobody listens at {where}: start the proxy, or look for a mistake in the port"
        case TimeoutError():
            waits = f"{where} does not answer within {_REQUEST_TIMEOUT:g} seconds"
            return f"{waits}: a firewall, or a proxy that waits for somebody else"
        case http.client.HTTPException() | ValueError():
            return f"{where} does not speak HTTP, or expects https://"
    return f"{where} cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
