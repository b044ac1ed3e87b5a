"""Benchmark of flower-proxy against stock Flower: ``python -m tests.bench.cost``. It has no assertions.

Both servers are measured alternately, so that the load of the machine affects both. CPU time is more reliable than
elapsed time: it includes all threads of the server, but neither the client nor waiting for a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

from celery import Celery

from tests.bench.figures import OURS, STOCK, Figure, table
from tests.bench.servers import Server
from tests.support.processes import Address, answers, basic, free_port, running, tail, wait_until
from tests.support.programs import COMMANDS, CREDENTIALS, Broker, Flower, redis, worker

START_TARGET, REQUEST_TARGET, MEMORY_TARGET = 1.15, 1.10, 1.15

PREFIX = "/flower"
OPTIONS = [f"--url_prefix={PREFIX.strip('/')}", f"--basic_auth={CREDENTIALS}"]

# Sent by a browser and a reverse proxy
HEADERS = {
    **basic(CREDENTIALS),
    "Accept": "*/*",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0",
    "Sec-Fetch-Site": "same-origin",
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "flower.example.com",
    "X-Forwarded-Prefix": PREFIX,
}

# Small in comparison with the time of a start
POLL_INTERVAL = 0.002  # seconds
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Request:
    """Request below the prefix; a POST if it has a body."""

    path: str
    body: str | None = None


def tasks_data(search: str = "") -> Request:
    """Return the request of the tasks page for its table, with the parameters of DataTables."""
    names = "name,uuid,state,args,kwargs,result,received,started,runtime,worker,retries,revoked,exception,expires,eta"
    parameters = {"draw": "1", "start": "0", "length": "15", "search[value]": search, "search[regex]": "false"}
    parameters |= {"order[0][column]": "6", "order[0][dir]": "desc"}
    for number, name in enumerate(names.split(",")):
        column = {"data": name, "name": "", "searchable": "true", "orderable": "true"}
        parameters |= {f"columns[{number}][{key}]": value for key, value in column.items()}
        parameters |= {f"columns[{number}][search][value]": "", f"columns[{number}][search][regex]": "false"}
    return Request("/tasks/datatable", urlencode(parameters))


REQUESTS = {
    "page /": Request("/"),
    "page /tasks": Request("/tasks"),
    "static flower.js": Request("/static/js/flower.js"),
    "static bootstrap.min.css": Request("/static/css/bootstrap.min.css"),
    "tasks data": tasks_data(),
}


# The servers


@contextlib.contextmanager
def started(kind: str, broker: Broker, folder: Path) -> Iterator[Server]:
    """Start a server, and wait for its first response."""
    address = Address(free_port())
    command = [sys.executable, *COMMANDS[kind], f"--port={address.port}", "--address=127.0.0.1", *OPTIONS]
    # Enable byte code for both, as for installed packages
    byte_code = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "byte-code")}
    log = folder / f"{kind}.log"
    with running(command, log=log, ready=lambda: True, env={**broker.environment, **byte_code}) as process:
        await_response(process, address, log)
        yield Server(process.pid, address)


def await_worker(server: Server) -> None:
    flower = Flower(server.address, PREFIX)
    wait_until(lambda: any(found.get("status") for found in flower.workers()), what="the worker is online")


def await_response(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    """Wait for the first response; the time is measured, so the interval is shorter than that of `wait_until`."""
    deadline = time.monotonic() + TIMEOUT
    while not answers(address, f"{PREFIX}/healthcheck"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_INTERVAL)
        if process.returncode is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no response\n{tail(log)}")


class Client:
    """HTTP client with a persistent connection and cookies."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=TIMEOUT)
        self._cookies: SimpleCookie = SimpleCookie()

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: Request) -> bytes:
        method = "GET" if request.body is None else "POST"
        self._connection.request(method, PREFIX + request.path, body=request.body, headers=self._headers(request))
        with self._connection.getresponse() as response:
            content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{request.path}: {response.status} {content[:200]!r}")
        for line in response.headers.get_all("Set-Cookie", []):
            self._cookies.load(line)
        return content

    def await_tasks(self, number: int) -> None:
        wait_until(lambda: self._succeeded_tasks() >= number, what=f"{number} tasks have succeeded")

    def _succeeded_tasks(self) -> int:
        return int(json.loads(self.ask(tasks_data("state:SUCCESS")))["recordsFiltered"])

    def _headers(self, request: Request) -> dict[str, str]:
        headers = dict(HEADERS)
        if request.body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded; charset=UTF-8"
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={morsel.value}" for name, morsel in self._cookies.items())
        return headers


@contextlib.contextmanager
def side_by_side(broker: Broker, folder: Path) -> Iterator[dict[str, Client]]:
    """Run both servers on the same broker and worker."""
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(started(kind, broker, folder)) for kind in (STOCK, OURS)}
        for server in servers.values():
            await_worker(server)
        yield {kind: stack.enter_context(contextlib.closing(Client(server))) for kind, server in servers.items()}


def run_tasks(broker: Broker, clients: Mapping[str, Client], number: int) -> None:
    """Run tasks, and wait until both servers have received their events."""
    with Celery(broker=broker.url) as app:
        for count in range(number):
            app.send_task("server.add", (count, count), ignore_result=True)
    for client in clients.values():
        client.await_tasks(number)


# The measurements


def write_byte_code(broker: Broker, folder: Path) -> None:
    """Start both once: compiling takes time and memory."""
    for kind in (STOCK, OURS):
        with started(kind, broker, folder):
            pass


def measure_starts(broker: Broker, folder: Path, *, turns: int) -> list[Figure]:
    """Start both alternately."""
    clock = Figure("start to first response, s", START_TARGET)
    cpu = Figure("start to first response, CPU s", START_TARGET)
    memory = Figure("memory after start, MiB", MEMORY_TARGET)
    for _ in range(turns):
        for kind in (STOCK, OURS):
            begin = time.perf_counter()
            with started(kind, broker, folder) as server:
                clock.values[kind].append(time.perf_counter() - begin)
                cpu.values[kind].append(server.cpu)
                # The inspections at the start have finished then
                await_worker(server)
                memory.values[kind].append(server.memory)
    return [clock, cpu, memory]


def measure_requests(clients: Mapping[str, Client], *, turns: int, requests: int) -> list[Figure]:
    """Send the same requests to both, in alternating blocks; the first turn is a warm-up."""
    cpu = {name: Figure(f"{name}, CPU ms", REQUEST_TARGET) for name in REQUESTS}
    clock = {name: Figure(f"{name}, ms", REQUEST_TARGET) for name in REQUESTS}
    memory = Figure("memory after requests, MiB", MEMORY_TARGET)
    for turn in range(turns + 1):
        for name, request in REQUESTS.items():
            # Alternate the order, since the first server affects the measurement of the second
            for kind, client in sorted(clients.items(), reverse=turn % 2 == 0):
                milliseconds, cpu_milliseconds = measure_block(client, request, requests)
                if turn:
                    clock[name].values[kind].append(milliseconds)
                    cpu[name].values[kind].append(cpu_milliseconds)
    for kind, client in clients.items():
        memory.values[kind].append(client.server.memory)
    return [*cpu.values(), *clock.values(), memory]


def measure_block(client: Client, request: Request, requests: int) -> tuple[float, float]:
    """Return the elapsed time and the server's CPU time of one request, in milliseconds."""
    begin, cpu_begin = time.perf_counter(), client.server.cpu
    for _ in range(requests):
        client.ask(request)
    cpu_end, end = client.server.cpu, time.perf_counter()
    return (end - begin) / requests * 1000, (cpu_end - cpu_begin) / requests * 1000


def measure(*, starts: int, turns: int, requests: int, tasks: int) -> Iterator[list[Figure]]:
    """Yield the figures of each measurement."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redis(folder) as broker, worker(broker, folder):
            write_byte_code(broker, folder)
            if starts:
                yield measure_starts(broker, folder, turns=starts)
            if turns:
                with side_by_side(broker, folder) as clients:
                    run_tasks(broker, clients, tasks)
                    yield measure_requests(clients, turns=turns, requests=requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--starts", type=int, default=8, help="number of starts of each server; 0 skips them")
    parser.add_argument("--turns", type=int, default=20, help="turns of requests; 0 skips them")
    parser.add_argument("--requests", type=int, default=50, help="requests of each kind per turn")
    parser.add_argument("--tasks", type=int, default=1000, help="number of tasks in memory")
    arguments = parser.parse_args()
    print("median (min to max)")
    for figures in measure(**vars(arguments)):
        print(f"\n{table(figures)}", flush=True)


if __name__ == "__main__":
    main()
