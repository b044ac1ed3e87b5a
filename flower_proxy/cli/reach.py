"""The URLs of a server: its hosts, and the SSH tunnel to a server on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from urllib.parse import quote

from flower_proxy.proxy.addresses import host_and_port, is_loopback

# Documentation networks (RFC 5737, RFC 3849), which the default route leads to
_REMOTE_HOSTS = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def hosts_of(address: str) -> tuple[list[str], bool]:
    """Return the hosts for the URLs of a server.

    :param address: the address that the server listens on; empty for all interfaces.
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
        # 0.0.0.0 accepts only IPv4, and :: only IPv6
        served = not address or ip.version == ip_address(address).version
        if served and not (ip.is_loopback or ip.is_link_local or str(ip) in found):
            found.append(str(ip))
    return found, True


def tunnel(address: str, port: int, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the SSH command by which a browser on another machine reaches a server on loopback.

    :param address: the address that the server listens on.
    :param port: the port of the server, and of the tunnel on the other machine.
    :param environ: the environment: ``SSH_CONNECTION`` or, on Linux, the lack of ``DISPLAY`` and ``WAYLAND_DISPLAY``
        indicates that the user's browser is on another machine.
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
    # Debian resolves the host's own name to a loopback address
    for family, remote in _REMOTE_HOSTS.items():
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Connecting a UDP socket sends nothing
            probe.connect((remote, 9))
            yield str(probe.getsockname()[0])
