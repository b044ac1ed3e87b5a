"""Cache of workers that evicts the one with the oldest event first."""

from __future__ import annotations

from typing import Any

from kombu.utils.functional import LRUCache


class WorkerCache(LRUCache):
    """Least recently used cache of workers by name, where only `touch` and setting a worker count as use.

    In kombu's own cache reading counts as use, so displaying a page would change the order of eviction.

    :param limit: maximum number of workers.
    """

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __delitem__(self, name: str) -> None:
        # Other threads hold the lock while they iterate over the workers
        with self.mutex:
            del self.data[name]

    def touch(self, name: str) -> bool:
        """Mark a worker as the most recent one.

        :returns: whether it exists.
        """
        if next(reversed(self.data), None) == name:
            return True
        with self.mutex:
            if name not in self.data:
                return False
            self.data.move_to_end(name)
            return True
