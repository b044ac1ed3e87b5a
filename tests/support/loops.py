"""Event loops in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
