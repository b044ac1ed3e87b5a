"""Concurrent start, use and stop of independent programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def entering(contexts: Mapping[str, AbstractContextManager[T]]) -> Iterator[dict[str, Future[T]]]:
    """Enter context managers in the background, and exit those that were entered concurrently."""
    with ThreadPoolExecutor(len(contexts)) as executor:
        entered = {name: executor.submit(context.__enter__) for name, context in contexts.items()}
        try:
            yield entered
        finally:
            wait(entered.values())
            done = [context for name, context in contexts.items() if not entered[name].exception()]
            for future in [executor.submit(context.__exit__, None, None, None) for context in done]:
                future.result()


@contextlib.contextmanager
def started_together(contexts: Iterable[AbstractContextManager[T]]) -> Iterator[list[T]]:
    """Enter context managers concurrently, yield their values in order, and exit them concurrently."""
    with entering({str(number): context for number, context in enumerate(contexts)}) as entered:
        yield [future.result() for future in entered.values()]


def each(check: Callable[[T], None], values: Mapping[str, T]) -> None:
    """Run a check for all values concurrently.

    :raises AssertionError: a check has failed; the message names its value.
    """
    with ThreadPoolExecutor(len(values)) as executor:
        running = {name: executor.submit(check, value) for name, value in values.items()}
    for name, future in running.items():
        if error := future.exception():
            raise AssertionError(f"{name}: {error}") from error
