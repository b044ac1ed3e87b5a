"""Event loops: in threads, and while a test waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tornado.ioloop import IOLoop


@contextmanager
def running(loop: IOLoop) -> Iterator[None]:
    """Run an event loop in a thread until the block ends."""
    thread = threading.Thread(target=loop.start)
    thread.start()
    try:
        yield
    finally:
        loop.add_callback(loop.stop)
        thread.join()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, while the event loop runs."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
