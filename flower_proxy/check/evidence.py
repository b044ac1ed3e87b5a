"""The evidence for ``flower-proxy check``: its requests and the responses to them."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from html import unescape
from itertools import islice
from urllib.parse import quote, urljoin, urlsplit

from flower_proxy.check.client import Client, Response, Target
from flower_proxy.check.report import PATH, Report

SPOOFED_HEADERS = {
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "spoofed.invalid",
    "X-Forwarded-Port": "9",
    "X-Forwarded-Prefix": "/spoofed",
    "X-Script-Name": "/spoofed",
    "Forwarded": "for=192.0.2.66;proto=https;host=spoofed.invalid",
}
"""Client-supplied headers that a reverse proxy must not pass on."""

CROSS_SITE_HEADERS = {"Origin": "https://another-site.invalid", "Sec-Fetch-Site": "cross-site"}
"""Headers that mark a cross-site request; each of them suffices."""

ENCODED_PATH = "/a%2Fb"
"""A path segment with an encoded slash."""

LARGE_BODY = 60_000
"""Bytes, just below flower-proxy's limit; Flower's largest request, from the tasks table, has a fifteenth of it."""

# Flower's page has fewer than 20
_MAX_LINKS = 100
# Excluding < keeps the search linear on a page of unclosed tags
_LINK = re.compile(r"<(?:script|link)\b[^<>]*?\b(?:src|href)=\"([^\"]+)\"")
_CONTENT_TYPES = {".css": "text/css", ".js": "javascript"}


@dataclass(frozen=True)
class StaticFile:
    """A script or stylesheet that the page links.

    :ivar url: absolute; may be invalid.
    :ivar response: without its body; None for a file outside the prefix, which is not requested.
    :ivar size: of the body as sent, in bytes.
    """

    url: str
    response: Response | None
    size: int = 0

    @property
    def path(self) -> str:
        """Return the path of the URL."""
        return path_of(self.url)

    @property
    def expected_type(self) -> str:
        """Return a part of the expected ``Content-Type``; empty if browsers accept any."""
        return next((kind for ending, kind in _CONTENT_TYPES.items() if self.path.endswith(ending)), "")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The responses of a deployment.

    :ivar report: the launcher's report.
    :ivar response: to the request for that report.
    :ivar now: the local time of that report, in seconds since the epoch.
    :ivar without_slash: to the prefix without its trailing slash; None without a prefix.
    :ivar spoofed: to a request with a spoofed header, by header name.
    :ivar encoded: to a path that ends with `ENCODED_PATH`.
    :ivar post: to a POST without browser headers.
    :ivar same_origin: to a same-origin POST.
    :ivar cross_site: to a cross-site POST, by the header that marks it.
    :ivar large_body: to a POST of `LARGE_BODY` bytes.
    :ivar anonymous: to a request without credentials.
    :ivar spoofed_user: to a request with a spoofed user header; None without ``--auth_header``.
    :ivar metrics: to an unauthenticated scrape.
    """

    target: Target
    report: Report
    response: Response
    now: float
    page: Response
    without_slash: Response | None
    static_files: tuple[StaticFile, ...]
    spoofed: Mapping[str, Response]
    encoded: Response
    post: Response
    same_origin: Response
    cross_site: Mapping[str, Response]
    large_body: Response
    anonymous: Response
    spoofed_user: Response | None
    metrics: Response

    @property
    def direct(self) -> bool:
        """Return whether there is no reverse proxy: the launcher's peer has the client's own port.

        Network address translation may change the port, but adds no headers and is not trusted.
        """
        report, response = self.report, self.response
        has_traces = report.headers or report.trusted or {"server", "via"} & response.headers.keys()
        return report.peer_port == response.port or not has_traces


def request_report(client: Client) -> tuple[Response, float]:
    """Request the launcher's report.

    :returns: the response, and the local time halfway through the request, in seconds since the epoch.
    :raises CheckTimeoutError: the client's timeout has passed.
    """
    before = time.time()
    response = client.request(client.target.prefix + PATH)
    return response, (before + time.time()) / 2


def gather(client: Client, response: Response, report: Report, now: float) -> Evidence:
    """Send all other requests, after the one for the report.

    :param response: to the request for the report.
    :param now: the local time of the report, in seconds since the epoch.
    :raises CheckTimeoutError: the client's timeout has passed.
    """
    target, request = client.target, client.request
    path, user_header = target.prefix + PATH, report.user_header
    page = request(f"{target.prefix}/")
    other_scheme = "http" if target.scheme == "https" else "https"
    spoofed = {name: value.replace("https", other_scheme) for name, value in SPOOFED_HEADERS.items()}
    return Evidence(
        target=target,
        report=report,
        response=response,
        now=now,
        page=page,
        without_slash=request(target.prefix) if target.prefix else None,
        static_files=tuple(_load(client, url) for url in _linked_files(page, target)),
        spoofed={name: request(path, {name: value}) for name, value in spoofed.items()},
        encoded=request(path + ENCODED_PATH),
        post=request(path, method="POST", body=b""),
        same_origin=request(path, {"Origin": target.origin}, method="POST", body=b""),
        cross_site={
            name: request(path, {name: value}, method="POST", body=b"") for name, value in CROSS_SITE_HEADERS.items()
        },
        large_body=request(path, method="POST", body=bytes(LARGE_BODY)),
        anonymous=request(path, authenticated=False),
        spoofed_user=request(path, {user_header: "spoofed"}, authenticated=False) if user_header else None,
        metrics=request(f"{target.prefix}/metrics", authenticated=False),
    )


def _linked_files(page: Response, target: Target) -> Iterable[str]:
    links = (resolve(str(target), match[1]) for match in _LINK.finditer(page.text))
    return dict.fromkeys(islice(links, _MAX_LINKS))


def _load(client: Client, url: str) -> StaticFile:
    if not url.startswith(str(client.target)):
        return StaticFile(url, None)
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    response = client.request(quote(path, safe=string.punctuation), {"Accept-Encoding": "gzip"})
    return StaticFile(url, replace(response, body=b""), len(response.body))


def resolve(base: str, link: str) -> str:
    """Resolve a link; return it unchanged if it is not a valid URL."""
    try:
        return urljoin(base, unescape(link))
    except ValueError:
        return link


def path_of(url: str) -> str:
    """Return the path of a URL; return the text unchanged if it is not a valid URL."""
    try:
        return urlsplit(url).path
    except ValueError:
        return url
