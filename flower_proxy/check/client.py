"""What ``flower-proxy check`` sends, and what comes back."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import ssl
import string
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import unescape
from itertools import islice
from time import monotonic
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from flower_proxy.check.report import PATH, Seen, parse_json, read_seen
from flower_proxy.proxy.addresses import without_default_port
from flower_proxy.proxy.paths import parse_mount

MADE_UP = {
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "made-up.invalid",
    "X-Forwarded-Port": "9",
    "X-Forwarded-Prefix": "/made-up",
    "X-Script-Name": "/made-up",
    "Forwarded": "for=192.0.2.66;proto=https;host=made-up.invalid",
}
"""What a client might write, and no proxy should pass on."""

FOREIGN = {"Origin": "https://another-site.invalid", "Sec-Fetch-Site": "cross-site"}
"""By each of these a browser says that the page of another site is asking."""

ENCODED = "/a%2Fb"
"""How the name a/b stands in a path."""

LARGE = 60_000
"""Bytes of a body just below what flower-proxy accepts: fifteen times what the tasks table, the largest page, sends."""

CHECK_TIMEOUT = 30.0
"""Seconds that all requests may take together."""

MAX_ANSWER = 10_000_000
"""Bytes of an answer, head and framing included."""

_REQUEST_TIMEOUT = 15.0
# Flower's page names fewer than twenty
_MAX_LINKS = 100
_CHUNK = 65536
# Without < in a tag the search takes linear time, also in a page of unclosed tags
_LINK = re.compile(r"<(?:script|link)\b[^<>]*?\b(?:src|href)=\"([^\"]+)\"")
_EXPECTED = {".css": "text/css", ".js": "javascript"}


@dataclass(frozen=True)
class Target:
    """The address that is to be checked.

    :ivar prefix: its path, as `parse_mount` returns it.
    """

    scheme: str
    name: str
    port: int | None
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
    """Read the address.

    :raises ValueError: it is none; the message says what was expected.
    """
    if re.match(r"[^/]*//[^/]*@", url):
        raise ValueError("URL holds a password, which others can see: leave it out, and name the user by --user")
    try:
        parts = urlsplit(url)
        port, prefix = parts.port, parse_mount(parts.path)
    except ValueError as error:
        raise ValueError(f"URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"URL {url!r} is not an address such as https://example.com/flower/")
    if parts.query or parts.fragment:
        raise ValueError(f"URL {url!r}: leave out what stands behind the path")
    return Target(parts.scheme, parts.hostname, port, parts.netloc, prefix)


@dataclass(frozen=True)
class Answer:
    """What came back.

    :ivar status: 0 if nothing did.
    :ivar headers: by their names in lower case.
    :ivar problem: why nothing came, or not all; empty if all did.
    :ivar port: from which it was asked.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""
    port: int = 0

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @cached_property
    def seen(self) -> Seen | None:
        """What the launcher says, if it is what answers."""
        try:
            return read_seen(parse_json(self.body)) if self.status == 200 else None
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class StaticFile:
    """A script or stylesheet that the page names.

    :ivar url: as text, which need not be a URL.
    :ivar answer: without its body; None where the page names one outside of the prefix, which is not asked for.
    :ivar size: of the body, in bytes.
    """

    url: str
    answer: Answer | None
    size: int = 0

    @property
    def path(self) -> str:
        return path_of(self.url)

    @property
    def expected_type(self) -> str:
        return next((kind for ending, kind in _EXPECTED.items() if self.path.endswith(ending)), "")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that came back.

    :ivar seen: what the launcher said.
    :ivar answer: in which it said so.
    :ivar now: the time here, when it said so.
    :ivar made_up: what came back with a made-up header, by its name.
    :ivar encoded: what came back from a path that ends with `ENCODED`.
    :ivar post: what came back to a script; `own` to Flower's own page.
    :ivar foreign: what came back where the page of another site asked, by the header that says so.
    """

    target: Target
    seen: Seen
    answer: Answer
    now: float
    page: Answer
    without_slash: Answer | None
    statics: tuple[StaticFile, ...]
    made_up: Mapping[str, Answer]
    encoded: Answer
    post: Answer
    own: Answer
    foreign: Mapping[str, Answer]
    large: Answer
    anonymous: Answer
    made_up_user: Answer | None
    metrics: Answer

    @property
    def direct(self) -> bool:
        """Whether no proxy is in between: then the launcher is connected to our own port.

        A network that translates addresses may change it, but tells nothing of itself and is not trusted.
        """
        speaks = self.seen.headers or self.seen.trusted or {"server", "via"} & self.answer.headers.keys()
        return self.seen.peer_port == self.answer.port or not speaks


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
        for start in range(0, len(content), 16384):
            self._sock.settimeout(_left(self._deadline))
            self._sock.sendall(content[start : start + 16384])

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Do nothing: http.client closes its socket before it has read the answer."""


def _left(deadline: float) -> float:
    """Return the seconds until then.

    :raises TimeoutError: there are none.
    """
    if (left := deadline - monotonic()) <= 0:
        raise TimeoutError
    return left


class Client:
    """Asks one address, as it is told: no redirect is followed, no cookie kept.

    :param credentials: ``user:password``, or empty.
    :param context: for TLS.
    :param timeout: seconds that all requests may take together; the lookup of the name is not among them.
    """

    def __init__(
        self, target: Target, credentials: str, context: ssl.SSLContext, *, timeout: float = CHECK_TIMEOUT
    ) -> None:
        self.target, self._context = target, context
        self._timeout, self._deadline, self._addresses = timeout, monotonic() + timeout, list[Any]()
        self._known = {"Authorization": "Basic " + b64encode(credentials.encode()).decode()} if credentials else {}

    def ask(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        known: bool = True,
    ) -> Answer:
        """Ask once.

        :param path: from the root of the host.
        :param known: whether to say who is asking.
        :raises CheckTimeoutError: all requests together took too long.
        """
        target, answer = self.target, Answer()
        connection = (
            http.client.HTTPSConnection(target.name, target.port, context=self._context)
            if target.scheme == "https"
            else http.client.HTTPConnection(target.name, target.port)
        )
        sent = {"User-Agent": "flower-proxy check", **(self._known if known else {}), **(headers or {})}
        with contextlib.ExitStack() as stack:
            try:
                self._look_up()
                deadline = min(monotonic() + _REQUEST_TIMEOUT, self._deadline)
                sock = stack.enter_context(contextlib.closing(self._connect(deadline)))
                connection.sock = _Socket(sock, deadline)
                answer = replace(answer, port=sock.getsockname()[1])
                # A proxy that refuses a body may answer before it has read it, and close
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body=body, headers=sent)
                response = connection.getresponse()
                found = {name.lower(): value for name, value in response.getheaders()}
                answer = replace(answer, status=response.status, headers=found)
                # http.client allocates the announced length before it reads, so the body is read in pieces
                body_read = b"".join(iter(lambda: response.read(_CHUNK), b""))
                if response.length:
                    raise http.client.IncompleteRead(body_read, response.length)
                return replace(answer, body=body_read)
            except (OSError, ValueError, http.client.HTTPException, _TooLargeError) as error:
                if isinstance(error, TimeoutError) and monotonic() >= self._deadline:
                    raise CheckTimeoutError(
                        f"{target.netloc} does not answer everything within {self._timeout:g} seconds"
                    ) from None
                return replace(answer, problem=problem_of(error, target))

    def _look_up(self) -> None:
        """Look the name up, once; the deadline starts afterwards, since a lookup cannot be interrupted."""
        if not self._addresses:
            port = self.target.port or (443 if self.target.scheme == "https" else 80)
            self._addresses = socket.getaddrinfo(self.target.name, port, type=socket.SOCK_STREAM)
            self._deadline = monotonic() + self._timeout

    def _connect(self, deadline: float) -> socket.socket:
        """Connect to the first of the name's addresses that takes it."""
        problem = OSError("no address")
        for family, kind, protocol, _, address in self._addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.target.scheme == "https":
                    sock.settimeout(_left(deadline))
                    sock = self._context.wrap_socket(sock, server_hostname=self.target.name)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem

    def gather(self, first: Answer, seen: Seen, now: float) -> Evidence:
        """Ask for everything else, once the launcher has answered."""
        prefix = self.target.prefix
        here = prefix + PATH
        page = self.ask(f"{prefix}/")
        other = "http" if self.target.scheme == "https" else "https"
        made_up = {name: value.replace("https", other) for name, value in MADE_UP.items()}
        user_header = seen.user_header
        return Evidence(
            target=self.target,
            seen=seen,
            answer=first,
            now=now,
            page=page,
            without_slash=self.ask(prefix) if prefix else None,
            statics=tuple(self._load(url) for url in self._links(page)),
            made_up={name: self.ask(here, {name: value}) for name, value in made_up.items()},
            encoded=self.ask(here + ENCODED),
            post=self.ask(here, method="POST", body=b""),
            own=self.ask(here, {"Origin": self.target.origin}, method="POST", body=b""),
            foreign={name: self.ask(here, {name: value}, method="POST", body=b"") for name, value in FOREIGN.items()},
            large=self.ask(here, method="POST", body=bytes(LARGE)),
            anonymous=self.ask(here, known=False),
            made_up_user=self.ask(here, {user_header: "made-up"}, known=False) if user_header else None,
            metrics=self.ask(f"{prefix}/metrics", known=False),
        )

    def look(self) -> tuple[Answer, float]:
        """Ask the launcher what it sees; return that, and the time halfway."""
        before = time.time()
        answer = self.ask(self.target.prefix + PATH)
        return answer, (before + time.time()) / 2

    def _links(self, page: Answer) -> list[str]:
        links = (resolve(str(self.target), match[1]) for match in _LINK.finditer(page.text))
        return list(dict.fromkeys(islice(links, _MAX_LINKS)))

    def _load(self, url: str) -> StaticFile:
        if not url.startswith(str(self.target)):
            return StaticFile(url, None)
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        answer = self.ask(quote(path, safe=string.punctuation), {"Accept-Encoding": "gzip"})
        return StaticFile(url, replace(answer, body=b""), len(answer.body))


def resolve(base: str, link: str) -> str:
    """Return where a link leads; itself where it is no URL."""
    try:
        return urljoin(base, unescape(link))
    except ValueError:
        return link


def path_of(url: str) -> str:
    """Return the path of a URL; all of it where it is none."""
    try:
        return urlsplit(url).path
    except ValueError:
        return url


def problem_of(error: Exception, target: Target) -> str:
    """Tell in one line why nothing came back, or not all, and what to do."""
    where = target.netloc
    if isinstance(error, http.client.IncompleteRead):
        return "the answer is cut off"
    if isinstance(error, _TooLargeError):
        return f"{where} answers with more than {MAX_ANSWER // 1_000_000} megabytes"
    if isinstance(error, (socket.gaierror, UnicodeEncodeError)):
        return f"the name {target.name} is not known: look for a mistake in it, or in DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not good: {error.verify_message}; --ca=FILE names who has signed it,"
            " --insecure takes any"
        )
    if isinstance(error, ssl.SSLError):
        return f"{where} does not speak TLS as expected; is it http://{where}?"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {where}: start the proxy, or look for a mistake in the port"
    if isinstance(error, TimeoutError):
        waits = f"{where} does not answer within {_REQUEST_TIMEOUT:g} seconds"
        return f"{waits}: a firewall, or a proxy that waits for somebody else"
    if isinstance(error, (http.client.HTTPException, ValueError)):
        return f"{where} does not speak HTTP, or expects https://"
    return f"{where} cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
