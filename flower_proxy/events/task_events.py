"""Comparison of the task events of workers with their heartbeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_proxy._bounded import BoundedDict
from flower_proxy.events.missed import Incident, Starts


@dataclass(slots=True)
class _Worker:
    has_sent: bool = False
    # Tasks processed, according to the heartbeats since its latest task event
    first: int | None = None
    before_last: int = 0
    last: int = 0
    starts: Starts = field(default_factory=Starts)


class TaskEvents:
    """Compares the number of processed tasks in a worker's heartbeats with the task events received from it.

    A worker without ``-E`` sends heartbeats, too, so its other events do not distinguish it from an idle worker.

    :param max_workers: maximum number of workers in memory.
    :param incident: logs missed tasks.
    :ivar total_missed: number of missed tasks of all workers, including forgotten ones.
    """

    def __init__(self, max_workers: int, incident: Incident | None = None) -> None:
        self._workers: BoundedDict[str, _Worker] = BoundedDict(max_workers)
        self._incident = incident or Incident()
        self.total_missed = 0

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Process an event; see `flower_proxy.events.listener.Listener`."""
        kind = event["type"]
        if kind.startswith("task-"):
            # The sender of task-sent is a client
            if kind != "task-sent":
                worker = self._find(event["hostname"])
                worker.has_sent, worker.first = True, None
                worker.starts.heard = True
                if kind == "task-started":
                    worker.starts.on_start(event.get("clock"))
        elif kind == "worker-heartbeat" and (processed := event.get("processed")) is not None:
            self._on_heartbeat(event["hostname"], int(processed), event.get("clock"))

    def _on_heartbeat(self, name: str, processed: int, clock: float | None) -> None:
        worker = self._find(name)
        if worker.first is None or processed < worker.last:
            worker.first = worker.last = processed
        worker.before_last, worker.last = worker.last, processed
        if missed := worker.starts.on_heartbeat(processed, clock):
            self.total_missed += missed
            self._incident.add(name, missed)
        self._incident.log()

    def _find(self, name: str) -> _Worker:
        worker = self._workers.get(name)
        if worker is None:
            self._workers.put(name, worker := _Worker())
        else:
            self._workers.move_to_end(name)
        return worker

    def forget(self, names: Iterable[str]) -> None:
        """Forget workers until their next event."""
        for name in names:
            self._workers.pop(name, None)

    def sends_task_events(self, name: str) -> bool | None:
        """Return whether a worker sends task events; None if unknown, because it has not run a task."""
        worker = self._workers.get(name)
        if worker is None:
            return None
        # Workers buffer task events briefly, so the latest heartbeat may have overtaken them
        if worker.first is not None and worker.before_last > worker.first:
            return False
        return True if worker.has_sent else None

    def missed(self, name: str) -> int:
        """Return the number of a worker's tasks whose events did not arrive."""
        worker = self._workers.get(name)
        return worker.starts.missed if worker else 0
