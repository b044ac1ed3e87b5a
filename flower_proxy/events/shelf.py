"""Files of saved states, in the format of shelve, which a process of its own reads and writes.

Reading and pickling a large state would hold the interpreter lock for seconds, even in a thread. The process is started
by `flower_proxy.events.shelf_process`, and imports neither Celery nor Flower.
"""

from __future__ import annotations

import dbm
import io
import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

from flower_proxy.events.saved_state import Part, SavedState

LENGTH = 4
"""Bytes of the length before each message; a message of length 0 ends a value that consists of several."""

Report = tuple[str, int, str]
"""What went wrong, or an empty string; the number of invalid workers and tasks; the first of these."""


def header(length: int) -> bytes:
    """Return the bytes before a message of this length."""
    return length.to_bytes(LENGTH, "big")


def write(path: str, source: BinaryIO) -> None:
    """Write and sync new files; nothing is written unless all values are complete.

    :param path: in an empty folder.
    :param source: the pickled state, then the pickled counts.
    :raises EOFError: the values are incomplete, because the parent process has ended.
    """
    events, counter = _value(source), _value(source)
    # shelve's format; shelve.open has no parameter for the mode
    with dbm.open(path, "n", 0o600) as database:
        database["events"] = events
        database["counter"] = counter
    folder = os.path.dirname(path) or os.curdir
    for name in os.listdir(folder):
        sync(os.path.join(folder, name))
    sync(folder)


def _value(source: BinaryIO) -> bytes:
    value = io.BytesIO()
    while True:
        head = source.read(LENGTH)
        length = int.from_bytes(head, "big")
        message = source.read(length)
        if len(head) < LENGTH or len(message) < length:
            raise EOFError("the state is incomplete")
        if not message:
            return value.getvalue()
        value.write(message)


def read(path: str, target: BinaryIO) -> Report:
    """Read a saved state, and pass on its `Part` objects as messages.

    :raises Exception: the files cannot be read, or contain no state.
    """

    def send(part: Part) -> None:
        _send(target, part)

    # In read-only mode SQLite leaves its temporary files behind
    with dbm.open(path, "w") as database:
        if not database.keys():
            return "", 0, ""
        events = database[b"events"]
        # Stock Flower may have saved no counts
        counter = pickle.loads(database.get(b"counter") or pickle.dumps({}))  # noqa: S301  only its owner writes it
    saved = SavedState(events, counter, send)
    del events
    saved.read()
    return "", saved.invalid, saved.first_invalid


def _send(target: BinaryIO, message: object) -> None:
    data = pickle.dumps(message)
    target.write(header(len(data)) + data)
    target.flush()


def sync(path: str) -> None:
    """Write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """Return the reason of an error in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def main() -> None:
    """Read or write the files at a path, and report the result as the last message."""
    # Service managers signal all processes; this one ends with its parent, at the end of its input
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    action, path = sys.argv[1:]
    target = sys.stdout.buffer
    report: Any = ("", 0, "")
    try:
        if action == "write":
            write(path, sys.stdin.buffer)
        else:
            report = read(path, target)
    except Exception as error:
        report = (reason_of(error), 0, "")
    try:
        _send(target, report)
    except OSError:
        # The parent process has ended; it alone moves files into place
        os._exit(1)
