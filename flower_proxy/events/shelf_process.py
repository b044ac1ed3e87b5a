"""The process that reads and writes the files of saved states."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterable

import flower_proxy
from flower_proxy.events.saved_state import Part
from flower_proxy.events.shelf import LENGTH, Report, header

# Its own search path comes first, without the current folder, whose modules could replace those of Python
_PROGRAM = """\
import sys
sys.path[:] = [*sys.path[1:], *sys.argv.pop(1).splitlines()]
from flower_proxy.events.shelf import main
main()
"""


class ShelfError(Exception):
    """The files cannot be read or written; the message is the reason, in one line."""


async def write(path: str, parts: Iterable[tuple[bytes, bool]]) -> None:
    """Write new files, while the event loop runs.

    :param path: in an empty folder.
    :param parts: as returned by `flower_proxy.events.snapshot.snapshot`; each is computed in the event loop.
    :raises ShelfError: writing failed.
    """
    # In the folder, which it keeps open: it cannot write to another one that a new process puts there, after a crash
    folder, name = os.path.split(path)
    async with _running("write", name, folder) as process:
        assert process.stdin is not None
        # If the process has ended, its report has the reason
        with contextlib.suppress(ConnectionError):
            for part, is_last in parts:
                process.stdin.write(header(len(part)) + part + (header(0) if is_last else b""))
                await process.stdin.drain()
                # Without waiting, if the pipe has space
                await asyncio.sleep(0)
        await _next(process)


async def read(path: str, on_part: Callable[[Part], None]) -> Report:
    """Read a saved state, while the event loop runs.

    :param on_part: called with each part, in the event loop.
    :raises ShelfError: reading failed; some parts may have been read.
    """
    async with _running("read", path) as process:
        while isinstance(message := await _next(process), Part):
            on_part(message)
            # Without waiting, if the next part has arrived
            await asyncio.sleep(0)
        return message


@contextlib.asynccontextmanager
async def _running(action: str, path: str, folder: str | None = None) -> AsyncIterator[Process]:
    own = os.path.dirname(os.path.dirname(flower_proxy.__file__))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, "\n".join([own, *sys.path]), action, path),
        stdin=PIPE,
        stdout=PIPE,
        cwd=folder,
        # Ctrl-C signals all processes of the terminal's foreground group
        start_new_session=True,
    )
    try:
        yield process
    except ShelfError:
        # It has ended, or is about to: kill() would reap it before the event loop does, which logs that as a warning
        raise
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    finally:
        assert process.stdin is not None
        process.stdin.close()
        # Until the end of its output, so that the event loop closes the pipes
        await process.communicate()


async def _next(process: Process) -> Part | Report:
    """Return the next message of the process."""
    assert process.stdout is not None
    try:
        length = int.from_bytes(await process.stdout.readexactly(LENGTH), "big")
        data = await process.stdout.readexactly(length)
    except asyncio.IncompleteReadError:
        raise ShelfError(f"the process that accesses it ended with status {await process.wait()}") from None
    message: Part | Report = pickle.loads(data)  # noqa: S301  from our own process
    if not isinstance(message, Part) and message[0]:
        raise ShelfError(message[0])
    return message
