"""Benchmark of short-lived workers: ``python -m tests.bench.churn``. It has no assertions.

It simulates a week of pods, each a worker with a new name, and then a purge. Each case runs the application in a
separate process, without network.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from flower_proxy.app import FlowerProxy
from flower_proxy.settings.loader import make_options
from tests.support.churn import HEARTBEAT, Churn, scraped

MAX_WORKERS, PURGE, SHORT_LIVED = 500, 3, 6000
HEADINGS = f"{'':>14} {'workers':>8} {'lines':>8} {'scrape, MB':>11} {'RSS, MB':>8} {'CPU us/event':>16}"


def resident() -> float:
    """Return the resident memory of this process, in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(name: str, app: FlowerProxy, cpu: float) -> None:
    """Print a line below `HEADINGS`.

    :param cpu: microseconds of CPU time per event.
    """
    text = scraped(app)
    lines, size, workers = text.count("\n"), len(text) / 1e6, text.count("\nflower_worker_online{")
    del text
    print(f"{name:>14} {workers:>8} {lines:>8} {size:>11.2f} {resident():>8.1f} {cpu:>16.1f}", flush=True)


def run(app: FlowerProxy, churn: Churn, workers: int) -> float:
    """Start and stop workers, with a purge after each hundred.

    :returns: microseconds of CPU time per event, including purges.
    """
    begin, sent = time.process_time(), churn.sent
    for _ in range(workers // 100):
        churn.run(100)
        app.forget_workers()
    return (time.process_time() - begin) / (churn.sent - sent) * 1e6


def week(names: int) -> None:
    """Simulate a week with `names` new workers per day, and twenty permanent ones."""
    app = application(max_workers=MAX_WORKERS)
    churn = Churn(app.events.dispatcher.dispatch, steady=20)
    print(f"{names} new workers per day, --max_workers={MAX_WORKERS}\n{HEADINGS}")
    for day in range(1, 8):
        report(f"day {day}", app, run(app, churn, names))


def purge(names: int) -> None:
    """Simulate concurrent short-lived workers, before and after a purge."""
    app = application(max_workers=MAX_WORKERS, purge_offline_workers=PURGE)
    print(f"{names} workers, --max_workers={MAX_WORKERS} --purge_offline_workers={PURGE}\n{HEADINGS}")
    report("at the start", app, 0.0)
    report("at once", app, run(app, Churn(app.events.dispatcher.dispatch, tasks=1), names))
    time.sleep(2 * HEARTBEAT + PURGE)
    app.forget_workers()
    report("purged", app, 0.0)


def application(**settings: Any) -> FlowerProxy:
    logging.disable()
    options = make_options(no_auth=True, max_tasks=1000, **settings)
    return FlowerProxy(capp=Celery(broker="memory://"), options=options)


def case(name: str, names: int) -> None:
    async def go() -> None:
        {"week": week, "purge": purge}[name](names)

    asyncio.run(go())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--names", type=int, default=5000, help="new workers per day")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name, names in (("week", arguments.names), ("purge", SHORT_LIVED)):
        process = context.Process(target=case, args=(name, names))
        process.start()
        process.join()
        print()


if __name__ == "__main__":
    main()
