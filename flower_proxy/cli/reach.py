"""How users reach a server: the hosts of its URLs, and the SSH tunnel to a server on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from urllib.parse import quote

from flower_proxy.proxy.addresses import host_and_port, is_loopback

# Of networks for documentation (RFC 5737, RFC 3849), for which the default route is taken
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def hosts_of(address: str) -> tuple[list[str], bool]:
    """Return the hosts of URLs that reach a server.

    :param address: the address that it listens on; empty for all interfaces.
    :returns: the hosts, and whether the server listens on all interfaces.
    """
    try:
        everywhere = not address or ip_address(address).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        # The zone of an IPv6 address is encoded in a URL (RFC 6874)
        return [quote(address, safe=":")], False
    found = ["127.0.0.1" if address != "::" else "::1"]
    for host in _own_addresses():
        ip = ip_address(host.partition("%")[0])
        # 0.0.0.0 accepts IPv4 only, and :: IPv6 only
        served = not address or ip.version == ip_address(address).version
        if served and not (ip.is_loopback or ip.is_link_local or str(ip) in found):
            found.append(str(ip))
    return found, True


def tunnel(address: str, port: int, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the command that lets a browser on another machine reach a server on loopback.

    :param address: the address that the server listens on.
    :param port: the port that the server listens on, and the one on the other machine.
    :param environ: the environment: ``SSH_CONNECTION`` or, on Linux, no ``DISPLAY`` and no ``WAYLAND_DISPLAY``
        tell that the user's browser is on another machine.
    :returns: None if the browser needs no tunnel.
    """
    displayed = sys.platform != "linux" or environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")
    if not is_loopback(address) or (displayed and not environ.get("SSH_CONNECTION")):
        return None
    return f"ssh -L {port}:{host_and_port(address, port)} HOST"


def _own_addresses() -> Iterator[str]:
    with contextlib.suppress(OSError):
        for *_, sockaddr in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            yield str(sockaddr[0])
    # Debian gives the host's own name an address of loopback
    for family, elsewhere in _ELSEWHERE.items():
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Of UDP, so nothing is sent
            probe.connect((elsewhere, 9))
            yield str(probe.getsockname()[0])
