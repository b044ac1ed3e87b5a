"""The file of a history: complete, private, and never a reason not to start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flower_proxy.monitor.history import History
from flower_proxy.monitor.history_file import HistoryFileError, decode, encode, move_aside, read, write
from flower_proxy.monitor.series import RANGES
from tests.support.processes import PROJECT

START = 1_800_000_000.0


@pytest.fixture
def history() -> History:
    history = History()
    history.advance(START, 0.0, is_covered=True)
    for number in range(100):
        history.count("task-succeeded", f"task-{number % 3}", "w1", "mail")
        history.observe_runtime(number / 7, f"task-{number % 3}", "w1", "mail")
    history.measure({"w1": 2}, {"mail": 70_000})
    history.mark("started")
    history.advance(START + 5, 5.0, is_covered=True)
    return history


def restored(history: History) -> History:
    copy = History()
    copy.restore(decode(encode(history.save())))
    return copy


def test_a_restored_history_is_equal(history: History) -> None:
    copy = restored(history)
    assert copy.save() == history.save()
    assert copy.marks == history.marks
    for index in range(len(RANGES)):
        assert copy.times(index) == history.times(index)
    assert encode(copy.save()) == encode(history.save())


def test_a_restored_history_continues_after_a_gap(history: History) -> None:
    copy = restored(history)
    copy.advance(START + 65, 1000.0, is_covered=True)
    copy.count("task-succeeded", "task-0", "w1", "mail")
    copy.advance(START + 70, 1005.0, is_covered=True)
    copy.settle()
    covered = copy.whole.columns.column("covered")
    assert sum(covered[: RANGES[0].slots]) == 10_000
    assert sum(copy.whole.columns.column("succeeded")[: RANGES[0].slots]) == 101


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_a_truncated_file_is_an_error(history: History) -> None:
    content = encode(history.save())
    for length in range(len(content)):
        with pytest.raises(HistoryFileError, match=r"truncated|checksum"):
            decode(content[:length])


@pytest.mark.parametrize(
    ("position", "reason"), [(0, "not a history"), (20, "version 0"), (30, "checksum"), (-1, "checksum")]
)
def test_a_corrupt_file_is_an_error(history: History, position: int, reason: str) -> None:
    content = encode(history.save())
    with pytest.raises(HistoryFileError, match=reason):
        decode(flipped(content, position % len(content)))


def test_a_file_of_other_ranges_is_an_error(history: History) -> None:
    saved = history.save()
    object.__setattr__(saved, "latest", saved.latest[:2])
    with pytest.raises(ValueError, match="other ranges"):
        History().restore(decode(encode(saved)))


def test_files_are_private_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "flower.history"
    assert read(str(path)) is None
    (tmp_path / "flower.history.saving").symlink_to(tmp_path / "elsewhere")
    os.umask(before := os.umask(0))
    try:
        for content in (b"old", b"new"):
            write(str(path), content)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["flower.history"]
    move_aside(str(path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["flower.history.corrupt"]


# Kills itself at the nth call that changes the file
KILLED = """\
import os, signal, sys
from flower_proxy.monitor.history_file import write

left = int(sys.argv[2])

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.unlink") and "flower.history" in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
write(sys.argv[1], b"new" * 100_000)
"""


def test_a_kill_during_a_write_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "flower.history"
    kills = 0
    while True:
        path.write_bytes(b"old")
        command = [sys.executable, "-c", KILLED, str(path), str(kills + 1)]
        if subprocess.run(command, cwd=PROJECT, timeout=60).returncode == 0:
            break
        kills += 1
        assert path.read_bytes() == b"old"
    assert kills >= 2
    assert path.read_bytes() == b"new" * 100_000
