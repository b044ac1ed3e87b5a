"""Which workers run tasks and send no events about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.utils.functional import LRUCache


@dataclass
class _Count:
    # Of the heartbeats since the worker was last heard to work on a task
    first: int
    before_last: int
    last: int


class Unheard:
    """Compares how many tasks a worker says that it has begun, in its heartbeats, with what is heard of tasks.

    Heartbeats come whether ``-E`` is given or not, and whoever runs without it cannot be told otherwise from one that
    has nothing to do, without asking the worker to change something.

    :param most_workers: so many are kept in memory.
    """

    def __init__(self, most_workers: int) -> None:
        self._heard = LRUCache(limit=most_workers)
        self._counts = LRUCache(limit=most_workers)

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in an event."""
        name, kind = event["hostname"], event["type"]
        if kind == "worker-heartbeat":
            count, processed = self._counts.get(name), event.get("processed")
            if processed is None:
                return
            if count is None or processed < count.last:
                self._counts[name] = _Count(processed, processed, processed)
            else:
                count.before_last, count.last = count.last, processed
        elif kind.startswith("task-") and kind != "task-sent":
            self._heard[name] = True
            self._counts.pop(name, None)

    def sends_task_events(self, worker: str) -> bool | None:
        """Tell whether a worker's tasks are heard of; None as long as it has not run any."""
        count = self._counts.get(worker)
        # Workers hold events of tasks back for a moment, so that the latest heartbeat may have overtaken them
        if count is not None and count.before_last > count.first:
            return False
        return True if worker in self._heard else None
