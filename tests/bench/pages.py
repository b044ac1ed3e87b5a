"""Benchmark of page latency during scrapes: ``python -m tests.bench.pages``. It has no assertions.

Stock Flower and flower-proxy serve the cluster of `tests.bench.metrics` one after the other, in separate processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from celery import Celery
from flower.app import Flower

from flower_proxy._flower import flower_settings
from flower_proxy.app import FlowerProxy
from flower_proxy.settings.loader import make_options
from tests.bench.figures import OURS, STOCK
from tests.bench.metrics import ROUNDS, Cluster
from tests.bench.servers import Server
from tests.support.processes import PROJECT, Address, answers, free_port, wait_until

P99_TARGET = 0.050  # seconds
PAGE, SCRAPE = "/tasks", "/metrics"
SCRAPE_INTERVAL = 1.0  # seconds


def serve(kind: str, port: int) -> None:
    """Serve the cluster until standard input ends."""

    async def run() -> None:
        options = make_options(port=port, address="127.0.0.1", no_auth=True)
        capp = Celery(broker="memory://")
        flower = Flower(capp=capp, options=options, **flower_settings)
        process = flower.events.state.event
        if kind == OURS:
            flower = FlowerProxy(capp=capp, options=options)
            process = flower.events.process
        cluster = Cluster(kind, process)
        for _ in range(ROUNDS):
            cluster.run_tasks()
        flower.start_http_server()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        os._exit(0)

    asyncio.run(run())


@contextlib.contextmanager
def served(kind: str) -> Iterator[Server]:
    """Run a process that serves the cluster."""
    address = Address(free_port())
    command = [sys.executable, "-m", "tests.bench.pages", "--serve", kind, "--port", str(address.port)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: answers(address, "/healthcheck"), timeout=120, what="the server responds")
        yield Server(process.pid, address)
        process.communicate()


def ask(connection: http.client.HTTPConnection, path: str, **headers: str) -> float:
    """Send a request; return the seconds until the response is complete."""
    begin = time.perf_counter()
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with connection.getresponse() as response:
        response.read()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}")
    return time.perf_counter() - begin


def measure(address: Address, seconds: float) -> tuple[list[float], list[float]]:
    """Return the durations of pages and scrapes in seconds."""
    pages: list[float] = []
    scrapes: list[float] = []
    end = time.monotonic() + seconds

    def scrape() -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
            while time.monotonic() < end:
                scrapes.append(ask(connection, SCRAPE, Accept_Encoding="gzip"))
                time.sleep(max(0.0, SCRAPE_INTERVAL - scrapes[-1]))

    scraper = threading.Thread(target=scrape)
    scraper.start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
        while time.monotonic() < end:
            pages.append(ask(connection, PAGE))
            # Like a user, who does not request pages without pause
            time.sleep(0.01)
    scraper.join()
    return pages, scrapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="duration of each measurement")
    parser.add_argument("--serve", choices=(STOCK, OURS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.port)
        return
    for kind in (STOCK, OURS):
        with served(kind) as server:
            pages, scrapes = measure(server.address, arguments.seconds)
        p99 = statistics.quantiles(pages, n=100)[98]
        verdict = (
            f" (target {P99_TARGET * 1000:.0f}, {'within' if p99 <= P99_TARGET else 'over'})" if kind == OURS else ""
        )
        print(
            f"{kind}: {len(pages)} pages, median {statistics.median(pages) * 1000:.1f} ms, p99 {p99 * 1000:.1f}"
            f" ms{verdict}, slowest {max(pages) * 1000:.1f} ms; {len(scrapes)} scrapes,"
            f" median {statistics.median(scrapes) * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main()
