"""A bounded queue that serves clients round robin."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue that takes one item of each client in turn (round robin), in FIFO order per client.

    :param per_client: maximum number of items of one client.
    :param total: maximum number of items of all clients.

    A full queue drops the last item of the client with the most items to make room for another client. If no client
    has at least two items more than that one, the new item is rejected instead.
    """

    def __init__(self, per_client: int, total: int) -> None:
        self._per_client = per_client
        self._total = total
        # In the order of service
        self._queues: dict[str, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, item: T) -> T | None:
        """Append an item.

        :returns: the rejected or dropped item; None if there was room.
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
