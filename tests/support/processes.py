"""Start a real program on loopback, wait until it is ready, and stop it for sure."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tornado.httputil import HTTPHeaders

PROJECT = Path(__file__).resolve().parents[2]

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where a program listens: a TCP port on loopback or a unix socket."""

    port: int = 0
    socket_path: Path | None = None
    tls: bool = False

    def __str__(self) -> str:
        """As nginx writes it after ``http://``."""
        return f"unix:{self.socket_path}" if self.socket_path else f"127.0.0.1:{self.port}"

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect, from this address of loopback's."""
        if self.socket_path is None:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))
            # some proxies look for the certificate by that name
            return tls_context().wrap_socket(connection, server_hostname="localhost") if self.tls else connection
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        try:
            connection.connect(str(self.socket_path))
        except OSError:
            connection.close()
            raise
        return connection

    def accepts(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


def tls_context() -> ssl.SSLContext:
    """What makes no fuss about a certificate that signs itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()


def _own_ports() -> Iterator[int]:
    """Yield the ports of this pytest-xdist worker's range in turn, so that none is given away twice in a short time."""
    size = 1000
    first = 16_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16 * size
    # Another run of the tests on the same machine begins elsewhere
    yield from (first + number % size for number in itertools.count(random.randrange(size)))


_PORTS = _own_ports()


def free_port() -> int:
    """Return a port for a server, which may be restarted there: no client uses it as its own end meanwhile.

    Linux gives clients ports from 32768 on; a client that connects to a closed port of that range may even reach itself.
    """
    for port in itertools.islice(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def program(name: str) -> str:
    """The path of an installed program."""
    # Debian keeps nginx where only root's PATH looks
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def request(
    address: Address,
    path: str,
    *,
    method: str = "GET",
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """One request, sent as it is written: nothing is normalised and no redirect is followed."""
    connection = http.client.HTTPConnection("localhost", address.port or None, timeout=10)
    connection.sock = address.connect(source)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=dict(headers or {}))
        with connection.getresponse() as response:
            return Answer(response.status, HTTPHeaders(dict(response.getheaders())), response.read())


def basic(credentials: str) -> dict[str, str]:
    """The header that carries ``user:password``."""
    return {"Authorization": "Basic " + b64encode(credentials.encode()).decode()}


def answers(address: Address, path: str, *, status: int = 200) -> bool:
    try:
        return request(address, path).status == status
    except (OSError, http.client.HTTPException):
        return False


def wait_until(condition: Callable[[], T], *, timeout: float = 30, what: str) -> T:
    """Ask again and again until `condition` gives something true, and return that. The only place that waits."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}")
        pause.wait(0.05)
    return result


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    ready: Callable[[], object],
    env: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
    timeout: float = 60,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends; the block begins when `ready` says so."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        try:
            wait_until(lambda: process.poll() is not None or ready(), timeout=timeout, what=f"ready: {command}")
            if process.poll() is not None:
                raise ChildProcessError(f"ended with status {process.returncode}: {command}")
        except (TimeoutError, ChildProcessError) as error:
            raise RuntimeError(f"{error}\n{tail(log)}") from None
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask politely, then end whatever is left of its process group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def leftovers(folder: Path) -> list[str]:
    """What is in the folder, and the processes that were told to use it."""
    found = [str(path) for path in folder.iterdir()]
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in environment.read_bytes():
                found.append(environment.with_name("cmdline").read_text())
    return found


def nothing_is_left(folder: Path) -> None:
    wait_until(lambda: not leftovers(folder), what=f"nothing is left: {leftovers(folder)}")


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
