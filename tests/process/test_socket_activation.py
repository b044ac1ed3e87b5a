"""A socket on which systemd listens already: what arrives while flower-proxy starts waits, and is answered."""

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

# root reads every file, unless it has no capabilities
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


@contextlib.contextmanager
def activated(
    where: Address, folder: Path, *options: str, prefix: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """What systemd does: flower-proxy is started by the first connection, and takes the socket over."""
    flower = [*prefix, sys.executable, "-m", "flower_proxy", "-b", "memory://", f"--basic_auth={CREDENTIALS}", *options]
    activate = [program("systemd-socket-activate"), f"--listen={where.socket_path or where}"]
    log = folder / "log"
    with running([*activate, *flower], log=log, ready=lambda: "Listening on" in log.read_text()) as process:
        yield process, log


@pytest.fixture(params=["port", "unix socket"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address(free_port()) if request.param == "port" else Address(socket_path=tmp_path / "flower.sock")


def test_the_request_that_starts_it_is_answered(where: Address, tmp_path: Path) -> None:
    with activated(where, tmp_path, "--url_prefix=flower"):
        wait_until(lambda: answers(where, "/healthcheck"), what="the socket is taken over")
        page = request(where, "/flower/", headers=basic(CREDENTIALS))
        assert page.status == 200
        assert 'href="/flower/tasks"' in page.text


def test_a_socket_that_its_user_may_not_read_is_served(tmp_path: Path) -> None:
    """As under systemd: the file belongs to root and the proxy's group, and the user is a dynamic one."""
    where = Address(socket_path=tmp_path / "flower.sock")
    with activated(where, tmp_path, f"--unix_socket={where.socket_path}", prefix=UNPRIVILEGED):
        (tmp_path / "flower.sock").chmod(0o200)
        wait_until(lambda: answers(where, "/healthcheck"), what="the socket is taken over")


def test_the_log_says_where_it_listens(where: Address, tmp_path: Path) -> None:
    listens = [f"--unix_socket={where.socket_path}"] if where.socket_path else []
    with activated(where, tmp_path, *listens) as (_, log):
        wait_until(lambda: answers(where, "/healthcheck"), what="the socket is taken over")
        said = f"unix socket {where.socket_path}" if where.socket_path else f"http://127.0.0.1:{where.port}/"
        assert said in log.read_text()
        assert "all interfaces" not in log.read_text()


def test_the_file_of_a_socket_that_is_not_ours_stays(tmp_path: Path) -> None:
    where = Address(socket_path=tmp_path / "flower.sock")
    with activated(where, tmp_path, f"--unix_socket={where.socket_path}") as (process, _):
        wait_until(lambda: answers(where, "/healthcheck"), what="the socket is taken over")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert process.returncode == 0
        assert (tmp_path / "flower.sock").exists()


def test_sockets_that_were_handed_to_another_process_are_left_alone(tmp_path: Path) -> None:
    where = Address(free_port())
    flower = [sys.executable, "-m", "flower_proxy", "-b", "memory://", f"--port={where.port}", "--address=127.0.0.1"]
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with running(flower, log=tmp_path / "log", ready=lambda: answers(where, "/healthcheck"), env=env):
        assert request(where, "/healthcheck").status == 200
