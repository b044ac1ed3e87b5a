"""A dictionary with a maximum size."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dictionary of at most `limit` entries; the oldest is dropped first.

    Only `put` and `touch` update the order and enforce the limit.

    :param limit: maximum number of entries.
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

        :returns: whether it exists.
        """
        if key not in self:
            return False
        self.move_to_end(key)
        return True
