"""``flower-proxy demo``: Flower with a real worker and a steady trickle of tasks, which leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from flower_proxy.cli.demo_app import CONTROL, FOLDER_BROKER, MESSAGES, QUEUE, UNFINISHED, app

_ADDRESS, _USER, _WORKER = "127.0.0.1", "demo", "demo"
# What several programs bind queues to: kombu loses a binding where two of them make such a file at once
_EXCHANGES = ("celeryev", "celery.pidbox", "reply.celery.pidbox", QUEUE)
_TIMEOUT, _PAUSE, _GRACE = 5.0, 0.1, 4.0  # seconds
_LOG_LINES = 20

_Programs = dict[str, "subprocess.Popen[bytes]"]


@click.command("demo")
@click.option(
    "--broker", default=FOLDER_BROKER, show_default=True, help="another one, such as redis://localhost:6379/0"
)
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="the port to listen on")
def demo(broker: str, port: int) -> None:
    """Show Flower with a real worker and a steady trickle of tasks, until Ctrl-C."""
    _check_port(port)
    _check_broker(broker)
    password = secrets.token_urlsafe(9)
    signals = _collect_signals()
    with tempfile.TemporaryDirectory(prefix="flower-proxy-demo-") as name:
        folder, credentials = Path(name), f"{_USER}:{password}"
        with _running(folder, broker, port, credentials) as programs:
            if _wait(lambda: _shows_worker(port, credentials), programs, folder, signals):
                click.echo(
                    f"Open http://{_ADDRESS}:{port}/flower/  user {_USER}, password {password}  (Ctrl-C ends it)"
                )
                _wait(lambda: False, programs, folder, signals)
            click.echo("Ending")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # As Tornado does; connections of a Flower that has ended are no hindrance
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_ADDRESS, port))
        except OSError as error:
            raise click.ClickException(f"--port: cannot listen on {_ADDRESS}, port {port}: {error.strerror}") from None


def _check_broker(url: str) -> None:
    try:
        if url.startswith("redis"):
            # Kombu would not say what it lacks
            importlib.import_module("redis")
        with app.connection_for_write(url) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_TIMEOUT)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"--broker: {error}; install it: {sys.executable} -m pip install {error.name}"
        ) from None
    except Exception as error:
        raise click.ClickException(f"--broker: {error}") from None


def _delete_queues(url: str) -> None:
    with contextlib.suppress(Exception), app.connection_for_write(url) as connection:
        for queue in app.amqp.queues.values():
            bound = queue(connection.default_channel)
            bound.declare()
            bound.delete()


def _collect_signals() -> list[int]:
    """Return a list to which every signal that asks for the end will be added."""
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: signals.append(number))
    return signals


@contextlib.contextmanager
def _running(folder: Path, broker: str, port: int, credentials: str) -> Iterator[_Programs]:
    """Run Flower, worker and beat in this folder, each with a log there, and end them with the block."""
    for part in (MESSAGES, CONTROL, UNFINISHED, "processing", "results"):
        (folder / part).mkdir()
    for exchange in _EXCHANGES:
        (folder / CONTROL / f"{exchange}.exchange").write_text("[]", encoding="utf-8")
    environ = {
        # What is set for another Flower, such as FLOWER_PORT, has no say here
        **{name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "FLOWER_"))},
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": f"file://{folder / 'results'}",
        # Not on the command line, which everybody on the machine can see
        "FLOWER_BASIC_AUTH": credentials,
        # Kombu puts a message there while it reads it
        "TMPDIR": str(folder / "processing"),
    }
    # Gossip and mingle are for workers that have neighbours
    worker = ["-n", f"{_WORKER}@%h", "-P", "prefork", "-c", "2", "-E", "--without-gossip", "--without-mingle"]
    application = ["-A", "flower_proxy.cli.demo_app"]
    commands = {
        "flower-proxy": [
            "flower_proxy",
            *application,
            f"--address={_ADDRESS}",
            f"--port={port}",
            "--url_prefix=flower",
        ],
        "worker": ["celery", *application, "worker", "-l", "info", *worker],
        "beat": ["celery", *application, "beat", "-l", "info"],
    }
    programs: _Programs = {}
    try:
        for name, command in commands.items():
            with _log(folder, name).open("wb") as log:
                # In a session of its own, where Ctrl-C does not reach it: only _end ends it
                programs[name] = subprocess.Popen(  # noqa: S603  nothing in it comes from outside
                    [sys.executable, "-m", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environ,
                    start_new_session=True,
                )
        yield programs
    finally:
        _end(programs)
        if broker != FOLDER_BROKER:
            _delete_queues(broker)


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _end(programs: _Programs) -> None:
    for program in programs.values():
        program.terminate()
    deadline = time.monotonic() + _GRACE
    for program in programs.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(max(0.0, deadline - time.monotonic()))
        # Also what it has started; macOS says EPERM of a group that has only dead ones
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _wait(condition: Callable[[], bool], programs: _Programs, folder: Path, signals: list[int]) -> bool:
    """Wait until the condition holds.

    :returns: False if a signal came first.
    :raises click.ClickException: a program ended first; the end of its log has been shown.
    """
    while not signals:
        if condition():
            return True
        for name, program in programs.items():
            if program.poll() is not None:
                lines = _log(folder, name).read_text(encoding="utf-8", errors="replace").splitlines()
                click.echo("\n".join(lines[-_LOG_LINES:]), err=True)
                raise click.ClickException(f"{name} ended (status {program.returncode}); this was the end of its log")
        time.sleep(_PAUSE)
    return False


def _shows_worker(port: int, credentials: str) -> bool:
    """Return whether Flower answers, has heard from the worker, and has asked it what it is: its buttons need that."""
    try:
        workers = _ask(port, credentials, "workers?json=1")["data"]
        ours = [worker["hostname"] for worker in workers if worker["hostname"].startswith(f"{_WORKER}@")]
        return bool(ours) and ours[0] in _ask(port, credentials, f"api/workers?refresh=1&workername={ours[0]}")
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _ask(port: int, credentials: str, page: str) -> Any:
    headers = {"Authorization": "Basic " + b64encode(credentials.encode()).decode()}
    with contextlib.closing(http.client.HTTPConnection(_ADDRESS, port, timeout=_TIMEOUT)) as connection:
        connection.request("GET", f"/flower/{page}", headers=headers)
        return json.load(connection.getresponse())
