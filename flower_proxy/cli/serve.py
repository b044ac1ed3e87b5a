"""From settings to a running server, and to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator

import celery
import click
from celery.app.utils import find_app as import_app
from tornado.options import OptionParser

from flower_proxy._flower import CHECKED_ON, flower_version
from flower_proxy.app import FlowerProxy
from flower_proxy.cli.banner import banner
from flower_proxy.cli.errors import InputError, MachineError
from flower_proxy.web.audit import OneLineFormatter
from flower_proxy.web.sockets import handed_over

logger = logging.getLogger("flower_proxy")

_SECONDS_TO_LEAVE = 2.0


def find_app(name: str | None) -> celery.Celery:
    """Load the Celery application.

    :param name: as for ``celery -A``; None where only a broker is given.
    :raises InputError: it cannot be loaded, or there is neither an application nor a broker.
    """
    app = celery.Celery() if name is None else _import_app(name)
    try:
        # Celery reads its configuration when it is first asked for something
        configured = app.conf.broker_url, app.conf.task_default_queue
    except Exception as error:
        raise InputError(f"Celery's configuration cannot be loaded: {one_line(error)}") from None
    if name is None and not configured[0]:
        raise InputError("neither an application nor a broker is given: add -A with the module of your Celery app")
    return app


def _import_app(name: str) -> celery.Celery:
    try:
        app = import_app(name)
    except SyntaxError as error:
        raise InputError(
            f"-A: {name!r} cannot be loaded: {error.msg} ({error.filename}, line {error.lineno})"
        ) from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        known = isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0])
        where = "; is it in this folder, or in --workdir?" if known else f" ({frame.filename}, line {frame.lineno})"
        raise InputError(f"-A: {name!r} cannot be loaded: {type(error).__name__}: {one_line(error)}{where}") from None
    if not isinstance(app, celery.Celery):
        raise InputError(f"-A: {name!r} is not a Celery application")
    return app


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    # A KeyError's text is the key, in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def serve(capp: celery.Celery, options: OptionParser, notes: Iterable[str], *, no_color: bool, quiet: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    :param capp: the Celery application to watch.
    :param options: Flower's and ours, and Tornado's for the log.
    :param notes: what is to be said in the log.
    :param no_color: leave colours out of the log.
    :param quiet: do not say what is served where.
    :raises InputError: the settings cannot be used.
    :raises MachineError: the address or socket cannot be listened on.
    """
    _set_up_logging(options, no_color)
    for note in notes:
        logger.warning(note)
    if _release(flower_version) > _release(CHECKED_ON):
        logger.warning(
            "Flower %s is newer than %s, the last one flower-proxy was tested with", flower_version, CHECKED_ON
        )
    _check_broker(capp)
    try:
        flower = FlowerProxy(capp=capp, options=options)
    except ValueError as error:
        raise InputError(one_line(error)) from None
    except Exception as error:
        raise InputError(f"the application cannot be set up: {type(error).__name__}: {one_line(error)}") from error
    try:
        with _listening(options, ""):
            port = flower.start_http_server(handed_over())
        with _listening(options, "metrics_"):
            metrics_port = flower.start_metrics_server()
        if not quiet:
            for level, line in banner(flower, port, metrics_port):
                logger.log(level, line)
        if flower.entrance.made_up:
            # Not by the log, which may be kept
            user, password = flower.entrance.made_up
            click.echo(f"Log in as {user} with the password {password} (made up for this run)", err=True)
    except BaseException:
        flower.stop()
        raise
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        flower.loop.asyncio_loop.add_signal_handler(signal_number, flower.loop.stop)
    try:
        flower.start()
    finally:
        try:
            flower.stop()
        finally:
            _leave()


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _check_broker(capp: celery.Celery) -> None:
    try:
        with capp.connection_for_read() as connection:
            _ = connection.transport
    except ValueError:
        # Its text may hold a part of the password
        raise InputError(
            "the broker's URL is malformed: / # @ and the like in a password are written %2F %23 %40"
        ) from None
    except Exception as error:
        raise InputError(f"the broker cannot be used: {one_line(error)}") from None


@contextlib.contextmanager
def _listening(options: OptionParser, prefix: str) -> Iterator[None]:
    """Say which options are at fault where it cannot be listened; they begin with this prefix."""
    address, port = getattr(options, f"{prefix}address"), getattr(options, f"{prefix}port")
    try:
        yield
    except socket.gaierror as error:
        raise InputError(f"--{prefix}address: {address!r}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if options.unix_socket and not prefix:
            raise MachineError(f"--unix_socket: cannot listen on {options.unix_socket!r}: {reason}") from None
        where = f"{address or 'all interfaces'}, port {port}"
        raise MachineError(f"--{prefix}port: cannot listen on {where}: {reason}") from None


def _set_up_logging(options: OptionParser, no_color: bool) -> None:
    options.logging = options.logging.lower()
    if options.debug and options.logging == "info":
        options.logging = "debug"
    try:
        options.run_parse_callbacks()
    except (OSError, ValueError) as error:
        raise InputError(f"--log_file_prefix or another --log_ option: {one_line(error)}") from None
    for handler in logging.getLogger().handlers:
        on_terminal = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        handler.setFormatter(OneLineFormatter(color=on_terminal and not no_color))


def _leave() -> None:
    """End the process even where a thread waits for a broker that does not answer (P10)."""
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logging.shutdown()
                os._exit(0)
