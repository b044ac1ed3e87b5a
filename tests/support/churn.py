"""Simulated events of a cluster whose workers are short-lived, each with a new name."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from flower_proxy.app import FlowerProxy
from flower_proxy.metrics.exposition import render

Event = dict[str, Any]

HEARTBEAT = 2.0  # seconds


class Churn:
    """Sends the events of steady and of short-lived workers.

    :param process: is called with each event.
    :param steady: number of workers that send a heartbeat after every `heartbeat_every` others.
    :param tasks: number of tasks that a short-lived worker runs.
    """

    def __init__(
        self, process: Callable[[Event], object], *, steady: int = 0, heartbeat_every: int = 100, tasks: int = 3
    ) -> None:
        self.steady = [f"steady{number}@host" for number in range(steady)]
        self.sent = 0
        self._process, self._heartbeat_every, self._tasks = process, heartbeat_every, tasks
        self._workers, self._uuids = itertools.count(), itertools.count()

    def run(self, workers: int) -> None:
        """Start and stop a number of new workers; every second one stops without a worker-offline event."""
        for number in itertools.islice(self._workers, workers):
            if number % self._heartbeat_every == 0:
                for name in self.steady:
                    self._send("worker-heartbeat", name, active=0, processed=0)
            name = f"celery@pod-{number}"
            self._send("worker-online", name)
            self._send("worker-heartbeat", name, active=0, processed=0)
            for _ in range(self._tasks):
                self._run_task(name)
            if number % 2:
                self._send("worker-offline", name)

    def _run_task(self, name: str) -> None:
        number = next(self._uuids)
        uuid, task = f"{number:032x}", f"tasks.task{number % 10}"
        self._send("task-sent", f"gen{number}@web", uuid=uuid, name=task, queue="celery")
        self._send("task-received", name, uuid=uuid, name=task, eta=None)
        self._send("task-started", name, uuid=uuid)
        self._send("task-succeeded", name, uuid=uuid, runtime=0.25, result="None")

    def _send(self, kind: str, sender: str, **fields: Any) -> None:
        self.sent += 1
        now = time.time()
        base = {
            "hostname": sender,
            "timestamp": now,
            "local_received": now,
            "utcoffset": 0,
            "pid": 1,
            "freq": HEARTBEAT,
        }
        self._process({"type": kind, "clock": self.sent, **base, **fields})


def scraped(app: FlowerProxy) -> str:
    """Return the metrics of tasks, workers and queues in the text format."""
    return "".join(render(app.monitor.families(), openmetrics=False))
