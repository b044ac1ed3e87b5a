"""Concurrent start, use and stop of independent programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def entering(contexts: Mapping[str, contextlib.AbstractContextManager[T]]) -> Iterator[dict[str, Future[T]]]:
    """Enter context managers in the background, and exit them concurrently."""
    with ThreadPoolExecutor(len(contexts)) as executor:
        entered = {name: executor.submit(context.__enter__) for name, context in contexts.items()}
        try:
            yield entered
        finally:
            wait(entered.values())
            exiting = [executor.submit(context.__exit__, None, None, None) for context in contexts.values()]
            wait(exiting)
            for future in exiting:
                future.result()


def each(check: Callable[[T], None], values: Mapping[str, T]) -> None:
    """Run a check for all values concurrently.

    :raises AssertionError: a check has failed; the message names its value.
    """
    with ThreadPoolExecutor(len(values)) as executor:
        running = {name: executor.submit(check, value) for name, value in values.items()}
    for name, future in running.items():
        if error := future.exception():
            raise AssertionError(f"{name}: {error}") from error
