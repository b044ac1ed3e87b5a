"""Notifications of the service manager, received on a real datagram socket (sd_notify(3))."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Address, answers, free_port, running, tail, wait_until


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A socket like systemd's; ``@`` starts an abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(30)
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        yield listening


@contextlib.contextmanager
def started(address: str, where: Address, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run flower-proxy without waiting until it is ready."""
    flower = [sys.executable, "-m", "flower_proxy", "-b", "memory://", "--basic_auth=demo:secret"]
    words = [*flower, "--address=127.0.0.1", f"--port={where.port}", *options]
    with running(words, log=log, ready=lambda: True, env={"NOTIFY_SOCKET": address}) as process:
        yield process


@pytest.fixture(params=["path", "abstract name"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@flower-proxy-{secrets.token_hex(8)}"


def test_ready_is_reported_when_requests_are_answered(address: str, tmp_path: Path) -> None:
    where = Address(free_port())
    with manager(address) as received, started(address, where, tmp_path / "log"):
        assert received.recv(64) == b"READY=1", tail(tmp_path / "log")
        assert answers(where, "/healthcheck")


def test_stopping_is_reported_on_sigterm(address: str, tmp_path: Path) -> None:
    with manager(address) as received, started(address, Address(free_port()), tmp_path / "log") as process:
        assert received.recv(64) == b"READY=1", tail(tmp_path / "log")
        process.send_signal(signal.SIGTERM)
        assert received.recv(64) == b"STOPPING=1"
        assert process.wait(timeout=30) == 0


def test_ready_is_not_reported_if_the_start_fails(address: str, tmp_path: Path) -> None:
    with manager(address) as received, socket.create_server(("127.0.0.1", free_port())) as taken:
        where = Address(taken.getsockname()[1])
        with started(address, where, tmp_path / "log") as process:
            assert process.wait(timeout=60) == 1, tail(tmp_path / "log")
        received.setblocking(False)
        with pytest.raises(BlockingIOError):
            received.recv(64)


@pytest.mark.parametrize("address", ["/nowhere/notify", "notify", "@", "vsock:2:1", "/" + "x" * 200, ""])
def test_an_unusable_address_is_ignored(address: str, tmp_path: Path) -> None:
    where = Address(free_port())
    with started(address, where, tmp_path / "log") as process:
        wait_until(lambda: answers(where, "/healthcheck"), what="an answer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_children_do_not_inherit_the_address(address: str, tmp_path: Path) -> None:
    conf, environment = tmp_path / "flowerconfig.py", tmp_path / "environment"
    child = f"subprocess.run(['env'], stdout=open({str(environment)!r}, 'w'))"
    conf.write_text(f"import atexit, subprocess\n\natexit.register(lambda: {child})\n")
    where, option = Address(free_port()), f"--conf={conf}"
    with manager(address) as received, started(address, where, tmp_path / "log", option) as process:
        assert received.recv(64) == b"READY=1", tail(tmp_path / "log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert "PATH=" in environment.read_text()
    assert "NOTIFY_SOCKET" not in environment.read_text()
