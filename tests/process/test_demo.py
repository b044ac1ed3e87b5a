"""``flower-proxy demo``: output, worker, tasks, errors and clean-up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flower_proxy.cli.demo import _wait as wait_for_programs
from tests.support import forks, programs
from tests.support.processes import (
    Address,
    Answer,
    basic,
    free_port,
    nothing_is_left,
    request,
    running,
    tail,
    wait_until,
)

ANNOUNCEMENT = re.compile(
    r"Open http://([\d.]+):(\d+)/flower/\nUser: (\S+)\nPassword: (\S+)\n"
    r"(?:From another machine, open a tunnel to this one \(HOST\): (ssh .*)\n)?Press Ctrl-C to stop\n"
)


@dataclass(frozen=True)
class Demo:
    """A running demo, with the folder for its temporary files."""

    process: subprocess.Popen[bytes]
    log: Path
    folder: Path
    address: Address
    credentials: str

    def request(self, page: str, method: str = "GET") -> Answer:
        return request(self.address, f"/flower/{page}", method=method, headers=basic(self.credentials))

    def worker(self) -> str:
        [worker] = json.loads(self.request("workers?json=1").text)["data"]
        assert worker["status"] is True
        return str(worker["hostname"])

    def tasks(self) -> list[dict[str, str]]:
        return list(json.loads(self.request("api/tasks").text).values())

    def waiting(self) -> dict[str, int]:
        """Return the queue lengths on the Broker page."""
        row = re.compile(r'<tr id="[^"]*">\s*<td>([^<]+)</td>\s*<td[^>]*>(\d+)</td>')
        return {name: int(length) for name, length in row.findall(self.request("broker").text)}

    def stops(self) -> None:
        """Assert that it exits with status 0 and removes its files."""
        assert self.process.wait(timeout=30) == 0
        assert ANNOUNCEMENT.sub("", self.log.read_text()) == "Stopping\n"
        nothing_is_left(self.folder)


@contextlib.contextmanager
def demo(tmp_path: Path, *arguments: str, **env: str) -> Iterator[Demo]:
    port, log, folder = free_port(), tmp_path / "log", tmp_path / "temporary"
    folder.mkdir()
    with running(
        command(port, *arguments),
        log=log,
        ready=lambda: ANNOUNCEMENT.search(log.read_text()),
        env={"TMPDIR": str(folder), "FLOWER_URL_PREFIX": "not-for-the-demo", **env},
    ) as process:
        announced = ANNOUNCEMENT.search(log.read_text())
        assert announced is not None
        assert announced[2] == str(port)
        yield Demo(process, log, folder, Address(port), f"{announced[3]}:{announced[4]}")


def command(port: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flower_proxy", "demo", f"--port={port}", *arguments]


def refusal(folder: Path, arguments: Sequence[str], *, status: int = 1, **env: str) -> str:
    """Run a demo that fails to start, and return its error."""
    environ = {**os.environ, "TMPDIR": str(folder), **env}
    ended = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (status, "")
    nothing_is_left(folder)
    return ended.stderr


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that the tests share."""
    with demo(tmp_path_factory.mktemp("demo")) as shown:
        yield shown


def test_the_printed_credentials_are_required_and_valid(shown: Demo) -> None:
    assert request(shown.address, "/flower/").status == 401
    assert shown.request("").status == 200


def test_the_password_is_not_in_the_process_list(shown: Demo) -> None:
    password = os.fsencode(shown.credentials.partition(":")[2])
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert password not in line.read_bytes()


def test_the_worker_can_be_controlled(shown: Demo) -> None:
    worker = shown.worker()
    assert shown.request(f"worker/{worker}").status == 200

    def grown() -> str:
        # A worker on a busy machine may reply too late
        answer = shown.request(f"api/worker/pool/grow/{worker}?n=1", method="POST")
        return answer.text if answer.status == 200 else ""

    text = wait_until(grown, what="the worker replies")
    assert json.loads(text) == {"message": f"Growing '{worker}' worker's pool by 1"}


def test_there_are_tasks_in_every_state(shown: Demo) -> None:
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(task["state"] for task in shown.tasks())
        return {"STARTED", "SUCCESS", "FAILURE", "RETRY"} <= seen

    wait_until(all_seen, what="tasks in every state")
    assert shown.request(f"task/{shown.tasks()[0]['uuid']}").status == 200


def test_queues_have_waiting_messages(shown: Demo) -> None:
    assert set(shown.waiting()) == {"flower-proxy-demo", "flower-proxy-demo-later"}
    wait_until(lambda: shown.waiting()["flower-proxy-demo-later"], timeout=60, what="waiting messages")


def test_flower_creates_message_files_atomically(tmp_path: Path) -> None:
    """The worker exits when it reads an unfinished file, so Flower's control messages need the demo's transport."""
    program = """
        import asyncio, pathlib, unittest.mock
        from flower_proxy.cli import demo, demo_app

        async def connect(*_):
            demo_app.use_folder(pathlib.Path.cwd())
            with demo_app.app.connection_for_write(demo_app.FOLDER_BROKER) as connection:
                print(type(connection.transport).__module__)

        with unittest.mock.patch.object(demo, "_run", connect):
            demo.demo.main([])
    """
    ended = forks.run_python(["-c", textwrap.dedent(program)], tmp_path)
    assert (ended.stdout, ended.stderr) == ("flower_proxy.cli.demo_app\n", "")


def test_the_tunnel_leads_to_the_given_address(tmp_path: Path) -> None:
    with demo(tmp_path, "--address=127.0.0.2", DISPLAY="", WAYLAND_DISPLAY="") as shown:
        announced = ANNOUNCEMENT.search(shown.log.read_text())
        assert announced is not None
        _, port, _, _, tunnel = announced.groups()
        assert tunnel == f"ssh -L {port}:127.0.0.2:{port} HOST"
        with urllib.request.urlopen(f"http://127.0.0.2:{port}/healthcheck") as answer:
            assert answer.status == 200
        assert not shown.address.accepts()
        shown.process.terminate()
        shown.stops()


def test_ctrl_c_stops_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        # A terminal sends the signal to the whole process group
        os.killpg(shown.process.pid, signal.SIGINT)
        shown.stops()


def test_a_second_ctrl_c_does_not_interrupt_the_clean_up(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        os.killpg(shown.process.pid, signal.SIGINT)
        wait_until(lambda: "Stopping" in shown.log.read_text(), what="the demo stops")
        os.killpg(shown.process.pid, signal.SIGINT)
        shown.stops()


def test_sigterm_stops_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        shown.process.terminate()
        shown.stops()


def test_ctrl_c_during_the_start_stops_the_demo(tmp_path: Path) -> None:
    log = tmp_path / "log"
    folder = tmp_path / "temporary"
    folder.mkdir()
    with running(
        command(free_port()), log=log, ready=lambda: list(folder.glob("*/worker.log")), env={"TMPDIR": str(folder)}
    ) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert log.read_text() == "Stopping\n"
        nothing_is_left(folder)


def test_a_program_that_ctrl_c_stopped_is_not_a_failure(tmp_path: Path) -> None:
    """Ctrl-C may reach a new program before the demo handles it."""

    async def wait() -> bool:
        signalled = asyncio.Event()
        asyncio.get_running_loop().call_soon(signalled.set)
        return await wait_for_programs(lambda: False, {"worker": ended}, tmp_path, signalled)

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        assert asyncio.run(wait()) is False


def test_a_demo_on_redis_deletes_its_messages(tmp_path: Path, broker: programs.Broker) -> None:
    with demo(tmp_path, f"--broker={broker.url}") as shown:
        wait_until(lambda: "SUCCESS" in {task["state"] for task in shown.tasks()}, what="a successful task")
        shown.process.terminate()
        shown.stops()
    assert set(keys(broker)) & {"flower-proxy-demo", "flower-proxy-demo-later", "unacked"} == set()


def keys(broker: programs.Broker) -> list[str]:
    port = broker.url.rpartition(":")[2].partition("/")[0]
    with contextlib.closing(socket.create_connection(("127.0.0.1", int(port)), timeout=10)) as connection:
        connection.sendall(b"KEYS *\r\nQUIT\r\n")
        with connection.makefile() as answer:
            return [line.strip() for line in answer if line[0] not in "*$+"]


def test_a_dead_worker_is_reported_with_its_log(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        [log] = shown.folder.glob("*/worker.log")
        assert " ready." in tail(log)
        [worker] = json.loads(shown.request("workers?json=1").text)["data"]
        os.kill(worker["pid"], signal.SIGKILL)
        assert shown.process.wait(timeout=30) == 1
        assert shown.log.read_text().endswith(
            "flower-proxy: worker exited with status -9; see the end of its log above\n"
        )
        nothing_is_left(shown.folder)


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = refusal(tmp_path, command(port))
    assert error == f"flower-proxy: --port: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_an_unknown_address_is_an_error(tmp_path: Path) -> None:
    error = refusal(tmp_path, command(free_port(), "--address=no such host"), status=2)
    assert re.fullmatch(r"flower-proxy: --address: 'no such host': .*\n", error)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_an_unreachable_broker_is_an_error(tmp_path: Path, scheme: str) -> None:
    error = refusal(tmp_path, command(free_port(), f"--broker={scheme}://127.0.0.1:{free_port()}/0"))
    assert re.fullmatch(r"flower-proxy: --broker: .*Connection refused\.?\n", error)


def test_a_missing_redis_library_is_an_error_with_its_package(tmp_path: Path) -> None:
    absent, folder = tmp_path / "absent", tmp_path / "temporary"
    absent.mkdir()
    folder.mkdir()
    (absent / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")
    error = refusal(folder, command(free_port(), "--broker=redis://localhost/0"), PYTHONPATH=str(absent))
    assert error.startswith("flower-proxy: --broker: No module named 'redis'; run: ")
    assert error.endswith(" -m pip install redis\n")
