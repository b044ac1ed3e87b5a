"""The history is advanced, measured, marked, saved and loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flower_proxy.monitor import keeper as module
from flower_proxy.monitor.history import History
from flower_proxy.monitor.history_file import read
from flower_proxy.monitor.keeper import Keeper
from flower_proxy.monitor.series import RANGES
from flower_proxy.monitor.status import Status
from tests.support.loops import until

CALM = Status(connected=True, reconnects=0, dropped=0, missed=0, executing={"w1": 3}, lengths={"mail": 4})


class Statuses:
    """A status that a test changes."""

    def __init__(self) -> None:
        self.now = CALM

    def __call__(self) -> Status:
        return self.now


@pytest.fixture
def statuses() -> Statuses:
    return Statuses()


def kinds(history: History) -> list[str]:
    return [mark.kind for mark in history.marks]


def test_slots_are_closed_without_events(statuses: Statuses) -> None:
    async def main() -> None:
        keeper = Keeper(History(), statuses, None)
        keeper.start()
        first = keeper.history.times(0)[-1]
        await until(lambda: keeper.history.times(0)[-1] > first)
        await keeper.close()
        keeper.history.settle()
        assert max(keeper.history.whole.columns.column("executing")) == 3 + 1
        assert sum(keeper.history.whole.columns.column("covered")[: RANGES[0].slots]) > 0

    asyncio.run(main())


def test_nothing_is_measured_without_a_connection(statuses: Statuses) -> None:
    """Workers seem to be offline then, and queues empty."""

    async def main() -> None:
        statuses.now = replace(CALM, connected=False, executing={}, lengths={})
        keeper = Keeper(History(), statuses, None)
        keeper.start()
        await keeper.close()
        keeper.history.settle()
        assert {"online", "executing", "length"}.isdisjoint(keeper.history.whole.columns.arrays)

    asyncio.run(main())


CHANGES = {
    "lost": ([replace(CALM, connected=False)], ["lost"]),
    "restored": ([replace(CALM, connected=False), replace(CALM, reconnects=1)], ["lost", "restored"]),
    "within a second": ([replace(CALM, reconnects=1)], ["lost", "restored"]),
    "again": ([replace(CALM, reconnects=1), replace(CALM, reconnects=2)], ["lost", "restored"] * 2),
    "dropped": ([replace(CALM, dropped=5)], ["dropped"]),
    "missed": ([replace(CALM, missed=5)], ["missed"]),
    "forgotten": ([replace(CALM, missed=5), CALM], ["missed"]),
}


@pytest.mark.parametrize(("changes", "marks"), CHANGES.values(), ids=CHANGES)
def test_changes_are_marked(statuses: Statuses, changes: list[Status], marks: list[str]) -> None:
    async def main() -> None:
        keeper = Keeper(History(), statuses, None)
        keeper.start()
        for status in changes:
            statuses.now = status
            keeper.advance()
        await keeper.close()
        assert kinds(keeper.history) == ["started", *marks]

    asyncio.run(main())


def test_the_first_connection_is_no_mark(statuses: Statuses) -> None:
    async def main() -> None:
        keeper = Keeper(History(), statuses, None)
        statuses.now = replace(CALM, connected=False)
        keeper.start()
        statuses.now = CALM
        keeper.advance()
        await keeper.close()
        assert kinds(keeper.history) == ["started"]

    asyncio.run(main())


def run_once(path: Path, statuses: Statuses, *, events: int = 0) -> History:
    """Keep a history for a moment, with events."""

    async def main() -> History:
        keeper = Keeper(History(int(time.time())), statuses, str(path))
        keeper.start()
        for _ in range(events):
            keeper.history.count("task-succeeded", "add", "w1", "mail")
        await keeper.close()
        return keeper.history

    return asyncio.run(main())


def test_a_history_continues_after_a_restart(statuses: Statuses, tmp_path: Path) -> None:
    path = tmp_path / "flower.history"
    run_once(path, statuses, events=3)
    history = run_once(path, statuses, events=4)
    for series in (history.whole, history.groups["task"]["add"]):
        assert sum(series.columns.column("succeeded")[-RANGES[-1].slots :]) == 7
    assert kinds(history) == ["started", "started"]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"flower-proxy history\xff\xff" + bytes(100)])
def test_unreadable_files_are_renamed(
    content: bytes, statuses: Statuses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "flower.history"
    path.write_bytes(content)
    run_once(path, statuses, events=1)
    (message,) = caplog.messages
    assert message.startswith(f"Failed to load the history from {str(path)!r} (it ")
    assert message.endswith("; renamed it to *.corrupt")
    assert (tmp_path / "flower.history.corrupt").read_bytes() == content
    assert read(str(path)) is not None


def test_failures_to_save_are_logged_once(
    statuses: Statuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_SAVE_INTERVAL", 0.01)
    folder = tmp_path / "folder"

    async def main() -> None:
        keeper = Keeper(History(), statuses, str(folder / "flower.history"))
        keeper.start()
        await until(lambda: caplog.messages)
        folder.mkdir()
        await until((folder / "flower.history").exists)
        await keeper.close()

    asyncio.run(main())
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        f"Failed to save the history to {str(folder / 'flower.history')!r}"
    ]
