"""What is said at the start: where it can be opened, who may enter, whom it trusts, which broker it watches."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from logging import INFO, WARNING
from urllib.parse import quote

from flower_proxy.app import FlowerProxy


def banner(flower: FlowerProxy, port: int | None, metrics_port: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines, each with its level for the log.

    :param flower: the application, listening.
    :param port: its port, None on a unix socket.
    :param metrics_port: that of the metrics, None if they have none of their own.
    """
    path = f"{flower.locator.mount}/"
    beyond = False
    if port is None:
        yield INFO, f"Listening on the unix socket {flower.options.unix_socket}, for a proxy to serve at {path}"
    else:
        addresses, everywhere = _addresses(flower.options.address)
        beyond = everywhere or not all(map(_is_loopback, addresses))
        for address in addresses:
            yield INFO, f"Visit me at {_scheme(flower)}://{address}:{port}{path}"
        if everywhere:
            yield (
                INFO,
                "Listening on all interfaces: whoever can reach this machine can ask; --address=127.0.0.1 closes that",
            )
    if metrics_port is not None:
        for address in _addresses(flower.options.metrics_address or "")[0]:
            yield INFO, f"Metrics at {_scheme(flower)}://{address}:{metrics_port}/metrics"
    for line in _who(flower):
        yield INFO, line
    if flower.options.no_auth and beyond:
        yield WARNING, "NOBODY IS ASKED WHO THEY ARE, and it listens beyond this machine: whoever reaches it may act"
    yield INFO, f"Trusted proxies: {flower.locator.trusted}"
    yield INFO, f"Broker: {flower.broker_uri}"


def _scheme(flower: FlowerProxy) -> str:
    return "https" if flower.ssl_options else "http"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(address: str) -> tuple[list[str], bool]:
    """Return the hosts of URLs that lead to what listens there, and whether that is every interface."""
    try:
        everywhere = not address or ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return [address], False
    if not everywhere:
        return [_host(address)], False
    found = ["127.0.0.1" if address != "::" else "[::1]"]
    try:
        infos = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        infos = []
    for *_, sockaddr in infos:
        ip = ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])
        if not (ip.is_loopback or ip.is_link_local) and (host := _host(str(ip))) not in found:
            found.append(host)
    return found, True


def _host(address: str) -> str:
    return f"[{quote(address, safe=':')}]" if ":" in address else address


def _who(flower: FlowerProxy) -> Iterator[str]:
    options, entrance = flower.options, flower.entrance
    ways = []
    if options.no_auth:
        ways.append("everybody: somebody in front asks who they are")
    if options.auth_header:
        ways.append(f"whom a trusted proxy names in {options.auth_header}")
    secrets = []
    if entrance.made_up:
        secrets.append("one user, whose password is made up for this run")
    elif entrance.users:
        secrets.append(f"{len(entrance.users.names())} user(s) by password")
    if options.auth:
        secrets.append(f"those of --auth, by {options.auth_provider}")
    if secrets:
        ways.append(" who are also ".join(secrets))
    yield f"Who may enter: {', or '.join(ways)}"
    if options.read_only:
        yield "Who may act: nobody, as --read_only is set"
    elif options.viewers:
        yield f"Who may act: all of them but {', '.join(options.viewers)}"
    if options.metrics_open:
        yield "Metrics: for everybody" + (" who reaches their port" if options.metrics_port is not None else "")
    elif options.metrics_auth:
        yield "Metrics: for the user of --metrics_auth, and for those who may enter"
