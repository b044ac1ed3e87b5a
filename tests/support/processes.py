"""Programs that tests start on loopback, and HTTP requests to them."""

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
    """The address of a server: a TCP port on loopback or a unix socket."""

    port: int = 0
    socket_path: Path | None = None
    tls: bool = False

    def __str__(self) -> str:
        """Format it as in nginx's ``proxy_pass http://...``."""
        return f"unix:{self.socket_path}" if self.socket_path else f"127.0.0.1:{self.port}"

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect from this loopback address."""
        if self.socket_path is None:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))
            # Some proxies select the certificate by SNI
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
    """Return a context that accepts self-signed certificates."""
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
    """Yield the ports of this pytest-xdist worker's range in turn, so that none is assigned twice in a short time."""
    size = 1000
    first = 16_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16 * size
    # Another run of the tests on the same machine starts at another port
    yield from (first + number % size for number in itertools.count(random.randrange(size)))


_PORTS = _own_ports()


def free_port() -> int:
    """Return a port for a server that may restart: one below Linux's ephemeral ports, which start at 32768.

    Meanwhile, no client is assigned the port, nor can one connect to itself there.
    """
    for port in itertools.islice(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def program(name: str) -> str:
    """Return the path of an installed program."""
    # Debian installs nginx in /usr/sbin, which is only on root's PATH
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
    """Send one request without normalizing its path, and return the response without following redirects."""
    connection = http.client.HTTPConnection("localhost", address.port or None, timeout=10)
    connection.sock = address.connect(source)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=dict(headers or {}))
        with connection.getresponse() as response:
            return Answer(response.status, HTTPHeaders(dict(response.getheaders())), response.read())


def basic(credentials: str) -> dict[str, str]:
    """Return the Authorization header for ``user:password``."""
    return {"Authorization": "Basic " + b64encode(credentials.encode()).decode()}


def answers(address: Address, path: str, *, status: int = 200) -> bool:
    try:
        return request(address, path).status == status
    except (OSError, http.client.HTTPException):
        return False


def wait_until(condition: Callable[[], T], *, timeout: float = 60, what: str) -> T:
    """Poll `condition` until its result is true, and return that.

    :param timeout: in seconds.
    :param what: the expected event, for the error.
    :raises TimeoutError: the condition is still false.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {timeout} s waiting for: {what}")
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
    """Run `command` until the block ends; the block begins when `ready` returns true.

    :param timeout: for `ready`, in seconds.
    :raises RuntimeError: it ended or timed out before that.
    """
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
            wait_until(lambda: process.poll() is not None or ready(), timeout=timeout, what=f"readiness of {command}")
            if process.poll() is not None:
                raise ChildProcessError(f"exited with status {process.returncode}: {command}")
        except (TimeoutError, ChildProcessError) as error:
            raise RuntimeError(f"{error}\n{tail(log)}") from None
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, and kill its process group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def leftovers(folder: Path) -> list[str]:
    """Return the files in the folder, and the commands of processes whose environment names it."""
    found = [str(path) for path in folder.iterdir()]
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in environment.read_bytes():
                found.append(environment.with_name("cmdline").read_text())
    return found


def nothing_is_left(folder: Path) -> None:
    wait_until(lambda: not leftovers(folder), what=f"the removal of {leftovers(folder)}")


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
