"""Benchmark of the Monitor page: ``python -m tests.bench.history``. It has no assertions.

Memory is that of a day with events of all types in every slot, by tracemalloc; times are CPU times, except the one from
sending a task of a few milliseconds until an open page shows that it has ended.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

from flower_proxy.monitor.history import History
from flower_proxy.monitor.history_file import encode
from flower_proxy.monitor.report import Report, parse_query
from flower_proxy.monitor.series import EVENTS, RANGES
from flower_proxy.web.static import packaged_overrides
from tests.support.browser import chromium
from tests.support.monitor_page import MonitorPage
from tests.support.processes import wait_until
from tests.support.programs import Broker, launch, redis, worker
from tests.support.tasks import send_tasks

START = 1_800_000_000.0
EVENTS_TIMED = 300_000
# Task names, workers, queues, and the bar in MB
SIZES = {(200, 100, 50): 8.0, (30, 10, 5): 1.5}
PER_SLOT = 40
BUSY_SLOT = 5000
FRESH_TASKS = 30
SECONDS = 600
TYPES = [f"task-{event}" for event in EVENTS]


class Day:
    """A history and its clock.

    :param names: numbers of task names, workers and queues.
    """

    def __init__(self, names: tuple[int, int, int]) -> None:
        self.names = names
        self.history = History()
        self.now = START
        self.random = random.Random(1)
        self.close_slot()

    def close_slot(self) -> None:
        self.now += RANGES[0].step
        self.history.advance(self.now, self.now, is_covered=True)

    def run_tasks(self, number: int) -> None:
        self.count(self.tasks(number))

    def tasks(self, number: int) -> list[tuple[list[str], float, float]]:
        """Return the labels, run time and wait of some tasks."""
        kinds = list(zip(("shop.tasks", "worker@host", "queue"), self.names, strict=True))
        return [
            (
                [f"{kind}.{self.random.randrange(names - 1)}" for kind, names in kinds],
                self.random.expovariate(0.2),
                self.random.expovariate(2),
            )
            for _ in range(number)
        ]

    def count(self, tasks: list[tuple[list[str], float, float]]) -> None:
        for labels, runtime, wait in tasks:
            for kind in TYPES:
                self.history.count(kind, *labels)
            self.history.observe_runtime(runtime, *labels)
            self.history.observe_wait(wait, *labels)

    def second(self, tasks: list[tuple[list[str], float, float]]) -> None:
        """Do all that the history does in a second."""
        self.count(tasks)
        self.now += 1
        self.history.advance(self.now, self.now, is_covered=True)
        self.measure()
        self.digest()

    def digest(self) -> None:
        for _ in self.history.digest():
            pass

    def measure(self) -> None:
        _, workers, queues = self.names
        executing = {f"worker@host.{number}": 2 for number in range(workers - 1)}
        self.history.measure(executing, {f"queue.{number}": number for number in range(queues - 1)})


def milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1000


def share(names: tuple[int, int, int]) -> float:
    """Return the percentage of a core at 1,000 events per second."""
    day, spent = Day(names), 0.0
    for _ in range(SECONDS):
        tasks = day.tasks(1000 // len(TYPES))
        begin = time.process_time()
        day.second(tasks)
        spent += time.process_time() - begin
    return 100 * spent / SECONDS


def memory(names: tuple[int, int, int]) -> tuple[float, Day]:
    """Return the MB of a day's history."""
    tracemalloc.start()
    day = Day(names)
    for slot in range(24 * 720):
        if slot % 8 == 0:
            day.run_tasks(PER_SLOT)
            day.measure()
        day.close_slot()
        day.digest()
    used = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    return used, day


def freshness() -> list[float]:
    """Return the seconds from sending a short task until an open page shows its end."""
    with (
        tempfile.TemporaryDirectory() as name,
        redis(Path(name)) as broker,
        worker(broker, Path(name)),
        launch("ours", broker, Path(name) / "flower") as flower,
        chromium(Path(name)) as browser,
    ):
        page = MonitorPage(browser, flower)
        page.show_table()
        return [seconds_until_shown(page, broker) for _ in range(FRESH_TASKS)]


def seconds_until_shown(page: MonitorPage, broker: Broker) -> float:
    """Send a task at a random moment between two polls."""
    time.sleep(random.uniform(0, RANGES[0].step))
    expected, sent = page.counts("succeeded") + 1, time.monotonic()
    send_tasks(broker, 1)
    wait_until(lambda: page.counts("succeeded") == expected, what="the task on the page")
    return time.monotonic() - sent


def main() -> None:
    def show(what: str, number: float, unit: str, bar: float | None = None) -> None:
        print(f"{what:56} {number:10.2f} {unit:4}" + (f" (bar {bar:g})" if bar else ""), flush=True)

    history = Day((200, 100, 50)).history

    def count() -> None:
        for _ in range(EVENTS_TIMED):
            history.count("task-succeeded", "a", "w", "q")

    def end() -> None:
        for _ in range(EVENTS_TIMED):
            history.count("task-succeeded", "a", "w", "q")
            history.observe_runtime(0.1, "a", "w", "q")

    show("an event", milliseconds(count) / EVENTS_TIMED * 1000, "us", 3)
    show("an end with its run time", milliseconds(end) / EVENTS_TIMED * 1000, "us", 3)
    show("1,000 events/s, largest history", share(next(iter(SIZES))), "% ", 1)
    for names, bar in SIZES.items():
        used, day = memory(names)
        show(f"memory, {names[0]} task names, {names[1]} workers, {names[2]} queues", used, "MB", bar)
        longest = digested = 0.0
        # As many as until the longest slot ends
        for _ in range(RANGES[-1].step // RANGES[0].step):
            day.run_tasks(BUSY_SLOT)
            day.measure()
            longest = max(longest, milliseconds(day.close_slot))
            digested = max(digested, milliseconds(day.digest))
        show("  end of a slot, the longest of 120", longest, "ms", 20)
        show("  its sums and quantiles, in slices of 5 ms", digested, "ms")
        saved = day.history.save()
        show("  copy to save", milliseconds(day.history.save), "ms", 20)
        show("  file", len(encode(saved)) / 1000, "KB")
    page = json.dumps(Report(day.history, parse_query({"range": "15m"})).json()).encode()
    scripts = b"".join((packaged_overrides() / name).read_bytes() for name in ("js/charts.js", "js/monitor.js"))
    style = (packaged_overrides() / "css" / "monitor.css").read_bytes()
    show(
        "first view beyond other pages, gzip",
        sum(len(gzip.compress(part)) for part in (page, scripts, style)) / 1000,
        "KB",
        30,
    )
    cursor = Report(day.history, parse_query({})).json()["cursor"]
    poll = json.dumps(Report(day.history, parse_query({"since": cursor})).json()).encode()
    show("poll, gzip", len(gzip.compress(poll)) / 1000, "KB", 1)
    seconds = freshness()
    show(f"a task on an open page, median of {FRESH_TASKS}", median(seconds), "s")
    show("  longest", max(seconds), "s", 6)


if __name__ == "__main__":
    main()
