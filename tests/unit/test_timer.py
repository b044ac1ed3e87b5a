"""The periodic timer: clock changes and failing calls."""

from __future__ import annotations

import asyncio
import time

import pytest

from flower_proxy._timer import Timer


@pytest.mark.parametrize("step", [3600, -3600])
def test_wall_clock_steps_do_not_affect_the_interval(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> int:
        calls, enough, now = [0], asyncio.Event(), time.time

        def call() -> None:
            calls[0] += 1
            monkeypatch.setattr(time, "time", lambda: now() + calls[0] * step)
            if calls[0] == 3:
                timer.stop()
                enough.set()

        timer = Timer(call, 0.01)
        timer.start()
        await asyncio.wait_for(enough.wait(), 30)
        return calls[0]

    assert asyncio.run(run()) == 3


def test_no_call_follows_stop() -> None:
    """The loop may stop the timer when the call is due and has not begun."""

    async def run() -> int:
        calls, ended = [0], asyncio.Event()

        def call() -> None:
            calls[0] += 1

        def stop() -> None:
            timer.stop()
            loop.call_later(0.01, ended.set)

        timer, loop = Timer(call, 0), asyncio.get_running_loop()
        timer.start()
        # Due right after the timer, in the same iteration of the loop
        loop.call_later(0, stop)
        await ended.wait()
        return calls[0]

    assert asyncio.run(run()) == 0


def test_failing_call_is_logged_and_does_not_stop_the_timer(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        calls, enough = [0], asyncio.Event()

        async def call() -> None:
            calls[0] += 1
            if calls[0] == 1:
                raise ValueError("no")
            enough.set()

        timer = Timer(call, 0.01)
        timer.start()
        timer.start()
        await asyncio.wait_for(enough.wait(), 30)
        timer.stop()

    asyncio.run(run())
    assert [record.message for record in caplog.records] == ["A periodic call failed; the next one follows in 0.01 s"]
