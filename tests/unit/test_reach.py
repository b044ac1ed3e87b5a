"""The hosts in a server's URLs, and the SSH tunnel to it."""

from __future__ import annotations

import socket
import sys

import pytest

from flower_proxy.cli.reach import hosts_of, tunnel

# Debian's /etc/hosts entry for the host name
DEBIAN = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
        ("192.0.2.7", ["192.0.2.7"]),
        ("::1", ["::1"]),
        ("fe80::1%eth0", ["fe80::1%25eth0"]),
    ],
)
def test_the_host_is_the_address(address: str, hosts: list[str]) -> None:
    assert hosts_of(address) == (hosts, False)


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("", ["127.0.0.1", "192.0.2.7", "2001:db8::7"]),
        ("0.0.0.0", ["127.0.0.1", "192.0.2.7"]),
        ("::", ["::1", "2001:db8::7"]),
    ],
)
def test_all_interfaces_have_the_addresses_of_the_default_route(
    monkeypatch: pytest.MonkeyPatch, address: str, hosts: list[str]
) -> None:
    class Probe(socket.socket):
        def connect(self, _: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return ("192.0.2.7" if self.family == socket.AF_INET else "2001:db8::7", 1)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: DEBIAN)
    monkeypatch.setattr(socket, "socket", Probe)
    assert hosts_of(address) == (hosts, True)


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::"])
def test_all_interfaces_without_a_network_are_loopback(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr(socket, "socket", fails)
    assert hosts_of(address) == (["::1" if address == "::" else "127.0.0.1"], True)


@pytest.mark.parametrize(
    ("platform", "address", "environ", "command"),
    [
        ("linux", "127.0.0.1", {}, "ssh -L 5555:127.0.0.1:5555 HOST"),
        ("linux", "localhost", {}, "ssh -L 5555:localhost:5555 HOST"),
        ("linux", "::1", {}, "ssh -L 5555:[::1]:5555 HOST"),
        ("linux", "127.0.0.1", {"DISPLAY": ":0"}, None),
        ("linux", "127.0.0.1", {"WAYLAND_DISPLAY": "wayland-0"}, None),
        # X11 forwarding
        (
            "linux",
            "127.0.0.1",
            {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 22"},
            "ssh -L 5555:127.0.0.1:5555 HOST",
        ),
        ("linux", "0.0.0.0", {}, None),
        ("linux", "192.0.2.7", {}, None),
        ("darwin", "127.0.0.1", {}, None),
        ("darwin", "127.0.0.1", {"SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 22"}, "ssh -L 5555:127.0.0.1:5555 HOST"),
    ],
)
def test_a_remote_browser_needs_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, platform: str, address: str, environ: dict[str, str], command: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert tunnel(address, 5555, environ) == command
