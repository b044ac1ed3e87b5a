"""``flower-proxy demo``, as a newcomer starts it and ends it."""

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
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flower_proxy.cli.demo import _wait as wait_for_programs
from tests.support import programs
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
    r"(?:From another machine, where HOST is this one: (ssh .*)\n)?Ctrl-C ends it\n"
)


@dataclass(frozen=True)
class Demo:
    """A demo that runs; whatever it makes for a while, it makes in its folder."""

    process: subprocess.Popen[bytes]
    log: Path
    folder: Path
    address: Address
    credentials: str

    def ask(self, page: str, method: str = "GET") -> Answer:
        return request(self.address, f"/flower/{page}", method=method, headers=basic(self.credentials))

    def worker(self) -> str:
        [worker] = json.loads(self.ask("workers?json=1").text)["data"]
        assert worker["status"] is True
        return str(worker["hostname"])

    def tasks(self) -> list[dict[str, str]]:
        return list(json.loads(self.ask("api/tasks").text).values())

    def waiting(self) -> dict[str, int]:
        """The lengths of the queues, as the Broker page shows them."""
        row = re.compile(r'<tr id="[^"]*">\s*<td>([^<]+)</td>\s*<td[^>]*>(\d+)</td>')
        return {name: int(length) for name, length in row.findall(self.ask("broker").text)}

    def ends(self) -> None:
        """Assert that it ends well, and leaves nothing behind."""
        assert self.process.wait(timeout=30) == 0
        assert ANNOUNCEMENT.sub("", self.log.read_text()) == "Ending\n"
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
    """Run a demo that cannot start, and return what it says."""
    environ = {**os.environ, "TMPDIR": str(folder), **env}
    ended = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (status, "")
    nothing_is_left(folder)
    return ended.stderr


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo to look at."""
    with demo(tmp_path_factory.mktemp("demo")) as shown:
        yield shown


def test_announces_credentials_that_the_page_asks_for(shown: Demo) -> None:
    assert request(shown.address, "/flower/").status == 401
    assert shown.ask("").status == 200


def test_keeps_the_password_out_of_the_process_list(shown: Demo) -> None:
    password = os.fsencode(shown.credentials.partition(":")[2])
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert password not in line.read_bytes()


def test_has_a_worker_that_can_be_controlled(shown: Demo) -> None:
    worker = shown.worker()
    assert shown.ask(f"worker/{worker}").status == 200
    grown = shown.ask(f"api/worker/pool/grow/{worker}?n=1", method="POST")
    assert (grown.status, json.loads(grown.text)) == (200, {"message": f"Growing '{worker}' worker's pool by 1"})


def test_has_tasks_in_every_state(shown: Demo) -> None:
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(task["state"] for task in shown.tasks())
        return {"STARTED", "SUCCESS", "FAILURE", "RETRY"} <= seen

    wait_until(all_seen, what="tasks that run, have succeeded, have failed, are tried again")
    assert shown.ask(f"task/{shown.tasks()[0]['uuid']}").status == 200


def test_has_queues_in_which_messages_wait(shown: Demo) -> None:
    assert set(shown.waiting()) == {"flower-proxy-demo", "flower-proxy-demo-later"}
    wait_until(lambda: shown.waiting()["flower-proxy-demo-later"], timeout=60, what="messages that wait")


def test_listens_at_the_given_address_and_names_the_tunnel_to_it(tmp_path: Path) -> None:
    with demo(tmp_path, "--address=127.0.0.2", DISPLAY="", WAYLAND_DISPLAY="") as shown:
        announced = ANNOUNCEMENT.search(shown.log.read_text())
        assert announced is not None
        _, port, _, _, tunnel = announced.groups()
        assert tunnel == f"ssh -L {port}:127.0.0.2:{port} HOST"
        with urllib.request.urlopen(f"http://127.0.0.2:{port}/healthcheck") as answer:
            assert answer.status == 200
        assert not shown.address.accepts()
        shown.process.terminate()
        shown.ends()


def test_ends_at_ctrl_c(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        # as a terminal sends it: to make, the demo, and all they have started there
        os.killpg(shown.process.pid, signal.SIGINT)
        shown.ends()


def test_a_second_ctrl_c_leaves_nothing_behind_either(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        os.killpg(shown.process.pid, signal.SIGINT)
        wait_until(lambda: "Ending" in shown.log.read_text(), what="it ends")
        os.killpg(shown.process.pid, signal.SIGINT)
        shown.ends()


def test_ends_when_it_is_told_to_terminate(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        shown.process.terminate()
        shown.ends()


def test_ends_before_it_has_announced_itself(tmp_path: Path) -> None:
    log = tmp_path / "log"
    folder = tmp_path / "temporary"
    folder.mkdir()
    with running(
        command(free_port()), log=log, ready=lambda: list(folder.glob("*/worker.log")), env={"TMPDIR": str(folder)}
    ) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert log.read_text() == "Ending\n"
        nothing_is_left(folder)


def test_a_program_that_ctrl_c_ended_too_is_no_failure(tmp_path: Path) -> None:
    """It reaches one that was started a moment ago, before the signal is seen here."""

    async def wait() -> bool:
        signalled = asyncio.Event()
        asyncio.get_running_loop().call_soon(signalled.set)
        return await wait_for_programs(lambda: False, {"worker": ended}, tmp_path, signalled)

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        assert asyncio.run(wait()) is False


def test_runs_on_a_real_broker_and_leaves_no_message_there(tmp_path: Path, broker: programs.Broker) -> None:
    with demo(tmp_path, f"--broker={broker.url}") as shown:
        wait_until(lambda: "SUCCESS" in {task["state"] for task in shown.tasks()}, what="a task that succeeded")
        shown.process.terminate()
        shown.ends()
    assert set(keys(broker)) & {"flower-proxy-demo", "flower-proxy-demo-later", "unacked"} == set()


def keys(broker: programs.Broker) -> list[str]:
    port = broker.url.rpartition(":")[2].partition("/")[0]
    with contextlib.closing(socket.create_connection(("127.0.0.1", int(port)), timeout=10)) as connection:
        connection.sendall(b"KEYS *\r\nQUIT\r\n")
        with connection.makefile() as answer:
            return [line.strip() for line in answer if line[0] not in "*$+"]


def test_says_which_part_has_died_and_why(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        [log] = shown.folder.glob("*/worker.log")
        assert " ready." in tail(log)
        [worker] = json.loads(shown.ask("workers?json=1").text)["data"]
        os.kill(worker["pid"], signal.SIGKILL)
        assert shown.process.wait(timeout=30) == 1
        assert shown.log.read_text().endswith("flower-proxy: worker ended (status -9); this was the end of its log\n")
        nothing_is_left(shown.folder)


def test_refuses_a_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = refusal(tmp_path, command(port))
    assert said == f"flower-proxy: --port: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_refuses_an_address_that_does_not_exist(tmp_path: Path) -> None:
    said = refusal(tmp_path, command(free_port(), "--address=no such host"), status=2)
    assert re.fullmatch(r"flower-proxy: --address: 'no such host': .*\n", said)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_refuses_a_broker_that_does_not_answer(tmp_path: Path, scheme: str) -> None:
    said = refusal(tmp_path, command(free_port(), f"--broker={scheme}://127.0.0.1:{free_port()}/0"))
    assert re.fullmatch(r"flower-proxy: --broker: .*Connection refused\.?\n", said)


def test_says_what_to_install_for_redis(tmp_path: Path) -> None:
    absent, folder = tmp_path / "absent", tmp_path / "temporary"
    absent.mkdir()
    folder.mkdir()
    (absent / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")
    said = refusal(folder, command(free_port(), "--broker=redis://localhost/0"), PYTHONPATH=str(absent))
    assert said.startswith("flower-proxy: --broker: No module named 'redis'; install it: ")
    assert said.endswith(" -m pip install redis\n")
