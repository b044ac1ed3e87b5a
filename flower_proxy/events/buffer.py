"""Buffer of messages between the thread that receives them and the event loop."""

from __future__ import annotations

import marshal
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from kombu import Message

Raw: TypeAlias = "bytes | str | Message"
"""A message that is not decoded."""

Decode = Callable[[Any], object]
"""Returns the body of a message: an event, a list of events, or anything else that a client has sent."""

# Of the objects that hold a message, so that many small messages do not exceed the limit by far
_OVERHEAD = 200  # bytes


class Batch(NamedTuple):
    """Messages that have arrived together.

    :ivar decode: decodes each of them; raises any exception if it is invalid.
    :ivar messages: a sequence of `Raw`.
    :ivar received: time of their arrival, in seconds since the epoch.
    """

    decode: Decode
    messages: Any
    received: float


class EventBuffer:
    """Messages in order of arrival. Thread-safe.

    From a quarter of the limit on, messages are compressed to about an eighth, which takes 2 µs for each.

    :param max_size: maximum size of all messages in bytes; further messages are dropped.
    :ivar dropped: number of events in dropped messages.
    """

    def __init__(self, max_size: int) -> None:
        self.dropped = 0
        self._max_size = max_size
        self._size = 0
        # With the size of each, and whether it is compressed
        self._batches: deque[tuple[Batch, int, bool]] = deque()
        self._lock = threading.Lock()

    def put(self, decode: Decode, messages: Sequence[Raw]) -> None:
        """Append messages that have arrived now; drop those that exceed the limit."""
        now = time.time()
        if self._size > self._max_size / 4 and messages and isinstance(messages[0], (bytes, str)):
            data = zlib.compress(marshal.dumps(list(messages)), 1)
            is_kept = self._append(Batch(decode, data, now), _OVERHEAD + len(data), is_compressed=True)
            kept = len(messages) if is_kept else 0
        else:
            kept, size = self._fitting(messages)
            if not (kept and self._append(Batch(decode, messages[:kept], now), size, is_compressed=False)):
                kept = 0
        for raw in messages[kept:]:
            self.dropped += _count(decode, raw)

    def _fitting(self, messages: Sequence[Raw]) -> tuple[int, int]:
        """Return how many messages fit, and their size."""
        total, remaining = 0, self._max_size - self._size
        for number, raw in enumerate(messages):
            size = _OVERHEAD + len(raw if isinstance(raw, (bytes, str)) else raw.body or b"")
            if total + size > remaining:
                return number, total
            total += size
        return len(messages), total

    def _append(self, batch: Batch, size: int, *, is_compressed: bool) -> bool:
        """Append messages, if they fit.

        :returns: whether they fit.
        """
        with self._lock:
            if self._size + size > self._max_size:
                return False
            self._size += size
            self._batches.append((batch, size, is_compressed))
            return True

    def pop(self) -> Batch | None:
        """Remove and return the oldest messages; None if there are none."""
        with self._lock:
            if not self._batches:
                return None
            batch, size, is_compressed = self._batches.popleft()
            self._size -= size
        if is_compressed:
            return batch._replace(messages=marshal.loads(zlib.decompress(batch.messages)))  # noqa: S302
        return batch


def _count(decode: Decode, raw: Raw) -> int:
    try:
        body = decode(raw)
    except Exception:
        return 0
    return len(body) if isinstance(body, list) else 1
