"""Counters after the tasks of real workers."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from tests.bench.floods import launched
from tests.support.processes import request, wait_until
from tests.support.programs import Broker, Flower, worker_process
from tests.support.tasks import EVENTS, counted_events, send_tasks

PROCESSES = 4
_STABLE = 5.0  # seconds
_POLL_INTERVAL = 0.5  # seconds


def measure(broker: Broker, folder: Path, kind: str, tasks: int) -> float:
    """Run short tasks on a worker with four processes.

    :returns: the difference between the counters and the number of tasks, summed over the types of events.
    """
    options = ["-c", str(PROCESSES), "--prefetch-multiplier", "16"]
    with launched(kind, broker, folder) as server, worker_process(broker, folder, options=options):
        wait_until(lambda: "worker" in request(server.address, "/metrics").text, what="the worker's heartbeat")
        send_tasks(broker, tasks)
        counted = settled(Flower(server.address, ""), tasks)
    return float(sum(abs(tasks - counted[kind]) for kind in EVENTS))


def settled(flower: Flower, tasks: int) -> Counter[str]:
    """Return the counters when they equal the number of tasks, or have not changed for some seconds."""
    pause, counted, unchanged = threading.Event(), Counter[str](), 0.0
    while unchanged < _STABLE and any(counted[kind] < tasks for kind in EVENTS):
        pause.wait(_POLL_INTERVAL)
        found = counted_events(flower)
        unchanged = unchanged + _POLL_INTERVAL if found == counted else 0.0
        counted = found
    return counted
