"""Handling of SIGINT, SIGTERM and SIGHUP."""

# The entry point imports this module first, so slow imports are deferred
from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as reported by shells."""


def exit_on_interrupt() -> None:
    """Exit immediately on SIGINT, with status `INTERRUPTED`, unless SIGINT is ignored.

    Python prints a KeyboardInterrupt raised inside an import or a destructor, and may continue.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def _exit(*_: Any) -> None:
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT in the block, for code that restores the terminal."""
    before = signal.getsignal(signal.SIGINT)
    if before is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is _exit:
            signal.signal(signal.SIGINT, _exit)


def end_requested(*, exit_on_second: bool) -> asyncio.Event:
    """Return an event that SIGINT, SIGTERM and SIGHUP set in the running event loop.

    SIGHUP stays ignored under nohup. The handlers stay installed until the process exits.

    :param exit_on_second: whether SIGINT after one of these signals exits immediately.
    """
    import asyncio

    loop, requested, seen = asyncio.get_running_loop(), asyncio.Event(), False

    def handle(number: int, _: Any) -> None:
        nonlocal seen
        # The event is set only when the event loop runs
        if seen and exit_on_second and number == signal.SIGINT:
            _exit()
        seen = True
        with contextlib.suppress(RuntimeError):  # the event loop is closed during shutdown
            loop.call_soon_threadsafe(requested.set)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
    return requested
