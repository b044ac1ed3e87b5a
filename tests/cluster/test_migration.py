"""Migration from `celery flower` and back, as in examples/migration/README.md."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.support.concurrently import started_together
from tests.support.markdown import blocks
from tests.support.processes import PROJECT, Address, answers, basic, free_port, program, request, running, wait_until
from tests.support.programs import Broker, Flower, redis, worker_process
from tests.support.prometheus import prometheus, promtool

pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

BLOCKS = blocks((PROJECT / "examples" / "migration" / "README.md").read_text())
UNIT, ENVIRONMENT = (block.text for block in BLOCKS if block.language == "ini")
(SCRAPE_JOB,) = (block.text for block in BLOCKS if block.language == "yaml")
(HASHING,) = (block.text for block in BLOCKS if block.language == "sh")
DIFFS = [block.text for block in BLOCKS if block.language == "diff"]
MIGRATIONS = {"same-options": DIFFS[:1], "no-passwords-in-ps": DIFFS}
USERS = {"u1": "p1", "u2": "p2"}


@dataclass
class Server:
    """Server of the guide, with its folders in another folder.

    :ivar unit: current text of the systemd unit.
    :ivar port: replaces port 5555 of the guide.
    """

    folder: Path
    broker: Broker
    unit: str = UNIT
    port: int = field(default_factory=free_port)

    def localized(self, text: str) -> str:
        """Replace the paths and the port of the guide by those of this server."""
        bin_ = "/srv/app/.venv/bin"
        # In one pass, since the paths of this server may contain those of the guide
        text = re.sub(
            rf"{bin_}|/srv/app|/etc|/var/lib",
            lambda found: str(Path(sys.executable).parent) if found[0] == bin_ else f"{self.folder}{found[0]}",
            text,
        )
        return text.replace("127.0.0.1:5555", f"127.0.0.1:{self.port}").replace("--port=5555", f"--port={self.port}")

    def patch(self, diff: str, *options: str) -> None:
        """Apply a diff to the unit with git, which refuses malformed diffs."""
        (self.folder / "flower.service").write_text(self.unit)
        command = [program("git"), "apply", *options, "-"]
        subprocess.run(command, input=diff, text=True, check=True, cwd=self.folder)
        patched = (self.folder / "flower.service").read_text()
        assert patched != self.unit
        self.unit = patched

    @contextlib.contextmanager
    def running(self) -> Iterator[Flower]:
        """Run the command of the unit with its environment, and terminate it as systemd does."""
        parser = ConfigParser(interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(self.localized(self.unit).replace("\\\n", ""))
        service = parser["Service"]
        environment = {**self.broker.environment, "PYTHONPATH": str(PROJECT)}
        if "EnvironmentFile" in service:
            lines = Path(service["EnvironmentFile"]).read_text().split()
            environment |= dict(line.split("=", 1) for line in lines)
        address = Address(self.port)
        with running(
            shlex.split(service["ExecStart"]),
            log=self.folder / "flower.log",
            ready=lambda: answers(address, "/flower/healthcheck"),
            env=environment,
            cwd=Path(service["WorkingDirectory"]),
        ):
            yield Flower(address, "/flower", basic("u1:p1"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("broker")
    with redis(folder) as broker, worker_process(broker, folder, name="w1@host") as worker:
        yield broker
        # A warm shutdown takes seconds
        os.killpg(worker.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def stock(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Mapping[str, object]]:
    """A server on which stock Flower has run, and its tasks."""
    server = Server(tmp_path_factory.mktemp("stock"), broker)
    for path in ("srv/app", "var/lib/flower", "etc/flower", "etc/prometheus"):
        (server.folder / path).mkdir(parents=True)
    (server.folder / "srv/app/server.py").write_text("from tests.support.server import app\n")
    (server.folder / "etc/flower/environment").write_text(ENVIRONMENT)
    (password,) = (line.rpartition(":")[2] for line in ENVIRONMENT.splitlines() if "METRICS_AUTH" in line)
    (server.folder / "etc/prometheus/flower.password").write_text(password)
    with server.running() as flower, ThreadPoolExecutor(1) as pool:
        scraped = pool.submit(scrapes, server)
        hash_passwords(server)
        flower.watch_tasks(broker)
        assert scraped.result()
        tasks = flower.tasks()
    return server, tasks


def migrate(stock: Server, folder: Path, diffs: Sequence[str]) -> Server:
    """Return a copy of the server after these diffs."""
    shutil.copytree(stock.folder, folder, dirs_exist_ok=True)
    server = Server(folder, stock.broker)
    for diff in diffs:
        server.patch(diff)
    return server


@dataclass
class Migrated:
    """A migrated server that runs.

    :ivar tasks: tasks of stock Flower before the migration.
    :ivar scraped: whether Prometheus scrapes it.
    """

    server: Server
    flower: Flower
    tasks: Mapping[str, object]
    scraped: Future[bool]


@pytest.fixture(scope="module")
def servers(
    stock: tuple[Server, Mapping[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Migrated]]:
    """All migrated servers, by their key in `MIGRATIONS`."""
    before, tasks = stock
    servers = {name: migrate(before, tmp_path_factory.mktemp("migrated"), diffs) for name, diffs in MIGRATIONS.items()}
    with (
        started_together(server.running() for server in servers.values()) as flowers,
        ThreadPoolExecutor(len(servers)) as pool,
    ):
        yield {
            name: Migrated(server, flower, tasks, pool.submit(scrapes, server))
            for (name, server), flower in zip(servers.items(), flowers, strict=True)
        }


@pytest.fixture(params=MIGRATIONS)
def migrated(request: pytest.FixtureRequest, servers: dict[str, Migrated]) -> Migrated:
    """The running server after the first diff, or after both."""
    return servers[request.param]


def hash_passwords(server: Server) -> None:
    """Run the commands that write the password file, without sudo."""
    commands = [
        line.removeprefix("sudo ") for line in server.localized(HASHING).splitlines() if "hash-password" in line
    ]
    for command, (user, password) in zip(commands, USERS.items(), strict=True):
        assert command.endswith(f" {user}")
        subprocess.run(["sh", "-c", command], input=password, text=True, check=True)


def scrapes(server: Server) -> bool:
    """Check the scrape job of the guide with promtool; return whether Prometheus scrapes with it."""
    folder = server.folder / "prometheus"
    folder.mkdir()
    config = {"global": {"scrape_interval": "1s"}, **yaml.safe_load(server.localized(SCRAPE_JOB))}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(folder / "prometheus.yml"))
    with prometheus(folder / "prometheus.yml", folder) as scraper:
        found = wait_until(lambda: scraper.query('up{job="celery"}'), what="Prometheus has scraped")
    shutil.rmtree(folder)
    return [value for _, value in found] == [1]


def status(flower: Flower, path: str, credentials: str = "") -> int:
    return request(flower.address, flower.path + path, headers=basic(credentials) if credentials else {}).status


def test_users_tasks_and_workers_are_preserved(migrated: Migrated) -> None:
    flower = migrated.flower
    wait_until(flower.tasks, what="the saved state is loaded")
    assert flower.tasks() == migrated.tasks
    assert [worker["hostname"] for worker in flower.workers()] == ["w1@host"]
    found = {text: status(flower, "/tasks", text) for text in ("u1:p1", "u2:p2", "u1:p2", "u3:p3")}
    assert found == {"u1:p1": 200, "u2:p2": 200, "u1:p2": 401, "u3:p3": 401}


def test_metrics_require_a_password(migrated: Migrated) -> None:
    assert [status(migrated.flower, "/metrics", text) for text in ("", "u1:p1")] == [401, 200]
    assert migrated.scraped.result() == ("EnvironmentFile" in migrated.server.unit)


@pytest.mark.parametrize("diffs", MIGRATIONS.values(), ids=MIGRATIONS)
def test_stock_flower_loads_the_state_after_the_way_back(
    diffs: Sequence[str], stock: tuple[Server, Mapping[str, object]], tmp_path: Path
) -> None:
    stock_server, before = stock
    server = migrate(stock_server, tmp_path, diffs)
    with server.running() as flower:
        # The saved worker is online before flower-proxy has subscribed to events
        wait_until(lambda: status(flower, "/ready") == 200, what="flower-proxy is ready")
        flower.watch_tasks(server.broker)
        tasks = flower.tasks()
    assert len(tasks) > len(before)
    for diff in reversed(diffs):
        server.patch(diff, "--reverse")
    assert server.unit == UNIT
    with server.running() as flower:
        assert flower.tasks() == tasks
        assert [worker["hostname"] for worker in flower.workers()] == ["w1@host"]


def test_both_diffs_remove_passwords_from_the_command_line(stock: tuple[Server, Mapping[str, object]]) -> None:
    before, _ = stock
    server = Server(before.folder, before.broker)
    assert all(f"{user}:{password}" in server.unit for user, password in USERS.items())
    for diff in DIFFS:
        server.patch(diff)
    assert not any(secret in server.unit for secret in ("u1:", "u2:", "guest:"))
