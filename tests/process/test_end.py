"""Shutdown and the state file: signals, a full disk, and concurrent processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery
from tornado.options import OptionParser

from flower_proxy import FlowerProxy, make_options
from flower_proxy.events.state_file import StateFile
from tests.support import forks
from tests.support.processes import PROJECT, Address, answers, free_port, request, running, wait_until
from tests.support.states import private, save, saved_tasks, state_with

COMMAND = [str(Path(sys.executable).with_name("flower-proxy"))]
APPLICATION = "from celery import Celery\n\napp = Celery('shop', broker='memory://')\n"
# Sends signals to the process at audit events, as imports and saves print nothing
HOOK = """\
import os, signal, sys
moments = [moment.split(":") for moment in os.environ.get("SIGNALS", "").split()]

def hook(event, arguments):
    if moments and moments[0][0] == event and moments[0][1] in [os.path.basename(str(one)) for one in arguments]:
        os.kill(os.getpid(), signal.Signals[moments.pop(0)[2]])

sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Project:
    """A folder with a Celery application, and optionally a saved state."""

    folder: Path

    def environment(self, signals: str = "") -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "CELERY_"))}
        path = os.pathsep.join([str(self.folder / "hook"), str(PROJECT)])
        return {**plain, "PYTHONPATH": path, "SIGNALS": signals, "FLOWER_NO_AUTH": "true"}

    def run(self, *words: str, signals: str = "", command: Sequence[str] = COMMAND) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words],
            cwd=self.folder,
            env=self.environment(signals),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @contextlib.contextmanager
    def serving(
        self, *words: str, signals: str = "", command: Sequence[str] = COMMAND
    ) -> Iterator[subprocess.Popen[bytes]]:
        address = Address(free_port())
        with running(
            [*command, "-A", "shop", "--address=127.0.0.1", f"--port={address.port}", *words],
            log=self.log,
            ready=lambda: answers(address, "/healthcheck") and "loading" not in request(address, "/ready").text,
            env=self.environment(signals),
            cwd=self.folder,
        ) as process:
            yield process

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def saved(self) -> list[str]:
        """Return the tasks of the saved state."""
        file = StateFile(str(self.folder / "flower"))
        try:
            return saved_tasks(file)
        finally:
            file.release()

    def files(self) -> dict[str, int]:
        """Return the inodes of the state files, which a save replaces."""
        found = {}
        for path in self.folder.glob("flower*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.suffix not in (".lock", ".py"):
                    found[path.name] = path.stat().st_ino
        return found

    def save(self, *uuids: str, size: int = 0) -> None:
        file = StateFile(str(self.folder / "flower"))
        save(file, state_with(*uuids, size=size))
        file.release()

    def lines(self, part: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if part in line]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    return Project(tmp_path)


# SIGHUP


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_save_the_state(project: Project, number: signal.Signals) -> None:
    project.save("task")
    before = project.files()
    with project.serving("--persistent") as process:
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in project.log.read_text()
    assert project.files() != before
    assert project.saved() == ["task"]


def test_sighup_stays_ignored_under_nohup(project: Project) -> None:
    with project.serving(command=["nohup", *COMMAND]) as process:
        assert signal.SIGHUP in signals_of(process.pid, "SigIgn")
        assert signals_of(process.pid, "SigCgt") >= {signal.SIGINT, signal.SIGTERM}
    with project.serving() as process:
        assert signals_of(process.pid, "SigCgt") >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def signals_of(pid: int, kind: str) -> set[int]:
    """Return the signals that a process catches or ignores, from /proc."""
    (mask,) = re.findall(rf"^{kind}:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}


# Ctrl-C


@pytest.mark.parametrize(
    "moment",
    [
        "import:flower_proxy.cli.main:SIGINT",
        "import:click:SIGINT",
        "import:tornado.options:SIGINT",
        "import:flower_proxy.cli.serve:SIGINT",
        "import:celery:SIGINT",
        "import:kombu.connection:SIGINT",
        "import:flower.app:SIGINT",
        "import:flower_proxy.app:SIGINT",
        "open:flowerconfig.py:SIGINT",
    ],
)
@pytest.mark.parametrize("command", [COMMAND, [sys.executable, "-m", "flower_proxy"]], ids=["script", "module"])
def test_ctrl_c_during_the_start_prints_no_traceback(project: Project, moment: str, command: Sequence[str]) -> None:
    (project.folder / "flowerconfig.py").write_text("port = 0\n")
    done = project.run("-A", "shop", signals=moment, command=command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_during_the_start_of_the_celery_subcommand_prints_no_traceback(project: Project) -> None:
    celery = [sys.executable, "-m", "celery", "-A", "shop", "flower-proxy"]
    done = project.run("--port=0", signals="import:flower_proxy.cli.serve:SIGINT", command=celery)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_exits_although_the_application_catches_all_exceptions(project: Project) -> None:
    """A KeyboardInterrupt would be caught."""
    catching = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (project.folder / "shop.py").write_text(catching + APPLICATION)
    done = project.run("-A", "shop", "--port=0")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("config nginx", "deploy.plan"),
        ("check http://127.0.0.1:1/", "check.checks"),
        ("hash-password", "auth.passwords"),
        ("demo", "cli.demo_app"),
    ],
)
def test_ctrl_c_during_the_start_of_subcommands_prints_no_traceback(project: Project, words: str, module: str) -> None:
    done = project.run(*words.split(), signals=f"import:flower_proxy.{module}:SIGINT")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("words", ["hash-password", "check http://127.0.0.1:1/ --user=me"])
def test_ctrl_c_at_a_prompt_restores_the_terminal(project: Project, words: str) -> None:
    master, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        process = subprocess.Popen(
            [*COMMAND, *words.split()],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=project.environment(),
            # The prompt prefers a controlling terminal
            start_new_session=True,
        )
        output = b""
        while b"Password: " not in output:
            output += os.read(master, 1024)
        wait_until(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, what="the echo is disabled")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert termios.tcgetattr(terminal) == before
        os.write(master, b"\n")
        output += os.read(master, 1024)
        assert b"Traceback" not in output
    finally:
        os.close(master)
        os.close(terminal)


def test_ctrl_c_while_listening_starts_shuts_down_cleanly(project: Project) -> None:
    sockets = project.folder / "flower.sock"
    done = project.run("-A", "shop", "--unix_socket=flower.sock", signals="socket.bind:flower.sock:SIGINT")
    assert done.returncode == 0
    assert not sockets.exists()


SAVING = ["shutil.rmtree:flower.saving", "os.mkdir:flower.saving", "os.rename:flower.saving", "os.rmdir:flower.saved"]


@pytest.mark.parametrize("moment", SAVING)
def test_a_second_ctrl_c_exits_immediately_and_keeps_a_state(project: Project, moment: str) -> None:
    project.save("task")
    signals = f"{moment}:SIGINT"
    with project.serving("--persistent", signals=signals) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert "Traceback" not in project.log.read_text()
    assert project.saved() == ["task"]


# A full disk

# With 5 KB each, larger than the limit of 100 KB
TASKS = [f"task-{number}" for number in range(40)]


@pytest.fixture
def _no_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the coverage of processes, which could not write it to a full disk."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.mark.usefixtures("_no_coverage")
def test_a_full_disk_is_logged_once_and_the_state_is_kept_in_memory(project: Project) -> None:
    project.save(*TASKS, size=5_000)
    with project.serving("--persistent", "--state_save_interval=50") as process:
        before = project.files()
        wait_until(lambda: project.files() != before, what="the state is saved at intervals")
        limit_files(process.pid, 100_000)
        wait_until(lambda: project.lines("Failed to save"), what="a save fails")
        before = project.files()
        limit_files(process.pid, resource.RLIM_INFINITY)
        wait_until(lambda: project.lines("Saved the state"), what="a save succeeds")
        wait_until(lambda: project.files() != before, what="the file is replaced")
        limit_files(process.pid, 100_000)
        wait_until(lambda: len(project.lines("Failed to save")) == 2, what="a save fails again")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 1
    failures = project.lines("Failed to save")
    assert len(failures) == 3, failures
    assert ["keeping it in memory" in line for line in failures] == [True, True, False]
    assert failures[-1].endswith("; changes since the last save are lost")
    assert "Traceback" not in project.log.read_text()
    assert sorted(project.saved()) == sorted(TASKS)
    assert not list(project.folder.glob("flower.sav*"))


@pytest.mark.usefixtures("_no_coverage")
def test_a_failed_save_at_shutdown_is_logged_and_exits_with_status_1(project: Project) -> None:
    project.save(*TASKS, size=5_000)
    with project.serving("--persistent") as process:
        limit_files(process.pid, 100_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 1
    assert len(project.lines("Failed to save the state to")) == 1
    assert "Traceback" not in project.log.read_text()
    assert sorted(project.saved()) == sorted(TASKS)


def limit_files(pid: int, size: int) -> None:
    """Limit the file size of a process, in bytes, which fails like a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_missing_folder_is_an_error_at_the_start(project: Project) -> None:
    done = forks.run(["-A", "shop", "--persistent", "--db=/nowhere/flower"], project.folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("flower-proxy: --db: '/nowhere/flower' is not writable")


# Two processes


def test_a_second_process_cannot_use_the_same_file(project: Project) -> None:
    with project.serving("--persistent") as first:
        second = project.run("-A", "shop", "--persistent", "--port=0")
        assert second.returncode == 1
        last = second.stderr.splitlines()[-1]
        path = str(project.folder / "flower")
        assert last == f"flower-proxy: --db: another process uses {path!r}; stop it, or choose another file"
        assert "Traceback" not in second.stderr
        with project.serving("--persistent", "--db=other"):
            pass
        first.kill()
        first.wait()
        with project.serving("--persistent"):
            pass


@pytest.mark.parametrize("umask", [0o022, 0])
def test_state_files_are_private(project: Project, umask: int) -> None:
    project.folder.chmod(0o755)
    with project.serving("--persistent", command=["sh", "-c", f'umask {umask:03o}; exec "$@"', "sh", *COMMAND]):
        pass
    kept = list(project.folder.glob("flower*"))
    assert len(kept) > 1
    assert all(map(private, kept))


def options(folder: Path, **settings: object) -> OptionParser:
    return make_options(persistent=True, db=folder / "flower", port=0, address="127.0.0.1", no_auth=True, **settings)


def test_two_instances_in_one_process_cannot_share_a_file(tmp_path: Path) -> None:
    async def main() -> None:
        def new() -> FlowerProxy:
            return FlowerProxy(capp=capp, options=options(tmp_path))

        with Celery(broker="memory://") as capp:
            async with new():
                with pytest.raises(OSError, match=r"\A--db: another process uses .*\Z"):
                    new()
            async with new():
                pass
            # Closing releases the file of an instance that was never opened
            await new().close()
            async with new():
                pass

    asyncio.run(main())


def test_invalid_options_release_the_file(tmp_path: Path) -> None:
    async def main() -> None:
        with Celery(broker="memory://") as capp:
            try:
                FlowerProxy(capp=capp, options=options(tmp_path, certfile=__file__, keyfile=__file__))
            except ValueError:
                StateFile(str(tmp_path / "flower")).release()
            else:
                raise AssertionError("the options were accepted")

    asyncio.run(main())
