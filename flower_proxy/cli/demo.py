"""``flower-proxy demo``: Flower with a worker and periodic tasks in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flower_proxy.cli.demo_app import CONTROL, FOLDER_BROKER, MESSAGES, QUEUE, UNFINISHED, app, use_folder
from flower_proxy.cli.errors import InputError, MachineError
from flower_proxy.cli.reach import hosts_of, tunnel
from flower_proxy.cli.signals import end_requested
from flower_proxy.proxy.addresses import host_and_port

if TYPE_CHECKING:
    from flower_proxy import FlowerProxy

_USER, _WORKER = "demo", "demo"
# Created in advance, as kombu loses a binding if two processes create an exchange file concurrently
_EXCHANGES = ("celeryev", "celery.pidbox", "reply.celery.pidbox", QUEUE)
_CONNECT_TIMEOUT, _POLL_INTERVAL, _STOP_TIMEOUT = 5.0, 0.1, 4.0  # seconds
_LOG_LINES = 20

_Programs = dict[str, "subprocess.Popen[bytes]"]


@click.command("demo")
@click.option(
    "--broker", default=FOLDER_BROKER, show_default=True, help="the broker URL, such as redis://localhost:6379/0"
)
@click.option(
    "--address", default="127.0.0.1", show_default=True, help="the address to listen on; 0.0.0.0 for all interfaces"
)
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="the port to listen on")
def demo(broker: str, address: str, port: int) -> None:
    """Run Flower with a worker and periodic tasks until Ctrl-C."""
    # A connection to the folder, which always succeeds, would make kombu cache its own transport
    if broker != FOLDER_BROKER:
        _check_broker(broker)
    # Warnings about an empty broker are expected here
    logging.getLogger().addHandler(logging.NullHandler())
    asyncio.run(_run(broker, address, port))


async def _run(broker: str, address: str, port: int) -> None:
    # Installed first, so that a signal at any time cleans up; a second Ctrl-C must not interrupt the clean-up
    signalled = end_requested(exit_on_second=False)
    with tempfile.TemporaryDirectory(prefix="flower-proxy-demo-") as name:
        await _demo(Path(name), broker, address, port, signalled)


async def _demo(folder: Path, broker: str, address: str, port: int, signalled: asyncio.Event) -> None:
    # These imports load Flower, so they follow the check of the broker
    from flower_proxy import FlowerProxy, make_options
    from flower_proxy.web.sockets import AddressError

    _make_folders(folder)
    app.conf.update(broker_url=broker, result_backend=_results(folder))
    if broker == FOLDER_BROKER:
        use_folder(folder)
    password = secrets.token_urlsafe(9)
    options = make_options(address=address, port=port, url_prefix="flower", basic_auth=f"{_USER}:{password}")
    flower = FlowerProxy(capp=app, options=options)
    try:
        await flower.open()
    except AddressError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise MachineError(str(error)) from None
    try:
        with _running(folder, broker) as programs:
            if await _wait(lambda: _knows_worker(flower), programs, folder, signalled):
                _announce(address, port, password)
                await _wait(lambda: False, programs, folder, signalled)
            click.echo("Stopping")
    finally:
        await flower.close()


def _announce(address: str, port: int, password: str) -> None:
    urls = [f"http://{host_and_port(host, port)}/flower/" for host in hosts_of(address)[0]]
    click.echo(f"Open {' or '.join(urls)}\nUser: {_USER}\nPassword: {password}")
    if command := tunnel(address, port):
        click.echo(f"From another machine, open a tunnel to this one (HOST): {command}")
    click.echo("Press Ctrl-C to stop")


def _check_broker(url: str) -> None:
    try:
        if url.startswith("redis"):
            # kombu's own error does not name the missing library
            importlib.import_module("redis")
        with app.connection_for_write(url) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT)
    except ModuleNotFoundError as error:
        raise click.ClickException(f"--broker: {error}; run: {sys.executable} -m pip install {error.name}") from None
    except Exception as error:
        raise click.ClickException(f"--broker: {error}") from None


def _delete_queues(url: str) -> None:
    with contextlib.suppress(Exception), app.connection_for_write(url) as connection:
        for queue in app.amqp.queues.values():
            bound = queue(connection.default_channel)
            bound.declare()
            bound.delete()


def _make_folders(folder: Path) -> None:
    for part in (MESSAGES, CONTROL, UNFINISHED, "processing", "results"):
        (folder / part).mkdir()
    for exchange in _EXCHANGES:
        (folder / CONTROL / f"{exchange}.exchange").write_text("[]", encoding="utf-8")
    # kombu moves a message to the temporary folder while it reads it
    tempfile.tempdir = str(folder / "processing")


@contextlib.contextmanager
def _running(folder: Path, broker: str) -> Iterator[_Programs]:
    """Run worker and beat in this folder, where they write their logs, and stop them at the end of the block."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CELERY_")},
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": _results(folder),
        "TMPDIR": str(folder / "processing"),
    }
    # Gossip and mingle only serve clusters of workers
    worker = ["-n", f"{_WORKER}@%h", "-P", "prefork", "-c", "2", "-E", "--without-gossip", "--without-mingle"]
    commands = {"worker": ["worker", *worker], "beat": ["beat"]}
    programs: _Programs = {}
    try:
        for name, command in commands.items():
            with _log(folder, name).open("wb") as log:
                # A separate session keeps Ctrl-C from the process, so that _stop alone stops it
                programs[name] = subprocess.Popen(  # noqa: S603  no part of the command is user input
                    [sys.executable, "-m", "celery", "-A", "flower_proxy.cli.demo_app", *command, "-l", "info"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environ,
                    start_new_session=True,
                )
        yield programs
    finally:
        _stop(programs)
        if broker != FOLDER_BROKER:
            _delete_queues(broker)


def _results(folder: Path) -> str:
    return f"file://{folder / 'results'}"


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _stop(programs: _Programs) -> None:
    for program in programs.values():
        program.terminate()
    deadline = time.monotonic() + _STOP_TIMEOUT
    for program in programs.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(max(0.0, deadline - time.monotonic()))
        # Includes its children; macOS returns EPERM for a group of zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


async def _wait(condition: Callable[[], bool], programs: _Programs, folder: Path, signalled: asyncio.Event) -> bool:
    """Wait until the condition holds.

    :returns: False if a signal arrived first.
    :raises click.ClickException: a program exited first; the end of its log is printed.
    """
    while not signalled.is_set():
        if condition():
            return True
        ended = next((name for name, program in programs.items() if program.poll() is not None), None)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(signalled.wait(), _POLL_INTERVAL)
        # Ctrl-C also stops a program that has not entered its own session yet
        if ended and not signalled.is_set():
            lines = _log(folder, ended).read_text(encoding="utf-8", errors="replace").splitlines()
            click.echo("\n".join(lines[-_LOG_LINES:]), err=True)
            status = programs[ended].returncode
            raise click.ClickException(f"{ended} exited with status {status}; see the end of its log above")
    return False


def _knows_worker(flower: FlowerProxy) -> bool:
    """Tell whether Flower has received the worker's events and inspected it, as control actions require."""
    for name, worker in flower.events.state.workers.items():
        if worker.alive and name.startswith(f"{_WORKER}@"):
            if "stats" in flower.workers[name]:
                return True
            flower.update_workers(name)
    return False
