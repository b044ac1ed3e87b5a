"""Signals that end the program."""

# The entry point imports this module before anything else, so it imports nothing that takes time
from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as shells report it."""


def exit_on_interrupt() -> None:
    """End the process at once on SIGINT, with status `INTERRUPTED`, unless SIGINT is ignored.

    Where KeyboardInterrupt is raised inside an import or a destructor, Python prints it, and may go on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def _exit(*_: Any) -> None:
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT in the block, for code that has to restore the terminal."""
    before = signal.getsignal(signal.SIGINT)
    if before is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is _exit:
            signal.signal(signal.SIGINT, _exit)


def end_requested(*, exit_on_second: bool) -> asyncio.Event:
    """Return an event of the running event loop that SIGINT, SIGTERM and SIGHUP set.

    SIGHUP stays ignored if it was ignored at the start, as nohup does. The handlers stay until the process ends.

    :param exit_on_second: whether a SIGINT after one of these signals ends the process at once.
    """
    import asyncio

    loop, requested, seen = asyncio.get_running_loop(), asyncio.Event(), False

    def handle(number: int, _: Any) -> None:
        nonlocal seen
        # Not the event, which is not set before the event loop turns
        if seen and exit_on_second and number == signal.SIGINT:
            _exit()
        seen = True
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the end has come already
            loop.call_soon_threadsafe(requested.set)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
    return requested
