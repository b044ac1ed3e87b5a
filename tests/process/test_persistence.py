"""Loading and saving of the state while flower-proxy runs, by a process of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shelve
import signal
import stat
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flower.events import EventsState as StockState
from tornado.ioloop import IOLoop

from flower_proxy.events import persistence as module
from flower_proxy.events.persistence import Persistence
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.snapshot import snapshot
from flower_proxy.events.state import State
from flower_proxy.events.state_file import StateFile
from tests.support.events import EVENTS
from tests.support.loops import until
from tests.support.processes import PROJECT, Address, answers, free_port, request, running, wait_until
from tests.support.states import save, saved_tasks, state_with

TASKS = [f"task-{number}" for number in range(500)]
APPLICATION = "from celery import Celery\n\napp = Celery('shop', broker='memory://')\n"
OURS, STOCK = ("flower_proxy", "-A", "shop"), ("celery", "-A", "shop", "flower")
# Stops the process that reads the state before it has read anything
STOP_READER = """\
import os, signal, sys

def hook(event, arguments):
    if event == "import" and arguments[0] == "flower_proxy.events.validation" and sys.orig_argv[-2:-1] == ["read"]:
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(hook)
"""


# Kills the process that writes the state at its nth access to the files
KILL_WRITER = """\
import os, signal, sys

left = int(os.environ["KILL_AT"])

def hook(event, arguments):
    global left
    names = [os.path.basename(str(one)) for one in arguments]
    if sys.orig_argv[-2:-1] == ["write"] and event.partition(".")[0] in ("open", "os", "shutil", "sqlite3"):
        left -= any(name in (".", "flower") or name.startswith("flower.") for name in names)
        if left == 0:
            # The call has an audit event, too
            left = -1
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APPLICATION)
    return tmp_path


def put(folder: Path, *uuids: str, size: int = 0) -> None:
    file = StateFile(str(folder / "flower"))
    save(file, state_with(*uuids, size=size))
    file.release()


def kept(folder: Path) -> list[str]:
    file = StateFile(str(folder / "flower"))
    try:
        return saved_tasks(file)
    finally:
        file.release()


def processes(folder: Path, action: str, state: str = "") -> list[int]:
    """Return the processes that read or write the state in a folder.

    :param state: only those in this state, as in proc(5).
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[-3:-2] == [action.encode()] and str(folder) in os.readlink(process / "cwd"):
                if state and (process / "stat").read_text().rpartition(")")[2].split()[0] != state:
                    continue
                found.append(int(process.name))
        except OSError:
            continue
    return found


def serving(folder: Path, *words: str, ready: str = "/ready", hook: str = "", command: tuple[str, ...] = OURS) -> Any:
    address = Address(free_port())
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(hook)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder / "hook"), str(PROJECT)]),
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    if command == OURS:
        environment["FLOWER_NO_AUTH"] = "true"
    process = running(
        [
            *(sys.executable, "-m", *command, "--address=127.0.0.1", f"--port={address.port}"),
            *("--persistent", "--db=flower", *words),
        ],
        log=folder / "log",
        ready=lambda: answers(address, ready),
        env={**os.environ, **environment},
        cwd=folder,
    )
    return address, process


def api(address: Address, path: str) -> Any:
    answer = request(address, path)
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


def has_tasks(address: Address, number: int) -> bool:
    return len(api(address, "/api/tasks")) == number


# Stock Flower


def test_stock_flower_and_flower_proxy_open_files_of_each_other(folder: Path) -> None:
    state = State(max_tasks_in_memory=10_000)
    for number, kind in enumerate(("task-received", "task-started", "task-succeeded", "task-failed", "task-retried")):
        for event in EVENTS[:2] if kind == "task-received" else ():
            state.event({**event, "local_received": 1.0})
        for event in EVENTS[3:6]:
            state.event({**event, "uuid": f"id-{number}", "local_received": 1.0})
        (event,) = (event for event in EVENTS if event["type"] == kind)
        state.event({**event, "uuid": f"id-{number}", "parent_id": "id-0" if number else None, "local_received": 1.0})
    file = StateFile(str(folder / "flower"))
    save(file, state)
    file.release()
    seen = []
    for command in (OURS, STOCK, OURS):
        address, process = serving(folder, ready="/healthcheck", command=command)
        with process as running_process:
            wait_until(partial(has_tasks, address, 5), what="the tasks are loaded")
            workers = {worker["hostname"]: worker for worker in api(address, "/workers?json=1")["data"]}
            counts = {name: worker["task-received"] for name, worker in workers.items()}
            tasks = api(address, "/api/tasks")
            # Stock Flower forgets them
            children = tasks["id-0"].pop("children")
            assert command == STOCK or sorted(children) == [f"id-{number}" for number in range(1, 5)]
            seen.append((tasks, counts, api(address, "/api/task/info/id-1")))
            # Each saves it anew
            running_process.send_signal(signal.SIGINT)
            running_process.wait(timeout=30)
        assert "Failed" not in (folder / "log").read_text()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1] == {"w1@host": 6}
    assert {task["state"] for task in seen[0][0].values()} == {"STARTED", "SUCCESS", "FAILURE", "RETRY"}


# Start


def test_readiness_follows_loading_and_liveness_precedes_it(folder: Path) -> None:
    put(folder, *TASKS)
    address, process = serving(folder, ready="/healthcheck", hook=STOP_READER)
    with process as running_process:
        wait_until(lambda: processes(folder, "read", state="T"), what="the process that reads the state has stopped")
        (reader,) = processes(folder, "read")
        answer = request(address, "/ready")
        assert (answer.status, "loading the saved state" in json.loads(answer.text)["reasons"]) == (503, True)
        assert api(address, "/api/tasks") == {}
        os.kill(reader, signal.SIGCONT)
        wait_until(lambda: answers(address, "/ready"), what="it is ready")
        assert set(api(address, "/api/tasks?limit=10000")) == set(TASKS)
        running_process.send_signal(signal.SIGTERM)
        assert running_process.wait(timeout=30) == 0


def test_a_signal_while_loading_keeps_the_saved_state(folder: Path) -> None:
    put(folder, *TASKS)
    before = {path: path.stat().st_ino for path in folder.glob("flower.*")}
    _, process = serving(folder, ready="/healthcheck", hook=STOP_READER)
    with process as running_process:
        wait_until(lambda: processes(folder, "read", state="T"), what="the process that reads the state has stopped")
        running_process.send_signal(signal.SIGTERM)
        assert running_process.wait(timeout=30) == 0
    assert processes(folder, "read") == []
    # The history is saved
    (folder / "flower.history").unlink()
    assert {path: path.stat().st_ino for path in folder.glob("flower.*")} == before
    assert "Failed" not in (folder / "log").read_text()


# Killed processes


def writing(folder: Path) -> bool:
    return any(path.stat().st_size for path in (folder / "flower.saving").glob("*"))


STAGES: dict[str, Callable[[Path], object]] = {
    "started": lambda folder: processes(folder, "write"),
    "folder": lambda folder: (folder / "flower.saving").exists(),
    "writing": lambda folder: writing(folder),
    "random": lambda folder: random.random() < 0.1,
}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all stages, where each run starts with what the previous one has left."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "shop.py").write_text(APPLICATION)
    put(folder, *TASKS, size=20_000)
    return folder


@pytest.mark.parametrize("stage", [*STAGES, "random"])
def test_a_killed_flower_proxy_loses_no_saved_state(states: Path, stage: str) -> None:
    _, process = serving(states, "--state_save_interval=1")
    with process as running_process:
        wait_until(lambda: found(STAGES[stage], states), what=f"stage {stage}")
        running_process.kill()
        running_process.wait()
    # It ends with its parent, and has no access to the files in place
    assert set(kept(states)) == set(TASKS)
    wait_until(lambda: not processes(states, "write"), what="the writer has ended")
    assert set(kept(states)) == set(TASKS)
    assert not list(states.glob("*.corrupt"))


def found(condition: Callable[[Path], object], folder: Path) -> object:
    try:
        return condition(folder)
    except FileNotFoundError:
        return False


# Adds numbered tasks all the time, and reports the number at the start of each completed save
SAVES = """\
import asyncio, itertools, json, os, random, signal, sys, time
from pathlib import Path
from flower_proxy.events.state_file import StateFile
from tests.process.test_persistence import EVENTS, persisting
from tests.support.states import saved_tasks

path, kills = Path(sys.argv[1]), int(sys.argv[2])

async def run(report):
    receiver, persistence, _ = persisting(path)
    persistence.start()
    while receiver.dispatcher.is_paused:
        await asyncio.sleep(0)
    numbers = itertools.count(len(receiver.state.tasks))

    async def add():
        while True:
            event = {**EVENTS[4], "local_received": 1.0, "uuid": str(next(numbers)), "args": "x" * 2000}
            receiver.state.event(event)
            await asyncio.sleep(0.001)

    adding = asyncio.ensure_future(add())
    while True:
        number = len(receiver.state.tasks)
        await persistence._save()
        os.write(report, b"%d\\n" % number)

found = []
for _ in range(kills):
    reports, report = os.pipe()
    child = os.fork()
    if not child:
        asyncio.run(run(report))
    os.close(report)
    first = os.read(reports, 20)
    time.sleep(random.random() / 4)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = b"".join(iter(lambda: os.read(reports, 1000), b""))
    file = StateFile(str(path))
    found.append([int((first + rest).split()[-1]), sorted(map(int, saved_tasks(file)))])
    file.release()
print(json.dumps(found))
"""


def test_a_kill_at_any_time_loses_only_what_followed_the_last_save(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVES, str(tmp_path / "flower"), "6"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[-1][0] > 0
    for number, tasks in found:
        assert len(tasks) >= number
        # No task is missing between others
        assert tasks == list(range(len(tasks)))
    assert not list(tmp_path.glob("*.corrupt"))


def test_a_killed_writer_is_replaced_by_the_next_one(folder: Path) -> None:
    put(folder, *TASKS, size=20_000)
    _, process = serving(folder, "--state_save_interval=100")
    log = folder / "log"
    with process as running_process:
        wait_until(lambda: processes(folder, "write"), what="the state is being saved")
        for number in processes(folder, "write"):
            os.kill(number, signal.SIGKILL)
        wait_until(lambda: "Failed to save" in log.read_text(), what="the failure is logged")
        wait_until(lambda: "Saved the state" in log.read_text(), what="the next save succeeds")
        running_process.send_signal(signal.SIGTERM)
        assert running_process.wait(timeout=30) == 0
    assert "(the process that accesses it ended with status -9); keeping it in memory and retrying" in log.read_text()
    assert set(kept(folder)) == set(TASKS)
    assert not list(folder.glob("flower.sav*"))


def test_a_writer_killed_at_any_access_leaves_the_saved_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILL_WRITER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    put(tmp_path, "old")
    moments, is_killed = 0, True
    while is_killed:
        moments += 1
        monkeypatch.setenv("KILL_AT", str(moments))
        is_killed = not asyncio.run(saves(tmp_path / "flower", f"new-{moments}"))
        assert kept(tmp_path) == ["old"] if is_killed else ["old", f"new-{moments}"]
        assert not list(tmp_path.glob("flower.sav*"))
    assert moments > 3
    assert [record.levelname for record in caplog.records] == ["ERROR"] * (moments - 1)


async def saves(path: Path, uuid: str) -> bool:
    """Add a task to a saved state; return whether it has been saved."""
    receiver, persistence, _ = persisting(path)
    persistence.start()
    await until(lambda: not receiver.dispatcher.is_paused)
    receiver.state.event({**EVENTS[4], "local_received": 1.0, "uuid": uuid})
    await persistence.close()
    return persistence.saved


def slots(address: Address) -> dict[int, float]:
    """Return the observed slots of the history, without the open one, by time."""
    history = api(address, "/api/history?range=15m")
    times = range(history["first"], history["first"] + 5 * 179, 5)
    return {time: covered for time, covered in zip(times, history["covered"], strict=False) if covered}


def run_until_two_more_slots(folder: Path, number: int, end: signal.Signals) -> dict[int, float]:
    address, process = serving(folder)
    with process as running_process:
        wait_until(lambda: len(slots(address)) >= number + 2, what="two more slots")
        found = slots(address)
        running_process.send_signal(end)
        running_process.wait(timeout=30)
    return found


def test_the_history_continues_after_a_restart(folder: Path) -> None:
    """It is saved at the end; a killed process leaves what was saved before."""
    put(folder, "task")
    found: dict[int, float] = {}
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        later = run_until_two_more_slots(folder, len(found), end)
        assert {time: later.get(time) for time in found} == found
        found = found if end == signal.SIGKILL else later
    assert not list(folder.glob("*.corrupt"))
    assert stat.S_IMODE((folder / "flower.history").stat().st_mode) == 0o600


def test_ctrl_c_reaches_only_flower_proxy(folder: Path) -> None:
    """A terminal sends it to all processes of the foreground group, a service manager to all of the service."""
    put(folder, *TASKS, size=20_000)
    _, process = serving(folder, "--state_save_interval=100")
    with process as running_process:
        wait_until(lambda: processes(folder, "write"), what="the state is being saved")
        for number in processes(folder, "write"):
            assert os.getpgid(number) != os.getpgid(running_process.pid)
        running_process.send_signal(signal.SIGTERM)
        assert running_process.wait(timeout=30) == 0
    assert set(kept(folder)) == set(TASKS)


# In one process


class Restored:
    """Records what is restored."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.tasks: list[str] = []

    def __call__(self, workers: Any, tasks: Any) -> None:
        self.workers += workers
        self.tasks += [task.uuid for task in tasks]


def persisting(path: Path, interval: float = 0.0) -> tuple[Receiver, Persistence, Restored]:
    restored = Restored()
    receiver = Receiver(
        Celery(broker="memory://", set_as_current=False),
        io_loop=IOLoop.current(),
        enable_events=False,
        max_tasks_in_memory=10_000,
    )
    return receiver, Persistence(receiver, str(path), interval, restored), restored


def test_the_event_loop_runs_while_the_state_is_loaded_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *TASKS)

    async def main() -> None:
        receiver, persistence, restored = persisting(tmp_path / "flower")
        seen = []
        persistence.start()
        while receiver.dispatcher.is_paused:
            seen.append(len(receiver.state.tasks))
            await asyncio.sleep(0)
        assert len({number for number in seen if 0 < number < len(TASKS)}) > 2
        assert (restored.workers, restored.tasks) == (["w1@test"], TASKS)
        sent = []

        def recorded(state: State) -> Iterator[tuple[bytes, bool]]:
            for part in snapshot(state):
                sent.append(part)
                yield part

        monkeypatch.setattr(module, "snapshot", recorded)
        closing, lengths = asyncio.ensure_future(persistence.close()), set()
        while not closing.done():
            lengths.add(len(sent))
            await asyncio.sleep(0)
        await closing
        assert len(lengths) == len(sent) + 1 > 5

    asyncio.run(main())
    assert kept(tmp_path) == TASKS


def test_events_during_loading_are_newer_than_the_saved_state(tmp_path: Path) -> None:
    put(tmp_path, *TASKS)

    async def main() -> None:
        receiver, persistence, _ = persisting(tmp_path / "flower")
        persistence.start()
        for uuid in (TASKS[0], TASKS[-1], "new"):
            receiver.dispatcher.put(json.loads, [json.dumps({**EVENTS[6], "uuid": uuid})])
        await until(lambda: receiver.dispatcher.received == 3)
        tasks = receiver.state.tasks
        assert [tasks[uuid].state for uuid in (TASKS[0], TASKS[-1], "new")] == ["SUCCESS"] * 3
        assert (tasks[TASKS[0]].args.strip(), tasks[TASKS[1]].state) == (TASKS[0], "RECEIVED")
        assert len(tasks) == len(TASKS) + 1
        await persistence.close()

    asyncio.run(main())


def load(path: Path) -> list[str]:
    async def main() -> list[str]:
        receiver, persistence, _ = persisting(path)
        persistence.start()
        await until(lambda: not receiver.dispatcher.is_paused)
        await persistence.close()
        return list(receiver.state.tasks)

    return asyncio.run(main())


def test_corrupt_files_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[Process] = []
    monkeypatch.setattr(Process, "kill", lambda process: killed.append(process))
    put(tmp_path, "task")
    files = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    for path in files:
        path.write_bytes(b"nonsense")
    assert load(tmp_path / "flower") == []
    assert {path.name for path in tmp_path.glob("*.corrupt")} == {f"{path.name}.corrupt" for path in files}
    (message,) = caplog.messages
    assert message.startswith(f"Failed to load the state from {str(tmp_path / 'flower')!r}")
    # Sometimes, that logs a warning of an unknown child process
    assert killed == []


@pytest.mark.parametrize("value", [5, b"x" * 100, {"a": 1}], ids=repr)
def test_other_pickles_are_corrupt(value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with shelve.open(str(tmp_path / "flower")) as shelf:
        shelf["events"] = value
    assert load(tmp_path / "flower") == []
    assert list(tmp_path.glob("*.corrupt"))
    assert "expected a state, got " in caplog.text


def test_an_empty_database_is_an_empty_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelve.open(str(tmp_path / "flower")).close()
    assert load(tmp_path / "flower") == []
    assert caplog.messages == []


def test_skipped_workers_and_tasks_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In stock Flower, one worker with an invalid heartbeat makes the whole state unloadable."""
    state = StockState(max_tasks_in_memory=10)
    for number, name in enumerate(("good@host", "bad@host")):
        state.event({**EVENTS[4], "hostname": name, "local_received": 1.0, "uuid": f"id-{number}"})
    state.workers["bad@host"].heartbeats = "x"
    with shelve.open(str(tmp_path / "flower")) as shelf:
        shelf["events"], shelf["counter"] = state, dict(state.counter)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path / "flower") == ["id-0"]
    (message,) = (record.message for record in caplog.records if record.name == "flower_proxy.events.persistence")
    assert message.startswith("Skipped 2 invalid workers and tasks in ")
    assert "; the first is 'a worker: " in message


def test_slow_saves_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        _, persistence, _ = persisting(tmp_path / "flower", interval=1e-3)
        persistence.start()
        await until(lambda: caplog.messages)
        await persistence.close()

    asyncio.run(main())
    assert {message.partition(" took ")[0] for message in caplog.messages} == {"Saving the state"}


def test_the_process_imports_neither_celery_nor_flower() -> None:
    code = "import sys, flower_proxy.events.shelf; print({'celery', 'flower', 'tornado'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
