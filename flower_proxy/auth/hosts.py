"""Whether a request was sent to a name that is ours (DNS rebinding)."""

from __future__ import annotations

import re
from collections.abc import Collection

from flower_proxy.proxy.addresses import UNIX, is_ip, is_loopback
from flower_proxy.proxy.headers import Headers, combined_value
from flower_proxy.proxy.location import Location

_HOST_NAME = re.compile(r"\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


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
    host = combined_value(headers, "Host")
    name = _name_of(host)
    if location.peer == UNIX or not host or is_loopback(name) or _is_address(name):
        return None
    if any(name == allowed or (allowed[0] == "." and f".{name}".endswith(allowed)) for allowed in allowed_hosts):
        return None
    if location.told_host and "keep-alive" not in combined_value(headers, "Connection"):
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


def _is_address(name: str) -> bool:
    # With a zone, if it is one of an interface
    return is_ip(name.removeprefix("[").removesuffix("]").partition("%")[0])


def _name_of(host: str) -> str:
    name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
    return name.rstrip(".")
