"""Whether another site's page is asking (cross-site request forgery), by what a browser says about the page.

A forged request is told from our own page's by what browsers say about the page that asks. No single sign gets through
every proxy: ``Sec-Fetch-Site`` is sent over HTTPS and to localhost only, and ``Origin`` (where a browser sends none,
``Referer``) cannot be compared where the proxy changes ``Host``. So one of three is enough, and a plain no is final.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from flower_proxy.proxy.addresses import without_default_port
from flower_proxy.proxy.headers import Headers, combined_value
from flower_proxy.proxy.location import Location

_ANOTHER_SITE = ("cross-site", "same-site")  # W3C Fetch Metadata, section 2.1.4
# Of a Referer that names no origin: a browser sent it all the same
_NOBODY = "null"
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


def site_refusal(headers: Headers, *, reads: bool, cors_origins: Collection[str]) -> str | None:
    """Tell why a request is refused of which the browser says that another site is asking.

    :param reads: whether the request only reads. Then links from other sites and frames are fine; what a page loads
        without going there is not, though browsers do not hand it the answer: enough can be measured about one.
    :param cors_origins: the origins that may read.
    :returns: the reason and what to do about it, in one line; None if the request is fine.
    """
    site = combined_value(headers, "Sec-Fetch-Site")
    if site not in _ANOTHER_SITE:
        return None
    navigates = combined_value(headers, "Sec-Fetch-Mode") == "navigate"
    if reads and (navigates or combined_value(headers, "Origin") in cors_origins):
        return None
    hint = "; --cors_origins names sites that may read" if reads else ""
    return f"the browser says that another site is asking (Sec-Fetch-Site: {site}){hint}"


def refusal(headers: Headers, location: Location, has_page_token: Callable[[], bool]) -> str | None:
    """Tell why a request that changes something is refused.

    :param headers: the request's headers.
    :param location: where the request was sent to.
    :param has_page_token: whether it carries the token that only our own page knows; asked last.
    :returns: the reason and what to do about it, in one line; None if the request is fine. A request without any
        header of a browser's (curl, a script) is fine: no browser was talked into sending it.
    """
    if another := site_refusal(headers, reads=False, cors_origins=()):
        return another
    site = combined_value(headers, "Sec-Fetch-Site")
    origin = combined_value(headers, "Origin") or _origin_of(combined_value(headers, "Referer"))
    if site == "same-origin" or (origin and origin == location.origin) or not (site or origin):
        return None
    if has_page_token():
        return None
    return (
        f"the page's origin is {origin or 'unknown'}, but this is {location.origin}: reload the page; if that does not"
        " help, let the proxy send Host or X-Forwarded-Host, and X-Forwarded-Proto, as the browser sees them"
    )


def parse_origin(text: str) -> str:
    """Read one of ``--cors_origins``.

    :raises ValueError: it is no origin; the message says what was expected.
    """
    origin = text.strip().lower()
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{text!r} is not an origin such as https://dashboard.example.com")
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{without_default_port(host, scheme)}"


def _origin_of(referer: str) -> str:
    try:
        parts = urlsplit(referer)
    except ValueError:
        return _NOBODY
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer and _NOBODY
