from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from flower_proxy._slices import CancelledWorkError, in_slices


class Steps:
    """Work of steps that take 2 ms each, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.now, self.done, self.count = 0.0, 0, count
        monkeypatch.setattr("flower_proxy._slices.time.perf_counter", lambda: self.now)

    def __call__(self) -> Generator[None, None, int]:
        while self.done < self.count:
            self.done += 1
            self.now += 0.002
            yield
        return self.done


def test_others_run_after_five_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 10)

    async def progress() -> list[int]:
        running = asyncio.ensure_future(in_slices(steps()))
        seen = []
        while not running.done():
            await asyncio.sleep(0)
            seen.append(steps.done)
        assert running.result() == 10
        return seen

    assert asyncio.run(progress()) == [3, 6, 9, 10]


def test_cancelled_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 1000)
    with pytest.raises(CancelledWorkError):
        asyncio.run(in_slices(steps(), lambda: steps.done > 5))
    assert steps.done == 6


def test_errors_are_raised() -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("message")

    with pytest.raises(ValueError, match="message"):
        asyncio.run(in_slices(failing()))
