"""Which workers run tasks and send no events about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Worker:
    heard: bool = False
    # How many tasks it had begun, by its heartbeats since a task of its was last heard of
    first: int | None = None
    before_last: int = 0
    last: int = 0


class Unheard:
    """Compares how many tasks a worker says that it has begun, in its heartbeats, with what is heard of tasks.

    Heartbeats come whether ``-E`` is given or not, and whoever runs without it cannot be told otherwise from one that
    has nothing to do, without asking the worker to change something.

    :param most_workers: so many are kept in memory.
    """

    def __init__(self, most_workers: int) -> None:
        self._most_workers = most_workers
        self._workers: dict[str, _Worker] = {}

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in an event."""
        kind = event["type"]
        if kind.startswith("task-"):
            # What is sent comes from who sent it
            if kind != "task-sent":
                worker = self._find(event["hostname"])
                worker.heard, worker.first = True, None
        elif kind == "worker-heartbeat" and (processed := event.get("processed")) is not None:
            worker = self._find(event["hostname"])
            if worker.first is None or processed < worker.last:
                worker.first = worker.last = processed
            worker.before_last, worker.last = worker.last, processed

    def _find(self, name: str) -> _Worker:
        worker = self._workers.get(name)
        if worker is None:
            if len(self._workers) >= self._most_workers:
                del self._workers[next(iter(self._workers))]
            worker = self._workers[name] = _Worker()
        return worker

    def sends_task_events(self, name: str) -> bool | None:
        """Tell whether a worker's tasks are heard of; None as long as it has not run any."""
        worker = self._workers.get(name)
        if worker is None:
            return None
        # Workers hold events of tasks back for a moment, so that the latest heartbeat may have overtaken them
        if worker.first is not None and worker.before_last > worker.first:
            return False
        return True if worker.heard else None
