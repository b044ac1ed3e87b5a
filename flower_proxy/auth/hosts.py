"""Host header validation against DNS rebinding."""

from __future__ import annotations

import re
from collections.abc import Collection

from flower_proxy.proxy.addresses import UNIX, is_ip, is_loopback
from flower_proxy.proxy.headers import Headers, combined_value
from flower_proxy.proxy.location import Location

_HOST_NAME = re.compile(r"\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def host_refusal(headers: Headers, location: Location, allowed_hosts: Collection[str]) -> str | None:
    """Return why a request is refused because of its ``Host`` (DNS rebinding).

    An attacker's page whose host name starts to resolve to this server is same-origin for the browser, but it cannot
    change ``Host``. It can send any ``X-Forwarded-Host``, and a browser on this machine connects from loopback, which
    is trusted; therefore that header counts only if the sender is not a browser. Browsers always send ``Connection:
    keep-alive`` over HTTP/1.1, which scripts cannot change (Fetch, forbidden request-headers); proxies drop it, since
    it is hop-by-hop (RFC 9110, section 7.6.1).

    :param allowed_hosts: additional host names, as `parse_allowed_host` returns them.
    :returns: the reason and the remedy, in one line; None if the request is allowed. IP addresses and localhost are
        always allowed, since an attacker cannot register them.
    """
    host = combined_value(headers, "Host")
    name = _name_of(host)
    if location.peer == UNIX or not host or is_loopback(name) or _is_address(name):
        return None
    if any(name == allowed or (allowed[0] == "." and f".{name}".endswith(allowed)) for allowed in allowed_hosts):
        return None
    if location.host_forwarded and "keep-alive" not in combined_value(headers, "Connection"):
        return None
    return f"Host {name[:100]!a} is not allowed; if it is yours, add --allowed_hosts={name[:100]}"


def parse_allowed_host(text: str) -> str:
    """Parse an entry of ``--allowed_hosts``.

    :param text: a host name without port; a leading dot includes its subdomains.
    :raises ValueError: the text is not a host name; the message states what was expected.
    """
    name = text.strip().lower().rstrip(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a host name such as flower.example.com, or .example.com, without a port")
    return name


def _is_address(name: str) -> bool:
    # Link-local addresses may carry a zone
    return is_ip(name.removeprefix("[").removesuffix("]").partition("%")[0])


def _name_of(host: str) -> str:
    name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
    return name.rstrip(".")
