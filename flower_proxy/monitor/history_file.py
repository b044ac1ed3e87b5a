"""The file that keeps a history across restarts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import sys
import zlib
from array import array
from typing import Any

from flower_proxy.events.shelf import sync
from flower_proxy.monitor.history import Mark, Saved, SavedSeries

VERSION = 1
_MAGIC = b"flower-proxy history"
# Magic, version, length of the index in the uncompressed data, checksum of the compressed data
_HEADER = struct.Struct("<20sHI32s")
_COMPRESSION = 1
# The limits of a history allow for 8 MB
_MAX_SIZE = 64 * 10**6


class HistoryFileError(ValueError):
    """The file contains no history; the message is the reason, in one line."""


def encode(saved: Saved) -> bytes:
    """Return the content of a file."""
    index, data = _index(saved)
    compressed = zlib.compress(index + data, _COMPRESSION)
    return _HEADER.pack(_MAGIC, VERSION, len(index), hashlib.sha256(compressed).digest()) + compressed


def decode(content: bytes) -> Saved:
    """Return the history of a file.

    :raises HistoryFileError: it is truncated, corrupt, or has a newer version.
    """
    try:
        magic, version, length, checksum = _HEADER.unpack_from(content)
    except struct.error:
        raise HistoryFileError("it is truncated") from None
    if magic != _MAGIC:
        raise HistoryFileError("it is not a history of flower-proxy")
    if version != VERSION:
        raise HistoryFileError(f"it has version {version}, this flower-proxy reads version {VERSION}")
    compressed = content[_HEADER.size :]
    if hashlib.sha256(compressed).digest() != checksum:
        raise HistoryFileError("its checksum is wrong")
    try:
        data = zlib.decompressobj().decompress(compressed, _MAX_SIZE)
        return _saved(json.loads(data[:length]), memoryview(data)[length:])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise HistoryFileError(f"it is malformed: {error}") from None


def _index(saved: Saved) -> tuple[bytes, bytes]:
    index = {
        "slot": saved.slot,
        "latest": saved.latest,
        "began": saved.began,
        "marks": [(mark.time, mark.kind, mark.number) for mark in saved.marks],
        "series": [
            (one.kind, one.name, one.active_at, [(name, column.typecode) for name, column in one.columns.items()])
            for one in saved.series
        ],
    }
    columns = [column for one in saved.series for column in one.columns.values()]
    return json.dumps(index).encode(), b"".join(_little_endian(column).tobytes() for column in columns)


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


def _saved(index: dict[str, Any], data: memoryview) -> Saved:
    series = []
    for kind, name, active_at, columns in index["series"]:
        arrays: dict[str, array[int]] = {}
        for column, typecode in columns:
            if typecode not in ("B", "H", "I", "Q"):
                raise ValueError(f"type {typecode!r}")
            numbers = array(typecode)
            size = Saved.slots * numbers.itemsize
            numbers.frombytes(data[:size])
            if len(numbers) != Saved.slots:
                raise ValueError("a column is too short")
            arrays[str(column)], data = _little_endian(numbers), data[size:]
        series.append(SavedSeries(str(kind), str(name), int(active_at), arrays))
    return Saved(
        slot=int(index["slot"]),
        latest=[int(number) for number in index["latest"]],
        began=float(index["began"]),
        marks=[Mark(float(time), str(kind), int(number)) for time, kind, number in index["marks"]],
        series=series,
    )


def read(path: str) -> Saved | None:
    """Return the history of a file; None if there is none.

    :raises HistoryFileError: it contains no history.
    :raises OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_SIZE)
    except FileNotFoundError:
        return None
    return decode(content)


def write(path: str, content: bytes) -> None:
    """Replace a file, so that it is complete even if the process is killed.

    :raises OSError: it cannot be written.
    """
    temporary = f"{path}.saving"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    # Names of tasks and queues are private, and another user may have put a link in its place
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(os.path.dirname(path))


def move_aside(path: str) -> None:
    """Rename a file, with the suffix ``.corrupt``."""
    os.replace(path, f"{path}.corrupt")
