"""Concurrent start of programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def started_together(managers: Iterable[AbstractContextManager[T]]) -> Iterator[list[T]]:
    """Enter context managers concurrently, yield their values in order, and exit them concurrently."""
    managers = list(managers)
    with ThreadPoolExecutor(len(managers)) as pool:
        entries = [pool.submit(manager.__enter__) for manager in managers]
        try:
            yield [entry.result() for entry in entries]
        finally:
            entered = [manager for manager, entry in zip(managers, entries, strict=True) if not entry.exception()]
            for _ in pool.map(lambda manager: manager.__exit__(None, None, None), entered):
                pass
