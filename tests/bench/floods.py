"""Measurements of a server that receives events at a constant rate.

The server runs alone, with a broker of its own; each turn starts it anew. The flood comes from another process, which
has prepared all messages. A measurement ends when the server has counted all events, or no further ones.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles

from celery import Celery
from celery.events import EventDispatcher

from tests.bench.figures import OURS, STOCK
from tests.bench.generator import WARM_UP, Flood
from tests.bench.servers import Server
from tests.support.processes import PROJECT, Address, answers, free_port, request, running, wait_until
from tests.support.programs import Broker

FAST = "fast"
EXTRA = ("hiredis", "orjson", "brotli")
has_extra = all(map(find_spec, EXTRA[:2]))

PAGE = "/tasks"
_PAGE_INTERVAL = 0.02  # seconds
_POLL_INTERVAL = 0.5  # seconds
# Stock Flower answers only between its events
_TIMEOUT = 300.0  # seconds
_STABLE = 4.0  # seconds without a further event


@dataclass
class Result:
    """Result of one turn.

    :ivar cpu: microseconds of CPU time per event.
    :ivar lost: number of events that were not counted.
    :ivar dropped: number of these that flower-proxy reports as dropped.
    :ivar memory: MB after the last event.
    :ivar rate: events per second that the generator has reached.
    :ivar pages: durations of pages in milliseconds.
    """

    cpu: float
    lost: int
    dropped: int
    memory: float
    rate: float
    pages: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """The 99th percentile of `pages`."""
        return quantiles(self.pages, n=100)[98] if len(self.pages) > 1 else float("nan")


def measure(
    kind: str,
    broker: Broker,
    folder: Path,
    flood: Flood,
    *,
    options: Sequence[str] = (),
    pages: bool = False,
    slower: float = 0,
) -> Result:
    """Measure one turn.

    :param kind: `STOCK`, `OURS`, or `FAST` for flower-proxy with the packages of its extra ``fast``.
    :param options: further options of both servers.
    :param pages: whether a client requests pages.
    :param slower: additional microseconds per event in flower-proxy.
    """
    with generator(broker, flood) as process, launched(kind, broker, folder, options, slower) as server:
        await_subscription(server, broker)
        counted, cpu = settled(server), server.cpu
        with polled(server, enabled=pages) as durations:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            sent = json.loads(process.stdout.readline())
            received = await_events(server, counted + flood.events) - counted
        cpu = server.cpu - cpu
        return Result(
            cpu=cpu / max(1, received) * 1e6,
            lost=flood.events - received,
            dropped=int(total(server, "flower_proxy_events_dropped_total")),
            memory=server.memory * 1.048576,
            rate=sent["rate"],
            pages=durations,
        )


@contextlib.contextmanager
def generator(broker: Broker, flood: Flood) -> Iterator[subprocess.Popen[str]]:
    """Run a generator, which sends the flood after it has read a line."""
    command = [sys.executable, "-m", "tests.bench.generator", broker.url]
    command += [f"--{name}={value}" for name, value in asdict(flood).items()]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the generator has failed")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def launched(
    kind: str, broker: Broker, folder: Path, options: Sequence[str] = (), slower: float = 0
) -> Iterator[Server]:
    """Run a server without authentication."""
    address = Address(free_port())
    name = STOCK if kind == STOCK else OURS
    command = [sys.executable, "-m", "tests.bench.launcher", name, f"--slower={slower}"]
    if kind != FAST:
        command += ["--without", *EXTRA]
    command += [f"--port={address.port}", "--address=127.0.0.1", "--logging=warning", *options]
    if kind != STOCK:
        command.append("--no_auth")
    log = folder / f"{kind}.log"
    with running(command, log=log, ready=lambda: answers(address, "/healthcheck"), env=broker.environment) as process:
        yield Server(process.pid, address)


def total(server: Server, name: str, label: str = "") -> float:
    """Return the sum of a metric; -1 if the server does not answer.

    :param label: text in the labels of the series.
    """
    try:
        text = request(server.address, "/metrics").text
    except (OSError, http.client.HTTPException):
        return -1
    series = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")) and label in line)
    return sum(float(line.rpartition(" ")[2]) for line in series)


def events_counted(server: Server) -> int:
    """Return the number of task events in the server's metrics."""
    return int(total(server, "flower_events_total", 'type="task-'))


def await_subscription(server: Server, broker: Broker) -> None:
    """Send events until the server receives one."""
    with (
        Celery(broker=broker.url) as capp,
        capp.connection() as connection,
        EventDispatcher(connection, app=capp, hostname=WARM_UP) as dispatcher,
    ):

        def is_counted() -> bool:
            dispatcher.send("task-received", uuid=WARM_UP, name=WARM_UP)
            return events_counted(server) > 0

        wait_until(is_counted, what="the server receives events")


def settled(server: Server) -> int:
    """Return the number of counted events when no further ones arrive."""
    return await_events(server, sys.maxsize, stable=1.0)


def await_events(server: Server, expected: int, *, stable: float = _STABLE) -> int:
    """Return the number of counted events when it is as expected, or has not increased for `stable` seconds."""
    pause, counted, changed = threading.Event(), -1, time.monotonic()
    deadline = changed + _TIMEOUT
    while counted < expected and time.monotonic() < min(deadline, changed + stable):
        pause.wait(_POLL_INTERVAL)
        found = events_counted(server)
        # While a server does not answer, its time does not count
        if found != counted:
            counted, changed = max(found, counted), time.monotonic()
    return counted


@contextlib.contextmanager
def polled(server: Server, *, enabled: bool) -> Iterator[list[float]]:
    """Request pages meanwhile; yield the list of their durations in milliseconds."""
    durations: list[float] = []
    if not enabled:
        yield durations
        return
    ended = threading.Event()

    def poll() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=60)
        with contextlib.closing(connection):
            while not ended.wait(_PAGE_INTERVAL):
                begin = time.perf_counter()
                connection.request("GET", PAGE)
                with connection.getresponse() as response:
                    response.read()
                durations.append((time.perf_counter() - begin) * 1000)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield durations
    finally:
        ended.set()
        thread.join()
