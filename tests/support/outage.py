"""Brokers that a test stops, freezes and restarts at the same address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from . import rabbitmq
from .processes import PROJECT, Address, free_port, running
from .programs import Broker, redis_server


class Interruptible:
    """A server that a test can stop, freeze and restart.

    :param broker: the broker at the address for clients.
    :param start: returns a context manager that runs the server.
    """

    def __init__(self, broker: Broker, start: Callable[[], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]):
        self.broker = broker
        self._start = start
        self._running = contextlib.ExitStack()
        self._group = 0

    def start(self) -> None:
        self._group = self._running.enter_context(self._start()).pid

    def stop(self) -> None:
        self._running.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend the server: the kernel still accepts connections, but nothing answers."""
        os.killpg(self._group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._group, signal.SIGCONT)


def network_to(broker: Broker, folder: Path) -> Interruptible:
    """Return a stopped relay between a client and its broker; other clients connect to the broker directly."""
    near, far = free_port(), urlsplit(broker.url).port
    command = [sys.executable, "-m", "tests.support.relay", f"{near}", f"{far}"]
    return Interruptible(
        replace(broker, url=broker.url.replace(f":{far}", f":{near}")),
        lambda: running(command, log=folder / "relay.log", ready=Address(near).accepts),
    )


@contextlib.contextmanager
def interruptible(kind: str, folder: Path) -> Iterator[Interruptible]:
    """Run a broker, "redis" or "rabbitmq"."""
    port = free_port()

    if kind == "redis":
        outage = Interruptible(Broker(f"redis://127.0.0.1:{port}/0"), lambda: redis_server(folder, port, keeps=False))
    else:
        url = f"amqp://guest:guest@127.0.0.1:{port}//"
        outage = Interruptible(rabbitmq.RabbitMQ(url), lambda: rabbitmq.server(folder, port))
    outage.start()
    try:
        yield outage
    finally:
        outage.stop()


@contextlib.contextmanager
def deaf_port() -> Iterator[tuple[int, socket.socket]]:
    """Yield a port that accepts connections but never answers, and its listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1], listening


def leaves_a_deaf_broker(script: str, scheme: str) -> tuple[str, int]:
    """Run a program that has to exit after a line of input while its broker does not answer.

    :param script: gets the broker's URL as its argument.
    :returns: its output and its status.
    """
    with deaf_port() as (port, listening):
        command = [sys.executable, "-c", script, f"{scheme}://127.0.0.1:{port}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=PROJECT, text=True) as process:
            listening.settimeout(30)
            with listening.accept()[0]:
                # Now the program waits for the broker
                output, _ = process.communicate("\n", timeout=30)
                return output, process.returncode
