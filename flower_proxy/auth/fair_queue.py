"""A bounded queue that serves clients in turn."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue from which each client gets one item in turn (round robin), first in, first out for each.

    :param per_client: maximum number of items of one client.
    :param total: maximum number of items of all clients.

    A full queue makes room for a new client at the cost of the client with the longest queue. If no client has two
    items more than the new one, the new item is refused: clients that have waited keep their place.
    """

    def __init__(self, per_client: int, total: int) -> None:
        self._per_client = per_client
        self._total = total
        # The client that is served next comes first
        self._queues: dict[str, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, item: T) -> T | None:
        """Append an item.

        :returns: the item that is not queued: this one, or one that lost its place to it; None if there was room.
        """
        own = len(self._queues.get(client, ()))
        if own >= self._per_client:
            return item
        dropped = None
        if self._length >= self._total:
            longest = max(self._queues.values(), key=len)
            if len(longest) < own + 2:
                return item
            dropped = longest.pop()
            self._length -= 1
        self._queues.setdefault(client, deque()).append(item)
        self._length += 1
        return dropped

    def pop(self) -> T:
        """Remove and return the next item.

        :raises LookupError: the queue is empty.
        """
        if not self._queues:
            raise LookupError("the queue is empty")
        client = next(iter(self._queues))
        queue = self._queues.pop(client)
        self._length -= 1
        item = queue.popleft()
        if queue:
            self._queues[client] = queue
        return item
