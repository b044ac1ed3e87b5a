"""The evidence for ``flower-proxy check``: which requests are sent, and the answers to them."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from html import unescape
from itertools import islice
from urllib.parse import quote, urljoin, urlsplit

from flower_proxy.check.client import Answer, Client, Target
from flower_proxy.check.report import PATH, Seen

SPOOFED_HEADERS = {
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "made-up.invalid",
    "X-Forwarded-Port": "9",
    "X-Forwarded-Prefix": "/made-up",
    "X-Script-Name": "/made-up",
    "Forwarded": "for=192.0.2.66;proto=https;host=made-up.invalid",
}
"""Client-supplied headers that a reverse proxy must not pass on."""

CROSS_SITE_HEADERS = {"Origin": "https://another-site.invalid", "Sec-Fetch-Site": "cross-site"}
"""The headers that mark a cross-site request; each of them suffices."""

ENCODED_PATH = "/a%2Fb"
"""A path segment with an encoded slash."""

LARGE_BODY = 60_000
"""Bytes, just below flower-proxy's limit for bodies: fifteen times the tasks table's request, Flower's largest."""

# Flower's page has fewer than twenty
_MAX_LINKS = 100
# Without < in a tag the search takes linear time, also in a page of unclosed tags
_LINK = re.compile(r"<(?:script|link)\b[^<>]*?\b(?:src|href)=\"([^\"]+)\"")
_CONTENT_TYPES = {".css": "text/css", ".js": "javascript"}


@dataclass(frozen=True)
class StaticFile:
    """A script or stylesheet that the page links.

    :ivar url: as text, which need not be a valid URL.
    :ivar answer: without its body; None for a file outside of the prefix, which is not requested.
    :ivar size: of the body as sent, in bytes.
    """

    url: str
    answer: Answer | None
    size: int = 0

    @property
    def path(self) -> str:
        return path_of(self.url)

    @property
    def expected_type(self) -> str:
        return next((kind for ending, kind in _CONTENT_TYPES.items() if self.path.endswith(ending)), "")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All answers of a deployment.

    :ivar seen: the launcher's report, which `answer` carries.
    :ivar now: the local time of that report, in seconds since the epoch.
    :ivar without_slash: to the prefix without its final slash; None without a prefix.
    :ivar spoofed: to a request with a spoofed header, by the header's name.
    :ivar encoded: to a path that ends with `ENCODED_PATH`.
    :ivar post: to a POST without browser headers.
    :ivar same_origin: to a POST of Flower's own page.
    :ivar cross_site: to a POST of another site's page, by the header that says so.
    :ivar large_body: to a POST of `LARGE_BODY` bytes.
    :ivar anonymous: to a request without credentials.
    :ivar spoofed_user: to a request with a spoofed user header; None without ``--auth_header``.
    :ivar metrics: to an unauthenticated scrape.
    """

    target: Target
    seen: Seen
    answer: Answer
    now: float
    page: Answer
    without_slash: Answer | None
    statics: tuple[StaticFile, ...]
    spoofed: Mapping[str, Answer]
    encoded: Answer
    post: Answer
    same_origin: Answer
    cross_site: Mapping[str, Answer]
    large_body: Answer
    anonymous: Answer
    spoofed_user: Answer | None
    metrics: Answer

    @property
    def direct(self) -> bool:
        """Whether there is no reverse proxy: the launcher's peer is the client's own port.

        Network address translation may change the port, but adds no headers and is not trusted.
        """
        has_traces = self.seen.headers or self.seen.trusted or {"server", "via"} & self.answer.headers.keys()
        return self.seen.peer_port == self.answer.port or not has_traces


def ask_launcher(client: Client) -> tuple[Answer, float]:
    """Request the launcher's report.

    :returns: the answer, and the local time halfway through the request, in seconds since the epoch.
    :raises CheckTimeoutError: the client's timeout is over.
    """
    before = time.time()
    answer = client.ask(client.target.prefix + PATH)
    return answer, (before + time.time()) / 2


def gather(client: Client, answer: Answer, seen: Seen, now: float) -> Evidence:
    """Make all further requests, once the launcher has answered.

    :param answer: the one that carries `seen`.
    :param now: the local time of the answer, in seconds since the epoch.
    :raises CheckTimeoutError: the client's timeout is over.
    """
    target, ask = client.target, client.ask
    here, user_header = target.prefix + PATH, seen.user_header
    page = ask(f"{target.prefix}/")
    other_scheme = "http" if target.scheme == "https" else "https"
    spoofed = {name: value.replace("https", other_scheme) for name, value in SPOOFED_HEADERS.items()}
    return Evidence(
        target=target,
        seen=seen,
        answer=answer,
        now=now,
        page=page,
        without_slash=ask(target.prefix) if target.prefix else None,
        statics=tuple(_load(client, url) for url in _linked_files(page, target)),
        spoofed={name: ask(here, {name: value}) for name, value in spoofed.items()},
        encoded=ask(here + ENCODED_PATH),
        post=ask(here, method="POST", body=b""),
        same_origin=ask(here, {"Origin": target.origin}, method="POST", body=b""),
        cross_site={
            name: ask(here, {name: value}, method="POST", body=b"") for name, value in CROSS_SITE_HEADERS.items()
        },
        large_body=ask(here, method="POST", body=bytes(LARGE_BODY)),
        anonymous=ask(here, authenticated=False),
        spoofed_user=ask(here, {user_header: "made-up"}, authenticated=False) if user_header else None,
        metrics=ask(f"{target.prefix}/metrics", authenticated=False),
    )


def _linked_files(page: Answer, target: Target) -> Iterable[str]:
    links = (resolve(str(target), match[1]) for match in _LINK.finditer(page.text))
    return dict.fromkeys(islice(links, _MAX_LINKS))


def _load(client: Client, url: str) -> StaticFile:
    if not url.startswith(str(client.target)):
        return StaticFile(url, None)
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    answer = client.ask(quote(path, safe=string.punctuation), {"Accept-Encoding": "gzip"})
    return StaticFile(url, replace(answer, body=b""), len(answer.body))


def resolve(base: str, link: str) -> str:
    """Resolve a link; it is returned unchanged if it is not a valid URL."""
    try:
        return urljoin(base, unescape(link))
    except ValueError:
        return link


def path_of(url: str) -> str:
    """Return the path of a URL; all of the text if it is not a valid one."""
    try:
        return urlsplit(url).path
    except ValueError:
        return url
