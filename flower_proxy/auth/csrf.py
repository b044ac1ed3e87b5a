"""Protection against cross-site request forgery (CSRF).

Browsers describe the page that sent a request, but no single header survives every proxy: ``Sec-Fetch-Site`` is sent
only over HTTPS and to localhost, and ``Origin`` (or its fallback ``Referer``) cannot be compared if the proxy changes
``Host``. One of the two or the page's token is therefore sufficient, but an explicit cross-site header is final.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from flower_proxy.proxy.addresses import without_default_port
from flower_proxy.proxy.headers import Headers, combined_value
from flower_proxy.proxy.location import Location

_CROSS_SITE = ("cross-site", "same-site")  # W3C Fetch Metadata, section 2.1.4
# A Referer without an origin still shows that a browser sent the request
_OPAQUE_ORIGIN = "null"
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


def site_refusal(headers: Headers, *, reads: bool, cors_origins: Collection[str]) -> str | None:
    """Return why a request is refused that a browser marks as cross-site.

    :param reads: whether the method is safe. Then cross-site navigations (links, frames) are allowed, but subresource
        loads are not, since side channels disclose information about the response.
    :param cors_origins: the origins that may read.
    :returns: the reason and the remedy, in one line; None if the request is allowed.
    """
    site = combined_value(headers, "Sec-Fetch-Site")
    if site not in _CROSS_SITE:
        return None
    navigates = combined_value(headers, "Sec-Fetch-Mode") == "navigate"
    if reads and (navigates or combined_value(headers, "Origin") in cors_origins):
        return None
    hint = "; to let an origin read, add it to --cors_origins" if reads else ""
    return f"cross-site request refused (Sec-Fetch-Site: {site}){hint}"


def refusal(headers: Headers, location: Location, has_page_token: Callable[[], bool]) -> str | None:
    """Return why a state-changing request is refused.

    :param headers: the request's headers.
    :param location: the public location of the request.
    :param has_page_token: returns whether the request carries the page's token; called last.
    :returns: the reason and the remedy, in one line; None if the request is allowed. Requests without browser headers
        (curl, scripts) are allowed, since CSRF needs a browser.
    """
    if reason := site_refusal(headers, reads=False, cors_origins=()):
        return reason
    site = combined_value(headers, "Sec-Fetch-Site")
    origin = combined_value(headers, "Origin") or _origin_of(combined_value(headers, "Referer"))
    if site == "same-origin" or (origin and origin == location.origin) or not (site or origin):
        return None
    if has_page_token():
        return None
    return (
        f"origin {origin or 'unknown'} does not match {location.origin}: reload the page; if that does not help,"
        " set Host or X-Forwarded-Host, and X-Forwarded-Proto, in the proxy"
    )


def mask(token: bytes) -> str:
    """Return a text that differs each time, and from which `unmask` restores the token.

    The size of a compressed page depends on what repeats in it, which discloses a constant secret beside content that
    an attacker chooses (BREACH).
    """
    key = secrets.token_bytes(len(token))
    return urlsafe_b64encode(key + _xor(token, key)).decode()


def unmask(text: str) -> str:
    """Return the token of a masked one; another text becomes an invalid token."""
    try:
        masked = urlsafe_b64decode(text)
    except ValueError:
        return ""
    half = len(masked) // 2
    return _xor(masked[half:], masked[:half]).decode(errors="replace")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=False))


def parse_origin(text: str) -> str:
    """Parse an entry of ``--cors_origins``.

    :raises ValueError: the text is not an origin; the message states what was expected.
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
        return _OPAQUE_ORIGIN
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer and _OPAQUE_ORIGIN
