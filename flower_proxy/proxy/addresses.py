"""IP addresses, hosts, ports and trusted proxies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

UNIX = "unix"
"""The peer of a unix socket, which has no address."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORTS = {"http": 80, "https": 443}
"""The default port of each URL scheme (RFC 9110, section 4.2)."""

_ADDRESS_AND_PORT = re.compile(r"(?P<v4>[0-9.]+):\d+|\[(?P<v6>[^\]]*)\](?::\d+)?")


def parse_address(text: str) -> Address | None:
    """Parse one element of ``X-Forwarded-For`` or of ``for=`` (RFC 7239, section 6).

    :param text: an IPv4 or IPv6 address, with or without brackets and port.
    :returns: the address, as IPv4 if it is IPv4-mapped, without the zone (``%eth0``, RFC 4007), which is local to a
        host; None if the text is not an address.
    """
    text = text.strip()
    if match := _ADDRESS_AND_PORT.fullmatch(text):
        text = match["v4"] or match["v6"]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


@lru_cache(maxsize=1024)
def normalize_peer(remote: str) -> str:
    """Return the peer of a connection as logs, rate limits and ``--trusted_proxies`` spell it."""
    address = parse_address(remote)
    return str(address) if address else remote


def is_ip(text: str, versions: Collection[int] = (4, 6)) -> bool:
    """Return whether the text is an IP address of one of these versions, without a zone."""
    try:
        return "%" not in text and ipaddress.ip_address(text).version in versions
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or a localhost name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_and_port(host: str, port: int) -> str:
    """Join host and port, with an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_default_port(host: str, scheme: str) -> str:
    """Remove the scheme's default port, as browsers do.

    :param host: a host in lower case, with or without port.
    """
    name, _, port = host.rpartition(":")
    return name if name and port == str(DEFAULT_PORTS.get(scheme)) else host


class TrustedProxies:
    """The peers whose forwarded headers are trusted.

    :param entries: IP addresses, networks in CIDR notation, and ``unix`` for every peer of a unix socket.
    :raises ValueError: an entry is invalid; the message contains the entry and a suggestion.

    Membership is tested with an address as text, or `UNIX`: ``peer in trusted``.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = tuple(entry.strip() for entry in entries if entry.strip())
        self._networks = [_parse_network(entry) for entry in self.entries if entry != UNIX]
        # Bounded, since clients choose the addresses in X-Forwarded-For
        self._holds = lru_cache(maxsize=1024)(self._look_up)

    def __contains__(self, peer: str) -> bool:
        return self._holds(peer)

    def __str__(self) -> str:
        return ", ".join(self.entries) or "none"

    def _look_up(self, peer: str) -> bool:
        if peer == UNIX:
            return UNIX in self.entries
        address = parse_address(peer)
        return address is not None and any(address in network for network in self._networks)


def _parse_network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if "%" in entry or entry.lower().startswith("::ffff:"):
        raise ValueError(f"{entry!r}: omit the zone behind %, and write an IPv4-mapped address as IPv4")
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(f"{entry!r} is not an IP address, a network such as 10.0.0.0/8, or unix") from None
    raise ValueError(f"{entry!r} has host bits set: write {network} for the network")
