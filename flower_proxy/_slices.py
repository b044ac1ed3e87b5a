"""Long work in the event loop, in slices between which it handles other requests and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_MAX_SLICE = 0.005  # seconds


class CancelledWorkError(Exception):
    """The result of the work is no longer needed."""


async def in_slices(work: Generator[None, None, T], is_cancelled: Callable[[], bool] = lambda: False) -> T:
    """Run a generator until its end.

    :param work: yields after each step, which should take at most a few milliseconds.
    :param is_cancelled: called between slices; returns whether to stop.
    :returns: what the generator returns.
    :raises CancelledWorkError: `is_cancelled` returned True.
    """
    end = time.perf_counter() + _MAX_SLICE
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if time.perf_counter() >= end:
            await asyncio.sleep(0)
            if is_cancelled():
                work.close()
                raise CancelledWorkError
            end = time.perf_counter() + _MAX_SLICE
