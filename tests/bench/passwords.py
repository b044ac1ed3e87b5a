"""Benchmark of hashed against plain passwords: ``python -m tests.bench.passwords``. It has no assertions.

Two instances that differ only in the storage of the password serve 100 requests per second, alternately. Then one
serves health checks while its two threads verify wrong passwords, which must not block the event loop.

``python -m tests.bench.passwords attacks`` measures the response time of failed logins, which must not reveal whether a
user exists, and first logins during a flood of failed logins from one address and from many.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flower_proxy.auth.passwords import hash_password
from tests.bench.cost import HEADERS
from tests.bench.servers import Server
from tests.support.processes import Address, answers, basic, free_port, running
from tests.support.programs import COMMANDS, CREDENTIALS

COST = 12
TARGET = 1.2
RATE, REQUESTS, TURNS = 100, 200, 10
PATH = "/api/workers"
_FLOOD_THREADS = 200


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
    """Return the CPU milliseconds of a request, at `RATE` requests per second."""
    with contextlib.closing(connect(server)) as connection:
        cpu, begin = server.cpu, time.monotonic()
        for number in range(requests):
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
            if ask(connection, PATH, HEADERS) != 200:
                raise RuntimeError(f"{PATH}: authentication failed")
        return (server.cpu - cpu) / requests * 1000


def latency_during_checks(server: Server, checks: int) -> tuple[list[float], float]:
    """Return the duration of each health check meanwhile, and of all password checks, in seconds."""
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
        raise RuntimeError(f"expected status 401, got {statuses}")
    return waits, seconds


# Attacks


def write_users(path: Path, users: Iterable[str]) -> None:
    path.write_text("".join(f"{user}:{hash_password('secret', COST)}\n" for user in users))
    path.chmod(0o600)


def login(server: Server, path: str, credentials: str, client: str) -> tuple[int, float]:
    """Log in; return the status and the duration in seconds."""
    begin = time.monotonic()
    with contextlib.closing(connect(server)) as connection:
        status = ask(connection, path, {**basic(credentials), "X-Forwarded-For": client})
    return status, time.monotonic() - begin


def failed_logins(folder: Path) -> None:
    write_users(folder / "failed-logins", ["hashed"])
    options = ["--basic_auth=plain:secret", f"--auth_file={folder / 'failed-logins'}", "--metrics_auth=scraper:secret"]
    with launched("failed-logins", folder, *options) as server:
        for path in ("/metrics", "/tasks"):
            for user in ("scraper", "plain", "hashed", "unknown"):
                found = [login(server, path, f"{user}:{number}", f"192.0.2.{number}") for number in range(10)]
                statuses = {status for status, _ in found}
                spent = [seconds * 1000 for _, seconds in found]
                print(
                    f"{path}, {user}: failed ({statuses}) in {statistics.median(spent):.0f} ms ({min(spent):.0f} to"
                    f" {max(spent):.0f})"
                )


def flood(folder: Path, flooders: int, rate: float, logins: int = 10) -> None:
    """Log in once per second, each time from a new address, during a flood of failed logins."""
    users = [f"user{number}" for number in range(logins)]
    write_users(folder / "flood", users)
    ended, answered = threading.Event(), Counter[int]()

    def attack(thread: int) -> None:
        # Each thread sends its share of the rate; it sends nothing while it waits for a response
        for number in itertools.count(thread, _FLOOD_THREADS):
            if ended.wait(max(0.0, begin + number / rate - time.monotonic())):
                return
            client = f"198.51.100.{number % flooders}"
            answered[login(server, "/tasks", f"name{number}:guess", client)[0]] += 1

    with (
        launched("flood", folder, f"--auth_file={folder / 'flood'}") as server,
        ThreadPoolExecutor(_FLOOD_THREADS) as attackers,
        ThreadPoolExecutor(logins) as threads,
    ):
        begin = time.monotonic()
        attackers.map(attack, range(_FLOOD_THREADS))
        found = []
        for number, user in enumerate(users):
            ended.wait(3 if number == 0 else 1)
            found.append(threads.submit(login, server, "/tasks", f"{user}:secret", f"203.0.113.{number}"))
        answers = [each.result() for each in found]
        ended.set()
    seconds = [spent for status, spent in answers if status == 200]
    print(
        f"{flooders} flooding addresses, {rate} attempts per second in total, responses {dict(answered)}:"
        f" {len(seconds)} of {logins} first logins succeeded"
        + (f", after {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else ""),
        flush=True,
    )


def attacks() -> None:
    with tempfile.TemporaryDirectory() as name:
        failed_logins(Path(name))
        for flooders, rate in ((1, 13.0), (1, 100.0), (20, 50.0), (200, 50.0)):
            flood(Path(name), flooders, rate)


def main() -> None:
    if sys.argv[1:] == ["attacks"]:
        attacks()
        return
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
            print(f"{kind}: {statistics.median(cpus):.3f} CPU ms/request, at {RATE} requests per second")
        verdict = "within" if statistics.median(ratios) <= TARGET else "over"
        print(
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}), target {TARGET} {verdict}"
        )
        waits, seconds = latency_during_checks(servers["bcrypt"], 20)
        print(
            f"during the check of 20 wrong passwords in {seconds:.2f} s: {len(waits)} health checks, median"
            f" {statistics.median(waits) * 1000:.1f} ms, slowest {max(waits) * 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
