"""A unix socket: permissions, forwarded headers, and the file after the exit.

Stock Flower permits every local user to connect, ignores forwarded headers, and does not remove the file:
mher/flower#725.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Address, Answer, answers, basic, free_port, request, running, wait_until
from tests.support.programs import CREDENTIALS, USER


@dataclass(frozen=True)
class Listening:
    """A Flower that listens on a unix socket."""

    file: Path
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
        """Send an authenticated request."""
        return request(
            Address(socket_path=self.file), path, method=method, headers={**basic(CREDENTIALS), **(headers or {})}
        )

    def end(self, signal_: signal.Signals) -> None:
        self.process.send_signal(signal_)
        self.process.wait(timeout=30)


def command(file: Path, *options: str) -> list[str]:
    flower = [sys.executable, "-m", "flower_proxy", "-b", "memory://", f"--basic_auth={CREDENTIALS}"]
    return [*flower, f"--unix_socket={file}", *options]


@contextlib.contextmanager
def listening(folder: Path, *options: str) -> Iterator[Listening]:
    file, log = folder / "flower.sock", folder / "log"
    ready = Address(socket_path=file)
    with running(command(file, *options), log=log, ready=lambda: answers(ready, "/healthcheck")) as process:
        yield Listening(file, process, log)


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """A Flower with the default options."""
    with listening(tmp_path_factory.mktemp("socket")) as flower:
        yield flower


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_only_owner_and_group_can_connect_by_default(flower: Listening) -> None:
    assert mode(flower.file) == 0o660


@pytest.mark.parametrize(("option", "expected"), [("0666", 0o666), ("666", 0o666), ("0600", 0o600)])
def test_unix_socket_mode_sets_the_permissions(option: str, expected: int, tmp_path: Path) -> None:
    with listening(tmp_path, f"--unix_socket_mode={option}") as flower:
        assert mode(flower.file) == expected


def test_links_have_the_forwarded_prefix(flower: Listening) -> None:
    page = flower.ask("/", headers={"X-Forwarded-Prefix": "/a/flower"})
    assert page.status == 200
    assert 'href="/a/flower/tasks"' in page.text


def test_the_forwarded_client_is_logged(flower: Listening) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7, 127.0.0.1"}
    path = "/api/worker/pool/grow/w9@nowhere"
    answer = flower.ask(path, method="POST", headers=forwarded)
    assert answer.status == 404, "there is no such worker"
    line = f'control action: user="{USER}" client="203.0.113.7" path={json.dumps(path)} arguments={{}} status=404'
    wait_until(lambda: line in flower.log.read_text(), what=line)


def test_forwarded_headers_are_ignored_if_unix_is_not_a_trusted_proxy(tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Prefix": "/a/flower"}
    with listening(tmp_path, "--trusted_proxies=127.0.0.1") as flower:
        assert "/a/flower" not in flower.ask("/", headers=forwarded).text
        flower.ask("/api/worker/pool/grow/w9@nowhere", method="POST", headers=forwarded)
        wait_until(lambda: 'client="unix"' in flower.log.read_text(), what="the log line of the control action")
        assert "203.0.113.7" not in flower.log.read_text()


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_the_file_is_removed_on_exit(signal_: signal.Signals, tmp_path: Path) -> None:
    with listening(tmp_path) as flower:
        flower.end(signal_)
        assert flower.process.returncode == 0
        assert not flower.file.exists()


def test_the_stale_file_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    with listening(tmp_path) as killed:
        killed.end(signal.SIGKILL)
        assert killed.file.exists()
    with listening(tmp_path) as flower:
        assert flower.ask("/").status == 200
        assert mode(flower.file) == 0o660


def test_a_socket_in_use_by_another_process_is_not_replaced(flower: Listening) -> None:
    second = subprocess.run(command(flower.file), capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "another process listens on it" in second.stderr
    assert flower.ask("/").status == 200


def test_a_file_replaced_by_another_process_is_not_removed(tmp_path: Path) -> None:
    with listening(tmp_path) as flower, socket.socket(socket.AF_UNIX) as other:
        os.unlink(flower.file)
        other.bind(str(flower.file))
        other.listen()
        flower.end(signal.SIGTERM)
        assert Address(socket_path=flower.file).accepts()


def test_the_file_is_removed_if_the_start_fails(tmp_path: Path) -> None:
    file = tmp_path / "flower.sock"
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        metrics = ["--metrics_address=127.0.0.1", f"--metrics_port={taken.getsockname()[1]}"]
        failed = subprocess.run(command(file, *metrics), capture_output=True, text=True, timeout=60)
    assert "--metrics_port: cannot listen on" in failed.stderr
    assert failed.returncode == 1
    assert not file.exists()
