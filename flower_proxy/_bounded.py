"""A mapping that never outgrows its limit."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """Keeps at most `limit` entries: the oldest is dropped first.

    :param limit: maximum number of entries.

    Only `put` and `touch` change the order and respect the limit.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def put(self, key: K, value: V) -> None:
        """Set an entry and make it the newest one."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.limit:
            self.popitem(last=False)

    def touch(self, key: K) -> bool:
        """Make an entry the newest one, if it exists.

        :returns: whether it does.
        """
        if key not in self:
            return False
        self.move_to_end(key)
        return True
