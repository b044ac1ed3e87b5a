"""State file: locking, file modes and atomic replacement."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_proxy.events.state_file import StateFile, StateFileError
from tests.support.processes import PROJECT
from tests.support.states import private, save, saved_tasks, state_with

# Python may be built without the extensions; dbm.sqlite3 exists since 3.13
EXTENSIONS = {"dumb": "dbm.dumb", "gnu": "_gdbm", "ndbm": "_dbm", "sqlite3": "dbm.sqlite3"}
AVAILABLE = [name for name, module in EXTENSIONS.items() if importlib.util.find_spec(module)]


@pytest.fixture(autouse=True)
def open_folder(tmp_path: Path) -> None:
    """Make the folder accessible to other users, so that the modes of the files matter."""
    tmp_path.chmod(0o755)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[StateFile]:
    file = StateFile(str(tmp_path / "flower"))
    yield file
    file.release()


def output(program: str, *arguments: str) -> object:
    """Run a program in a new Python process, since audit hooks cannot be removed; return the JSON that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HEAD = """\
import dbm, importlib, json, os, sys
from pathlib import Path
from flower_proxy.events.state_file import StateFile
from tests.support.states import private, save, saved_tasks, state_with

path, backend = sys.argv[1:3]
dbm._defaultmod = dbm._modules[f"dbm.{backend}"] = importlib.import_module(f"dbm.{backend}")
watch = None

def hook(event, _):
    if watch is not None and event.partition(".")[0] in ("open", "os", "shutil", "sqlite3"):
        watch()

sys.addaudithook(hook)
"""

ANY_MOMENT = f"""\
{HEAD}
def save_until(moment):
    global watch
    file, left = StateFile(path), [moment]
    def watch():
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
    save(file, state_with("new", size=5_000))
    os._exit(0)

found = []
for moment in range(1, 1000):
    file = StateFile(path)
    save(file, state_with("old"))
    file.release()
    child = os.fork()
    if not child:
        save_until(moment)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    file = StateFile(path)
    found.append([status, saved_tasks(file)])
    file.release()
    if status != 9:
        break
print(json.dumps(found))
"""


@pytest.mark.parametrize("backend", AVAILABLE)
def test_saving_is_atomic_when_the_process_is_killed(backend: str, tmp_path: Path) -> None:
    found = output(ANY_MOMENT, str(tmp_path / "flower"), backend)
    assert isinstance(found, list)
    assert found[0] == [9, ["old"]]
    assert found[-1] == [0, ["new"]]
    assert all(one in ([9, ["old"]], [9, ["new"]]) for one in found[:-1])
    assert [9, ["new"]] in found, "killed while the files are moved into place"
    assert not list(tmp_path.glob("*.corrupt"))


PRIVATE = f"""\
{HEAD}
os.umask(int(sys.argv[3]))
folder, seen = Path(path).parent, set()

def watch():
    global watch
    looking, watch = watch, None
    seen.update((str(one.relative_to(folder)), private(one)) for one in folder.rglob("*"))
    watch = looking

for number in range(2):
    file = StateFile(path)
    saved_tasks(file)
    save(file, state_with("task"))
    file.release()
watch()
assert not list(folder.glob("*.corrupt"))
print(json.dumps(sorted(seen)))
"""


@pytest.mark.parametrize("umask", [0o022, 0])
@pytest.mark.parametrize("backend", AVAILABLE)
def test_files_are_never_readable_by_other_users(backend: str, umask: int, tmp_path: Path) -> None:
    seen = output(PRIVATE, str(tmp_path / "flower"), backend, str(umask))
    assert isinstance(seen, list)
    assert {name.partition("/")[0] for name, _ in seen} >= {"flower.lock", "flower.saving", "flower.saved"}
    assert [name for name, is_private in seen if not is_private] == []


def test_loading_restricts_the_mode_of_files_of_stock_flower(file: StateFile, tmp_path: Path) -> None:
    save(file, state_with("task"))
    kept = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    for path in kept:
        path.chmod(0o644)
    assert file.find()
    assert all(map(private, kept))


def test_saving_removes_files_of_other_backends(file: StateFile, tmp_path: Path) -> None:
    """After an update of Python, the old state would be loaded at each start."""
    stale = tmp_path / "flower.pag"
    stale.touch()
    save(file, state_with("task"))
    assert not stale.exists()
    assert saved_tasks(file) == ["task"]


def test_an_inaccessible_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match=r"\A--db: cannot open '.*/nowhere/flower\.lock': No such file.*\Z"):
        StateFile(str(tmp_path / "nowhere" / "flower"))


def test_lock_files_that_are_symbolic_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flower.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateFileError, match="--db: cannot open"):
        StateFile(str(tmp_path / "flower"))
    assert not (tmp_path / "elsewhere").exists()


def test_files_of_other_users_are_not_loaded(file: StateFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling runs code."""
    (tmp_path / "flower.saved").mkdir()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(StateFileError, match=r"another user owns '.*/flower\.saved'; remove it"):
        file.find()
    with pytest.raises(PermissionError):
        file.begin()


# Locking


def test_locking_fails_until_the_lock_is_released(file: StateFile) -> None:
    with pytest.raises(StateFileError, match=r"--db: another process uses '.*'; stop it, or choose another file"):
        StateFile(file.path)
    file.release()
    second = StateFile(file.path)
    file.release()
    with pytest.raises(StateFileError):
        StateFile(file.path)
    second.release()


def test_symbolic_links_share_the_lock_of_their_target(file: StateFile, tmp_path: Path) -> None:
    for name, target in {"folder": tmp_path, "link": Path(file.path)}.items():
        (tmp_path / name).symlink_to(target)
    for path in (tmp_path / "folder" / "flower", tmp_path / "link"):
        with pytest.raises(StateFileError):
            StateFile(str(path))


def test_garbage_collection_releases_the_lock(tmp_path: Path) -> None:
    StateFile(str(tmp_path / "flower"))
    StateFile(str(tmp_path / "flower")).release()


FORKED = """\
import json, os, sys
from flower_proxy.events.state_file import StateFile, StateFileError

def is_locked():
    try:
        StateFile(sys.argv[1]).release()
    except StateFileError:
        return True
    return False

file = StateFile(sys.argv[1])
ended, end = os.pipe()
if not (first := os.fork()):
    sys.exit()  # runs the finalizers
os.waitpid(first, 0)
after_child = is_locked()
if not (second := os.fork()):
    os.close(end)
    os.read(ended, 1)
    os._exit(0)
file.release()
print(json.dumps([after_child, is_locked()]))
sys.stdout.flush()
os.close(end)
os.waitpid(second, 0)
"""


def test_forked_children_neither_release_nor_keep_the_lock(tmp_path: Path) -> None:
    assert output(FORKED, str(tmp_path / "flower")) == [True, False]


KILLED = """\
import json, os, signal, sys
from flower_proxy.events.state_file import StateFile

ended, end = os.pipe()
locked, lock = os.pipe()
if not (holder := os.fork()):
    file = StateFile(sys.argv[1])
    if not os.fork():
        os.close(end)
        os.write(lock, b"1")
        os.read(ended, 1)
        os._exit(0)
    signal.pause()
os.read(locked, 1)
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
StateFile(sys.argv[1]).release()
print(json.dumps("released"))
"""


def test_a_killed_process_releases_the_lock_before_its_children_end(tmp_path: Path) -> None:
    """A child that was forked, but does not run its own program yet, would keep a lock of `flock`."""
    assert output(KILLED, str(tmp_path / "flower")) == "released"


def test_stale_lock_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "flower.lock").touch()
    StateFile(str(tmp_path / "flower")).release()
