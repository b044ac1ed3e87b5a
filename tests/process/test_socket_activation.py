"""Socket activation by systemd, which listens before flower-proxy starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.processes import Address, answers, basic, free_port, program, request, running, wait_until
from tests.support.programs import CREDENTIALS

# Without capabilities, root is subject to file permissions
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


@contextlib.contextmanager
def activated(
    where: Address, folder: Path, *options: str, prefix: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Listen like systemd: the first connection starts flower-proxy, which inherits the socket."""
    flower = [*prefix, sys.executable, "-m", "flower_proxy", "-b", "memory://", f"--basic_auth={CREDENTIALS}", *options]
    activate = [program("systemd-socket-activate"), f"--listen={where.socket_path or where}"]
    log = folder / "log"
    with running([*activate, *flower], log=log, ready=lambda: "Listening on" in log.read_text()) as process:
        yield process, log


@pytest.fixture(params=["port", "unix socket"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address(free_port()) if request.param == "port" else Address(socket_path=tmp_path / "flower.sock")


def test_the_activating_request_is_answered(where: Address, tmp_path: Path) -> None:
    with activated(where, tmp_path, "--url_prefix=flower"):
        wait_until(lambda: answers(where, "/healthcheck"), what="an answer on the inherited socket")
        page = request(where, "/flower/", headers=basic(CREDENTIALS))
        assert page.status == 200
        assert 'href="/flower/tasks"' in page.text


def test_a_socket_without_read_permission_is_served(tmp_path: Path) -> None:
    """Under systemd, the file belongs to root and the proxy's group, while the service has a dynamic user."""
    where = Address(socket_path=tmp_path / "flower.sock")
    with activated(where, tmp_path, f"--unix_socket={where.socket_path}", prefix=UNPRIVILEGED):
        (tmp_path / "flower.sock").chmod(0o200)
        wait_until(lambda: answers(where, "/healthcheck"), what="an answer on the inherited socket")


def test_the_listening_address_is_logged(where: Address, tmp_path: Path) -> None:
    listens = [f"--unix_socket={where.socket_path}"] if where.socket_path else []
    with activated(where, tmp_path, *listens) as (_, log):
        wait_until(lambda: answers(where, "/healthcheck"), what="an answer on the inherited socket")
        expected = f"unix socket {where.socket_path}" if where.socket_path else f"http://127.0.0.1:{where.port}/"
        assert expected in log.read_text()
        assert "all interfaces" not in log.read_text()


def test_an_inherited_socket_file_is_not_removed(tmp_path: Path) -> None:
    where = Address(socket_path=tmp_path / "flower.sock")
    with activated(where, tmp_path, f"--unix_socket={where.socket_path}") as (process, _):
        wait_until(lambda: answers(where, "/healthcheck"), what="an answer on the inherited socket")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert process.returncode == 0
        assert (tmp_path / "flower.sock").exists()


def test_sockets_for_another_pid_are_ignored(tmp_path: Path) -> None:
    where = Address(free_port())
    flower = [sys.executable, "-m", "flower_proxy", "-b", "memory://", f"--port={where.port}", "--address=127.0.0.1"]
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with running(flower, log=tmp_path / "log", ready=lambda: answers(where, "/healthcheck"), env=env):
        assert request(where, "/healthcheck").status == 200
