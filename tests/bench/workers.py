"""Counters after the tasks of real workers."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from celery import Celery

from tests.bench.floods import launched
from tests.bench.servers import Server
from tests.support.processes import request, wait_until
from tests.support.programs import Broker, worker_process

PROCESSES = 4
KINDS = ("task-received", "task-started", "task-succeeded")
_STABLE = 5.0  # seconds
_POLL_INTERVAL = 0.5  # seconds


def measure(broker: Broker, folder: Path, kind: str, tasks: int) -> float:
    """Run short tasks on a worker with four processes.

    :returns: the difference between the counters and the number of tasks, summed over received, started and succeeded.
    """
    options = ["-c", str(PROCESSES), "--prefetch-multiplier", "16"]
    with launched(kind, broker, folder) as server, worker_process(broker, folder, options=options):
        wait_until(lambda: "worker" in request(server.address, "/metrics").text, what="the worker's heartbeat")
        with Celery(broker=broker.url) as app, app.connection() as connection, connection.Producer() as producer:
            for number in range(tasks):
                app.send_task("server.add", (number, number), ignore_result=True, producer=producer)
        counted = settled(server, tasks)
    return float(sum(abs(tasks - counted[name]) for name in KINDS))


def settled(server: Server, tasks: int) -> Counter[str]:
    """Return the counters when they equal the number of tasks, or have not changed for some seconds."""
    pause, counted, unchanged = threading.Event(), Counter[str](), 0.0
    while unchanged < _STABLE and any(counted[kind] < tasks for kind in KINDS):
        pause.wait(_POLL_INTERVAL)
        found = counters(server)
        unchanged = unchanged + _POLL_INTERVAL if found == counted else 0.0
        counted = found
    return counted


def counters(server: Server) -> Counter[str]:
    """Return the number of events by type."""
    counted = Counter[str]()
    for line in request(server.address, "/metrics").text.splitlines():
        if line.startswith("flower_events_total{"):
            labels, _, value = line.rpartition(" ")
            counted[labels.partition('type="')[2].partition('"')[0]] += int(float(value))
    return counted
