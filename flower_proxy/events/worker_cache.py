"""The workers in memory, of which the least recently heard is evicted first."""

from __future__ import annotations

from typing import Any

from kombu.utils.functional import LRUCache


class WorkerCache(LRUCache):
    """Keeps at most `limit` workers by name; only `touch` and setting a worker change their order.

    Kombu's own counts reading as use, so that showing a page would decide which worker is evicted next.

    :param limit: maximum number of workers.
    """

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __delitem__(self, name: str) -> None:
        # Other threads iterate over the workers and hold the lock meanwhile
        with self.mutex:
            del self.data[name]

    def touch(self, name: str) -> bool:
        """Make a worker the most recently heard one, if it exists.

        :returns: whether it does.
        """
        with self.mutex:
            if name not in self.data:
                return False
            self.data.move_to_end(name)
            return True

    def __reduce__(self) -> tuple[Any, ...]:
        # As kombu's own, so that Flower can load what was saved here
        return LRUCache, (self.limit,), self.__getstate__()
