"""Benchmark of scrapes: ``python -m tests.bench.metrics``. It has no assertions.

A hundred workers have run each of fifty tasks. Stock Flower renders the metrics with prometheus_client; flower-proxy
renders and compresses them. They run in separate processes and are scraped alternately. Before each scrape, every
worker runs every task, so that all values change.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

import prometheus_client

from flower_proxy._flower import EventsState, NoMetrics, task_of
from flower_proxy.metrics.exposition import render
from flower_proxy.metrics.recorder import Recorder
from tests.bench.figures import OURS, STOCK, Figure, table
from tests.support.processes import PROJECT

SCRAPE_TARGET, WITH_CELERY_TARGET, MEMORY_TARGET = 0.15, 0.30, 1.00
WIRE_TARGET, WIRE_WITH_CELERY_TARGET = 1.0, 2.0  # MB

WORKERS, TASKS = 100, 50
# Runs of every task on every worker before the first scrape, for values with several digits
ROUNDS = 10
# The settings of flower_proxy.metrics.collector
LEVEL, GZIP = 1, 31
LEVELS = (1, 2, 3, 4, 6, 9)

WITH_CELERY = "ours with celery_*"
KINDS = (STOCK, OURS, WITH_CELERY)

Event = dict[str, Any]


# Measured process


class Cluster:
    """Simulated workers that run tasks, and the metrics of their events.

    :param kind: one of `KINDS`, which provides the metrics.
    :param process: called with each event; by default the cluster has its own state and metrics.
    """

    def __init__(self, kind: str, process: Callable[[Event], object] | None = None) -> None:
        self.state = EventsState()
        self.groups = ("flower", "celery") if kind == WITH_CELERY else ("flower",)
        self.process = process or self.state.event
        self.observe = self._observe_stock if kind == STOCK else self._observe
        if kind != STOCK and process is None:
            self.state.metrics = NoMetrics()
            self.recorder = Recorder(prometheus_client.Histogram.DEFAULT_BUCKETS)
            self.recorder.begin(self.state)
            self.process = self._process
        self.scrape: Callable[[], Iterator[bytes]] = self._stock_scrape if kind == STOCK else self._our_scrape
        self._numbers = itertools.count(1)
        self._random = random.Random(1)
        for worker in range(WORKERS):
            self.process(self._event("worker-heartbeat", worker, active=1, processed=1, freq=2.0))

    def run_tasks(self) -> int:
        """Run every task on every worker.

        :returns: number of events.
        """
        pairs = list(itertools.product(range(WORKERS), range(TASKS)))
        events = [event for worker, task in pairs for event in self._events(worker, task)]
        for event in events:
            self.process(event)
        return len(events)

    def observations(self) -> list[Event]:
        """Return the events of every task on every worker, processed by the state but not by the metrics."""
        events: list[Event] = []
        process, self.process = self.process, events.append
        self.run_tasks()
        self.process = process
        metrics, self.state.metrics = self.state.metrics, NoMetrics()
        for event in events:
            self.state.event(event)
        self.state.metrics = metrics
        return events

    def _process(self, event: Event) -> None:
        self.state.event(event)
        self._observe(event)

    def _observe(self, event: Event) -> None:
        self.recorder.on_event(event)

    def _observe_stock(self, event: Event) -> None:
        self.state.metrics.observe_task(event["hostname"], event, task_of(self.state, event["uuid"]))

    def _events(self, worker: int, task: int) -> Iterator[Event]:
        uuid = f"{next(self._numbers):032x}"
        yield self._event("task-sent", worker, uuid=uuid, name=f"shop.orders.tasks.task_{task}", queue="celery")
        yield self._event("task-received", worker, uuid=uuid, name=f"shop.orders.tasks.task_{task}", eta=None)
        yield self._event("task-started", worker, uuid=uuid)
        yield self._event("task-succeeded", worker, uuid=uuid, runtime=self._random.expovariate(1), result="None")

    def _event(self, kind: str, worker: int, **fields: Any) -> Event:
        now = time.time()
        hostname = "gen1@web" if kind == "task-sent" else f"worker{worker:03}@host{worker % 10}.example.com"
        common = {"type": kind, "hostname": hostname, "timestamp": now, "local_received": now}
        return {**common, "clock": next(self._numbers), **fields}

    def _stock_scrape(self) -> Iterator[bytes]:
        yield prometheus_client.generate_latest()

    def _our_scrape(self) -> Iterator[bytes]:
        return compressed(self.texts(), LEVEL)

    def texts(self) -> Iterator[bytes]:
        families = self.recorder.families(None, groups=self.groups)
        for text in render(families, openmetrics=False):
            yield text.encode()


def compressed(texts: Iterator[bytes], level: int) -> Iterator[bytes]:
    compressor = zlib.compressobj(level, wbits=GZIP)
    for text in texts:
        yield compressor.compress(text)
    yield compressor.flush()


def serve(kind: str) -> None:
    """Scrape for each line of standard input, and print the cost as a line of JSON."""
    cluster = Cluster(kind)
    for _ in range(ROUNDS):
        cluster.run_tasks()
    for _ in sys.stdin:
        begin = time.process_time()
        events = cluster.run_tasks()
        moments, wire = [time.process_time()], 0
        for piece in cluster.scrape():
            moments.append(time.process_time())
            wire += len(piece)
        cpu = moments[-1] - moments[0]
        pause = max(after - before for before, after in pairwise(moments))
        answer = {"event": (moments[0] - begin) / events * 1e6, "cpu": cpu * 1e3, "pause": pause * 1e3, "wire": wire}
        print(json.dumps(answer), flush=True)


def weigh(kind: str) -> None:
    """Print the memory of the metrics in bytes per rendered line."""
    cluster = Cluster(kind)
    observations = cluster.observations()
    # Exclude memory that a scrape allocates permanently
    collections.deque(cluster.scrape(), maxlen=0)
    tracemalloc.start()
    for observation in observations:
        cluster.observe(observation)
    collections.deque(cluster.scrape(), maxlen=0)
    grown, _ = tracemalloc.get_traced_memory()
    text = prometheus_client.generate_latest() if kind == STOCK else b"".join(cluster.texts())
    common = re.compile(rb"^(?:flower|celery)_\w+(?<!_created)\{", re.MULTILINE)
    lines = len(common.findall(text))
    print(json.dumps({"bytes": grown / lines, "lines": lines}))


def compare_levels(kind: str) -> None:
    """Print size and CPU time of each compression level."""
    cluster = Cluster(kind)
    for _ in range(ROUNDS):
        cluster.run_tasks()
    texts = list(cluster.texts())
    for level in LEVELS:
        begin = time.process_time()
        size = sum(map(len, compressed(iter(texts), level)))
        cpu = time.process_time() - begin
        print(f"  level {level}: {size / 1e6:.2f} MB of {sum(map(len, texts)) / 1e6:.1f} MB, {cpu * 1e3:.0f} CPU ms")


PARTS = {"serve": serve, "weigh": weigh, "levels": compare_levels}


# Measuring process


def command(part: str, kind: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.metrics", "--part", part, "--kind", kind]


def output(part: str, kind: str) -> str:
    return subprocess.run(command(part, kind), check=True, cwd=PROJECT, stdout=subprocess.PIPE, text=True).stdout


class Process:
    """Measured process."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            command("serve", kind), cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def scrape(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=60)


@dataclass
class Scrapes:
    """Results of one kind, one value per turn."""

    cpu: list[float] = field(default_factory=list)  # milliseconds
    pause: list[float] = field(default_factory=list)  # milliseconds
    event: list[float] = field(default_factory=list)  # microseconds
    wire: list[float] = field(default_factory=list)  # bytes


def scrape_by_turns(turns: int) -> dict[str, Scrapes]:
    """Scrape the kinds alternately; the first turn is a warm-up."""
    scrapes = {kind: Scrapes() for kind in KINDS}
    with contextlib.ExitStack() as stack:
        processes = {kind: stack.enter_context(contextlib.closing(Process(kind))) for kind in KINDS}
        for turn in range(turns + 1):
            for kind, process in processes.items():
                for name, value in process.scrape().items():
                    if turn:
                        getattr(scrapes[kind], name).append(value)
    return scrapes


def measure_scrapes(turns: int) -> None:
    scrapes = scrape_by_turns(turns)
    stock, ours, with_celery = (scrapes[kind] for kind in KINDS)
    figures = [
        Figure("scrape, CPU ms", SCRAPE_TARGET, {STOCK: stock.cpu, OURS: ours.cpu}),
        Figure("scrape with celery_*, CPU ms", WITH_CELERY_TARGET, {STOCK: stock.cpu, OURS: with_celery.cpu}),
    ]
    print(table(figures))
    for kind, target in ((STOCK, inf), (OURS, WIRE_TARGET), (WITH_CELERY, WIRE_WITH_CELERY_TARGET)):
        found = scrapes[kind]
        wire = max(found.wire) / 1e6
        verdict = f" (target {target}, {'within' if wire <= target else 'over'})" if target < inf else ""
        print(
            f"{kind}: {wire:.2f} MB on the wire{verdict}; at most {max(found.pause):.1f} CPU ms without yielding;"
            f" {median(found.event):.1f} CPU us per event"
        )


def measure_memory() -> None:
    weights = {kind: json.loads(output("weigh", kind)) for kind in KINDS}
    figures = [
        Figure(name, MEMORY_TARGET, {STOCK: [weights[STOCK]["bytes"]], OURS: [weights[kind]["bytes"]]})
        for name, kind in (("memory, bytes/line", OURS), ("memory with celery_*, bytes/line", WITH_CELERY))
    ]
    print(table(figures))
    print(", ".join(f"{kind}: {weight['lines']} lines" for kind, weight in weights.items()))


def measure_levels() -> None:
    for kind in (OURS, WITH_CELERY):
        print(f"{kind}:\n{output('levels', kind)}", end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="number of scrapes of each kind")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](arguments.kind)
        return
    print(f"{WORKERS} workers x {TASKS} tasks; median (min to max)\n")
    measure_scrapes(arguments.turns)
    print("\nMemory of the metrics")
    measure_memory()
    print(f"\nCompression (level in use: {LEVEL})")
    measure_levels()


if __name__ == "__main__":
    main()
