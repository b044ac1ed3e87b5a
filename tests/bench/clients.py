"""Benchmark of hostile clients: ``python -m tests.bench.clients``. It has no assertions.

Stock Flower and flower-proxy run in separate processes and serve the same clients. Memory is the increase of the peak.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from tornado.httputil import HTTPHeaders

from flower_proxy.proxy.headers import ForwardedHeaderError, read_forwarded
from tests.bench.figures import OURS, STOCK
from tests.bench.pages import served
from tests.bench.servers import Server
from tests.support.processes import Address, answers, free_port, program, running
from tests.support.programs import COMMANDS

DESCRIPTORS = 1024
IDLE = 1104
BODIES, BODY = 20, 15_000_000
READERS = SCRAPES = 50
MEMORY = 1024 * 1024
# Bytes of headers, up to Tornado's limit
SIZES = (7_500, 15_000, 30_000, 60_000)
TIMEOUT = 10.0  # seconds

HOSTILE: dict[str, Callable[[int], str]] = {
    "Forwarded": lambda size: "a=1;" + " " * size + "!",
    "X-Forwarded-For": lambda size: "127.0.0.1," * (size // 10),
    "X-Forwarded-Prefix": lambda size: "/a" * (size // 2),
    "Accept": lambda size: "a/b;q=," * (size // 7),
    "Accept-Encoding": lambda size: "gzip;q=," * (size // 8),
    "Authorization": lambda size: "Basic " + "A" * size,
    "Cookie": lambda size: 'a="\\\\1' * (size // 6),
    "Origin": lambda size: "http://" + ":" * size,
    "Referer": lambda size: "http://[" + ":" * size,
    "Host": lambda size: ":" * size,
}


def head(path: str, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"{name}: {value}" for name, value in {"Host": "localhost", **(headers or {})}.items()]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def seconds_of(address: Address, request: bytes) -> float:
    """Return the seconds until the first byte of the response, `TIMEOUT` if there is none."""
    begin = time.perf_counter()
    with contextlib.suppress(OSError), contextlib.closing(address.connect()) as connection:
        connection.settimeout(TIMEOUT)
        connection.sendall(request)
        connection.recv(1)
    return time.perf_counter() - begin


def growth(name: str, times: list[float]) -> str:
    factors = " ".join(f"{later / earlier:5.2f}" for earlier, later in pairwise(times))
    return f"  {name:<30}{' '.join(f'{1000 * one:9.3f}' for one in times)} ms; growth {factors}"


@contextlib.contextmanager
def limited(kind: str, folder: Path) -> Iterator[tuple[Server, Path]]:
    """Run a Flower with a limit of `DESCRIPTORS` file descriptors; yield it and its log."""
    address, log = Address(free_port()), folder / f"{kind}.log"
    command = [*COMMANDS[kind], "--address=127.0.0.1", f"--port={address.port}"]
    if kind == OURS:
        command.append("--no_auth")
    shell = [program("sh"), "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "-", sys.executable, *command]
    environment = {"CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}
    with running(shell, log=log, ready=lambda: answers(address, "/healthcheck"), env=environment) as process:
        yield Server(process.pid, address), log


def measure_headers(server: Server) -> None:
    for name, value in HOSTILE.items():
        times: list[float] = []
        for size in SIZES:
            request = head("/", {name: value(size)})
            times.append(
                min(seconds_of(server.address, request) for _ in range(3 if not times or times[-1] < 1 else 1))
            )
        print(growth(name, times), flush=True)


def measure_parser() -> None:
    times: list[float] = []
    for size in (64_000, 128_000, 256_000, 512_000):
        headers = HTTPHeaders({"Forwarded": "a=1;" + " " * size + "!"})
        begin = time.perf_counter()
        with contextlib.suppress(ForwardedHeaderError):
            read_forwarded(headers)
        times.append(time.perf_counter() - begin)
    print(growth("Forwarded, parser only", times))


def measure_idle_connections(server: Server, log: Path) -> None:
    with contextlib.ExitStack() as stack:
        size, lines = log.stat().st_size, len(log.read_text().splitlines())
        for _ in range(IDLE):
            with contextlib.suppress(OSError):
                stack.callback(server.address.connect().close)
        waited = seconds_of(server.address, head("/healthcheck"))
        cpu, begin = server.cpu, time.perf_counter()
        time.sleep(5)
        share = (server.cpu - cpu) / (time.perf_counter() - begin)
        size, lines = log.stat().st_size - size, len(log.read_text().splitlines()) - lines
    answered = "no response" if waited >= TIMEOUT else f"response in {1000 * waited:.1f} ms"
    print(f"  {IDLE} idle connections: {answered}; log +{lines} lines, {size} bytes; CPU {share:.1%}", flush=True)


class Peak:
    """Increase of a server's peak memory over its current memory."""

    def __init__(self, server: Server) -> None:
        self._status = Path(f"/proc/{server.pid}/status")
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
        self._before = self._read("VmRSS:")

    def _read(self, name: str) -> int:
        return int(self._status.read_text().partition(name)[2].split()[0])

    def __str__(self) -> str:
        return f"{(self._read('VmHWM:') - self._before) / 1024:.0f} MiB"


def small(address: Address) -> socket.socket:
    """Connect with a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(300)
    connection.connect(("127.0.0.1", address.port))
    return connection


def measure_bodies(server: Server) -> None:
    peak, piece = Peak(server), bytes(65536)
    with contextlib.ExitStack() as stack:
        for _ in range(BODIES):
            connection = stack.enter_context(contextlib.closing(server.address.connect()))
            with contextlib.suppress(OSError):
                connection.sendall(
                    b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (BODY + 1)
                )
                for _ in range(BODY // len(piece)):
                    connection.sendall(piece)
        answers(server.address, "/healthcheck")
        print(f"  {BODIES} unfinished bodies of {BODY // 1_000_000} MB: {peak}", flush=True)


def measure_readers(server: Server, path: str) -> None:
    peak = Peak(server)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(small(server.address))) for _ in range(READERS)]
        for connection in connections:
            connection.sendall(head(path))
        for connection in connections:
            # Wait for the start of each response
            connection.recv(1, socket.MSG_PEEK)
        print(f"  {READERS} clients that do not read {path}: {peak}", flush=True)


def measure_scrapes(server: Server, encoding: str) -> None:
    peak, begin = Peak(server), time.perf_counter()

    def scrape(_: int) -> int:
        with contextlib.closing(server.address.connect()) as connection:
            connection.settimeout(300)
            connection.sendall(head("/metrics", {"Connection": "close", "Accept-Encoding": encoding}))
            size = 0
            while received := connection.recv(1 << 20):
                size += len(received)
            return size

    with ThreadPoolExecutor(SCRAPES) as pool:
        sizes = list(pool.map(scrape, range(SCRAPES)))
    seconds = time.perf_counter() - begin
    print(
        f"  {SCRAPES} concurrent scrapes of {max(sizes) / 1e6:.1f} MB ({encoding}): {peak}, {seconds:.1f} s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=(STOCK, OURS), default=[STOCK, OURS])
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    measure_parser()
    for kind in arguments.kinds:
        print(f"{kind}, headers of {', '.join(map(str, SIZES))} bytes", flush=True)
        with tempfile.TemporaryDirectory() as folder, limited(kind, Path(folder)) as (server, log):
            measure_headers(server)
            measure_idle_connections(server, log)
        with served(kind) as server:
            measure_bodies(server)
            for path in ("/static/css/bootstrap.min.css", "/tasks", "/metrics"):
                measure_readers(server, path)
            for encoding in ("gzip", "identity"):
                measure_scrapes(server, encoding)


if __name__ == "__main__":
    main()
