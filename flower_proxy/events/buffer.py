"""Buffer of messages between the thread that receives them and the event loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from kombu import Message

Raw: TypeAlias = "bytes | str | Message"
"""A message that is not decoded."""

Decode = Callable[[Any], object]
"""Returns the body of a message: an event, a list of events, or anything else that a client has sent."""

# Of the objects that hold a message, so that many small messages do not exceed the limit by far
_OVERHEAD = 200  # bytes


class Waiting(NamedTuple):
    """A message that waits.

    :ivar decode: decodes it; raises any exception if it is invalid.
    :ivar received: time of its arrival, in seconds since the epoch.
    """

    decode: Decode
    raw: Raw
    received: float


class EventBuffer:
    """Messages in order of arrival. Thread-safe.

    :param max_size: maximum size of all messages in bytes; further messages are dropped.
    :ivar dropped: number of events in dropped messages.
    """

    def __init__(self, max_size: int) -> None:
        self.dropped = 0
        self._max_size = max_size
        self._size = 0
        self._messages: deque[Waiting] = deque()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def put(self, decode: Decode, messages: Iterable[Raw]) -> None:
        """Append messages that have arrived now; drop those that exceed the limit."""
        now = time.time()
        excess = []
        with self._lock:
            for raw in messages:
                size = _size(raw)
                if self._size + size > self._max_size:
                    excess.append(raw)
                    continue
                self._size += size
                self._messages.append(Waiting(decode, raw, now))
        for raw in excess:
            self.dropped += _count(decode, raw)

    def pop(self) -> Waiting | None:
        """Remove and return the oldest message; None if there is none."""
        with self._lock:
            if not self._messages:
                return None
            waiting = self._messages.popleft()
            self._size -= _size(waiting.raw)
            return waiting


def _size(raw: Raw) -> int:
    return _OVERHEAD + len(raw if isinstance(raw, (bytes, str)) else raw.body or b"")


def _count(decode: Decode, raw: Raw) -> int:
    try:
        body = decode(raw)
    except Exception:
        return 0
    return len(body) if isinstance(body, list) else 1
