"""Benchmark of the task search: ``python -m tests.bench.search``. It has no assertions.

Stock Flower's index and flower-proxy's scan answer the same queries about the same tasks, in one process. The times are
CPU times.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Iterator
from statistics import median
from typing import Any

from flower.utils.search import TaskSearchEngine

from flower_proxy.events.search import TaskQuery
from flower_proxy.events.state import State

BAR = 200  # milliseconds a query
TURNS = 5
PAGE = {"limit": 10, "sort_by": "received", "descending": True}
QUERIES: dict[str, dict[str, Any]] = {
    "first page": PAGE,
    "first page, by name": {**PAGE, "sort_by": "name"},
    "first page, by state": {**PAGE, "sort_by": "state", "descending": False},
    "first page, by worker": {**PAGE, "sort_by": "worker"},
    "first page, by UUID": {**PAGE, "sort_by": "uuid"},
    "first page, by arguments": {**PAGE, "sort_by": "args"},
    "first page, by result": {**PAGE, "sort_by": "result"},
    "first page, by runtime": {**PAGE, "sort_by": "runtime"},
    "last page": {**PAGE, "offset": 99_990},
    "word, found": {**PAGE, "query": "user77"},
    "word, not found": {**PAGE, "query": "absent"},
    "state:SUCCESS": {**PAGE, "query": "state:SUCCESS"},
    "name and worker": {**PAGE, "query": "name:tasks.t7 worker:w3@"},
    "args:": {**PAGE, "query": "args:4711"},
    "result:": {**PAGE, "query": "result:4711"},
    "kwargs:user=, in many tasks": {**PAGE, "query": "kwargs:user=77"},
    "kwargs:order=, in one task": {**PAGE, "query": "kwargs:order=x501"},
    "API, type and worker": {"limit": 100, "task_type": "tasks.t7", "worker": "w7@host"},
    "API, all": {},
    "API, all by name": {"sort_by": "name"},
    "API, all by time": {"sort_by": "received", "descending": True},
}


def events(count: int) -> Iterator[dict[str, Any]]:
    """Yield two events for each task, with distinct arguments and results of 400 bytes."""
    for number in range(count):
        at = 1_790_000_000 + number / 1000
        base = {
            "uuid": str(uuid.UUID(int=number * 0x9E3779B97F4A7C15 % 2**128)),
            "hostname": f"w{number % 10}@host",
            "timestamp": at,
            "local_received": at,
            "clock": number,
        }
        task = {"name": f"tasks.t{number % 20}", "args": f"({number},)"}
        yield {**base, **task, "type": "task-received", "kwargs": f"{{'user': {number % 100}, 'order': 'x{number}'}}"}
        result = f"'{number} user{number % 1000}{'x' * 380}'"
        yield {**base, "type": "task-succeeded", "result": result, "runtime": number % 97 / 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    count = parser.parse_args().tasks
    state, engine = State(max_tasks_in_memory=count), TaskSearchEngine()
    for event in events(count):
        state.event(event)
    tasks = state.tasks.data
    engine.rebuild(tasks.items())
    print(f"{'query':30}{'stock, ms':>12}{'ours, ms':>12}{'longest step':>14}{'bar':>6}")
    for name, conditions in QUERIES.items():
        stock, ours, steps = list[float](), list[float](), list[float]()
        for _ in range(TURNS):
            started = time.process_time()
            expected = engine.search(tasks, **conditions)
            stock.append(time.process_time() - started)
            elapsed, page = scan(list(tasks.values()), conditions)
            ours.append(sum(elapsed))
            steps.append(max(elapsed))
            if page != expected:
                raise SystemExit(f"{name}: the results differ")
        milliseconds = median(ours) * 1000
        verdict = "within" if milliseconds <= BAR else "over"
        print(f"{name:30}{median(stock) * 1000:12.0f}{milliseconds:12.0f}{max(steps) * 1000:14.1f}{BAR:6} {verdict}")


def scan(tasks: list[Any], conditions: dict[str, Any]) -> tuple[list[float], Any]:
    """Return the duration of each step in seconds, and the result."""
    work, elapsed = TaskQuery(**conditions).search(tasks), list[float]()
    while True:
        started = time.process_time()
        try:
            next(work)
        except StopIteration as stop:
            return [*elapsed, time.process_time() - started], stop.value
        elapsed.append(time.process_time() - started)


if __name__ == "__main__":
    main()
