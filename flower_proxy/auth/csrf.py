"""What a browser says about the page that asks, and what it cannot help saying about itself.

A forged request is told from our own page's by what browsers say about the page that asks. No single sign gets through
every proxy: ``Sec-Fetch-Site`` is sent over HTTPS and to localhost only, and ``Origin`` (where a browser sends none,
``Referer``) cannot be compared where the proxy changes ``Host``. So one of three is enough, and a plain no is final.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from flower_proxy.proxy.addresses import UNIX, without_default_port
from flower_proxy.proxy.headers import Headers
from flower_proxy.proxy.location import Location

_ANOTHER_SITE = ("cross-site", "same-site")  # W3C Fetch Metadata, section 2.1.4
# Of a Referer that names no origin: a browser sent it all the same
_NOBODY = "null"
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_HOST_NAME = re.compile(r"\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def site_refusal(headers: Headers, *, reads: bool, cors_origins: Collection[str]) -> str | None:
    """Tell why a request is refused of which the browser says that another site is asking.

    :param reads: whether the request only reads. Then links from other sites and frames are fine; what a page loads
        without going there is not, though browsers do not hand it the answer: enough can be measured about one.
    :param cors_origins: the origins that may read.
    :returns: the reason and what to do about it, in one line; None if the request is fine.
    """
    site = _only(headers, "Sec-Fetch-Site")
    if site not in _ANOTHER_SITE:
        return None
    if reads and (_only(headers, "Sec-Fetch-Mode") == "navigate" or _only(headers, "Origin") in cors_origins):
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
    site = _only(headers, "Sec-Fetch-Site")
    origin = _only(headers, "Origin") or _origin_of(_only(headers, "Referer"))
    if site == "same-origin" or (origin and origin == location.origin) or not (site or origin):
        return None
    if has_page_token():
        return None
    return (
        f"the page's origin is {origin or 'unknown'}, but this is {location.origin}: reload the page; if that does not"
        " help, let the proxy send Host or X-Forwarded-Host, and X-Forwarded-Proto, as the browser sees them"
    )


def host_refusal(headers: Headers, location: Location, allowed_hosts: Collection[str]) -> str | None:
    """Tell why a request is refused that was sent to a name which need not be ours (DNS rebinding).

    A stranger's page whose own name suddenly resolves to our address is to the browser of the same origin as we are.
    What it cannot do is to hide the name, which stands in ``Host``. It can write any ``X-Forwarded-Host``, and a
    browser on this machine speaks from loopback, which is trusted: so that header excuses the name only if what sent it
    is no browser. Browsers always send ``Connection: keep-alive`` over HTTP/1.1, which no script can change (Fetch,
    forbidden request-headers); a proxy drops it, since it is about one connection (RFC 9110, section 7.6.1).

    :param allowed_hosts: names that are ours, as `parse_allowed_host` returns them.
    :returns: as `refusal`. An address and the names of this machine cannot be a stranger's.
    """
    host = _only(headers, "Host")
    name = _name_of(host)
    if location.peer == UNIX or not host or _is_loopback_name(name) or _is_address(name):
        return None
    if any(name == allowed or (allowed[0] == "." and f".{name}".endswith(allowed)) for allowed in allowed_hosts):
        return None
    if location.told_host and "keep-alive" not in _only(headers, "Connection"):
        return None
    return f"the host {name[:100]!a} is not known; if it is yours, add --allowed_hosts={name[:100]}"


def parse_allowed_host(text: str) -> str:
    """Read one of ``--allowed_hosts``.

    :param text: a host name without port; with a dot in front, every name below it too.
    :raises ValueError: it is none; the message says what was expected.
    """
    name = text.strip().lower().rstrip(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a host name such as flower.example.com, or .example.com, without a port")
    return name


def parse_origin(text: str) -> str:
    """Read one of ``--cors_origins``.

    :raises ValueError: it is no origin; the message says what was expected.
    """
    origin = text.strip().lower()
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{text!r} is not an origin such as https://dashboard.example.com")
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{without_default_port(host, scheme)}"


def _only(headers: Headers, name: str) -> str:
    # Several lines of a header that browsers send once: somebody has tampered with it
    return ", ".join(headers.get_list(name)).strip().lower()


def _origin_of(referer: str) -> str:
    try:
        parts = urlsplit(referer)
    except ValueError:
        return _NOBODY
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer and _NOBODY


def _name_of(host: str) -> str:
    name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
    return name.rstrip(".")


def _is_loopback_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
