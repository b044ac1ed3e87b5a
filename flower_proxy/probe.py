"""What ``flower-proxy check`` sends, and what comes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import unescape
from urllib.parse import urljoin, urlsplit

from flower_proxy.location import without_default_port
from flower_proxy.paths import parse_mount
from flower_proxy.seen import PATH, Seen, read_seen

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

LARGE = 100_000
"""Bytes: ten times what the largest page, the tasks table, sends."""

_SECONDS = 15
_LINK = re.compile(r"<(?:script|link)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")
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

    @property
    def seen(self) -> Seen | None:
        """What the launcher says, if it is what answers."""
        try:
            return read_seen(json.loads(self.body)) if self.status == 200 else None
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class StaticFile:
    """A script or stylesheet that the page names."""

    url: str
    # None where the page names one outside of the prefix, which is not asked for
    answer: Answer | None

    @property
    def expected_type(self) -> str:
        path = urlsplit(self.url).path
        return next((kind for ending, kind in _EXPECTED.items() if path.endswith(ending)), "")


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


class Client:
    """Asks one address, as it is told: no redirect is followed, no cookie kept.

    :param credentials: ``user:password``, or empty.
    :param context: for TLS.
    """

    def __init__(self, target: Target, credentials: str, context: ssl.SSLContext) -> None:
        self.target, self._context = target, context
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
        """
        target, answer = self.target, Answer()
        connection = (
            http.client.HTTPSConnection(target.name, target.port, timeout=_SECONDS, context=self._context)
            if target.scheme == "https"
            else http.client.HTTPConnection(target.name, target.port, timeout=_SECONDS)
        )
        sent = {"User-Agent": "flower-proxy check", **(self._known if known else {}), **(headers or {})}
        with contextlib.closing(connection):
            try:
                connection.connect()
                answer = replace(answer, port=connection.sock.getsockname()[1])
                # A proxy that refuses a body may answer before it has read it, and close
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body=body, headers=sent)
                response = connection.getresponse()
                found = {name.lower(): value for name, value in response.getheaders()}
                answer = replace(answer, status=response.status, headers=found)
                return replace(answer, body=response.read())
            except (OSError, ValueError, http.client.HTTPException) as error:
                return replace(answer, problem=problem_of(error, target))

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
        links = (urljoin(str(self.target), unescape(link)) for link in _LINK.findall(page.text))
        return list(dict.fromkeys(links))

    def _load(self, url: str) -> StaticFile:
        if not url.startswith(str(self.target)):
            return StaticFile(url, None)
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return StaticFile(url, self.ask(path, {"Accept-Encoding": "gzip"}))


def problem_of(error: Exception, target: Target) -> str:
    """Tell in one line why nothing came back, or not all, and what to do."""
    where = target.netloc
    if isinstance(error, http.client.IncompleteRead):
        return "the answer is cut off"
    if isinstance(error, socket.gaierror):
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
        return f"{where} does not answer within {_SECONDS} seconds: a firewall, or a proxy that waits for somebody else"
    if isinstance(error, http.client.HTTPException):
        return f"{where} does not speak HTTP, or expects https://"
    return f"{where} cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
