"""What hashed passwords cost beside plain ones, in one run: ``python -m tests.bench.passwords``. It asserts nothing.

Two launchers that differ in nothing but how the password is given are asked 100 times a second, by turns. Then one is
asked for its health while its two threads check wrong passwords: the event loop must go on meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from flower_proxy.credentials import hash_password
from tests.bench.cost import HEADERS, Server
from tests.support.processes import Address, answers, basic, free_port, running
from tests.support.programs import COMMANDS, CREDENTIALS

COST = 12
TARGET = 1.2
RATE, REQUESTS, TURNS = 100, 200, 10
PATH = "/api/workers"


@contextlib.contextmanager
def launched(name: str, folder: Path, *options: str) -> Iterator[Server]:
    address = Address(free_port())
    command = [sys.executable, *COMMANDS["ours"], f"--port={address.port}", "--address=127.0.0.1", *options]
    broker = {"CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}
    with running(
        command, log=folder / f"{name}.log", ready=lambda: answers(address, "/healthcheck"), env=broker
    ) as process:
        yield Server(process.pid, address)


def ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> int:
    connection.request("GET", path, headers=headers)
    with connection.getresponse() as response:
        response.read()
    return response.status


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=60)


def cpu_of_paced_requests(server: Server, requests: int) -> float:
    """The CPU milliseconds of one request, at `RATE` of them a second."""
    with contextlib.closing(connect(server)) as connection:
        cpu, begin = server.cpu, time.monotonic()
        for number in range(requests):
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
            if ask(connection, PATH, HEADERS) != 200:
                raise RuntimeError("not let in")
        return (server.cpu - cpu) / requests * 1000


def waits_during_checks(server: Server, checks: int) -> tuple[list[float], float]:
    """The seconds that each answer about its health took meanwhile, and that all the checks took."""
    statuses: list[int] = []

    def try_wrong(number: int) -> None:
        with contextlib.closing(connect(server)) as connection:
            statuses.append(ask(connection, PATH, basic(f"user{number}:wrong")))

    threads = [threading.Thread(target=try_wrong, args=(number,)) for number in range(checks)]
    waits, begin = [], time.monotonic()
    for thread in threads:
        thread.start()
    with contextlib.closing(connect(server)) as connection:
        while any(thread.is_alive() for thread in threads):
            asked = time.monotonic()
            ask(connection, "/healthcheck", {})
            waits.append(time.monotonic() - asked)
    seconds = time.monotonic() - begin
    if set(statuses) != {401}:
        raise RuntimeError(f"answered {statuses}")
    return waits, seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        user, _, password = CREDENTIALS.partition(":")
        (folder / "htpasswd").write_text(f"{user}:{hash_password(password, COST)}\n")
        (folder / "htpasswd").chmod(0o600)
        servers = {
            "plain": stack.enter_context(launched("plain", folder, f"--basic_auth={CREDENTIALS}")),
            "bcrypt": stack.enter_context(launched("bcrypt", folder, f"--auth_file={folder / 'htpasswd'}")),
        }
        begin = time.monotonic()
        cpu_of_paced_requests(servers["bcrypt"], 1)
        print(f"first request with a hash of cost {COST}: {time.monotonic() - begin:.3f} s")
        values: dict[str, list[float]] = {kind: [] for kind in servers}
        for turn in range(TURNS + 1):
            for kind, server in servers.items():
                cpu = cpu_of_paced_requests(server, REQUESTS)
                if turn:
                    values[kind].append(cpu)
        ratios = [hashed / plain for hashed, plain in zip(values["bcrypt"], values["plain"], strict=True)]
        for kind, cpus in values.items():
            print(f"{kind}: {statistics.median(cpus):.3f} CPU ms a request, at {RATE} a second")
        verdict = "within" if statistics.median(ratios) <= TARGET else "over"
        print(
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}), target {TARGET} {verdict}"
        )
        waits, seconds = waits_during_checks(servers["bcrypt"], 20)
        print(
            f"while 20 wrong passwords were checked in {seconds:.2f} s: {len(waits)} answers about its health, median"
            f" {statistics.median(waits) * 1000:.1f} ms, slowest {max(waits) * 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
