"""From settings to a running server, and to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from logging import INFO, WARNING

import celery
import click
from tornado.options import OptionParser

from flower_proxy.app import FlowerProxy
from flower_proxy.cli.application import (
    check_broker,
    import_app,
    load_configuration,
    one_line,
    refuse,
    use_transport_options,
)
from flower_proxy.cli.errors import InputError, MachineError
from flower_proxy.cli.reach import hosts_of
from flower_proxy.cli.service_manager import ServiceManager
from flower_proxy.cli.signals import end_requested
from flower_proxy.events.state_file import StateFileError
from flower_proxy.proxy.addresses import host_and_port, is_loopback
from flower_proxy.web.audit import OneLineFormatter
from flower_proxy.web.sockets import AddressError, ListenError, handed_over

logger = logging.getLogger("flower_proxy")

_SECONDS_TO_END = 2.0


def serve(
    app: celery.Celery | str | None, options: OptionParser, notes: Iterable[str], *, no_color: bool, quiet: bool
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, and end the process if its end is not a plain one.

    :param app: the Celery application to watch, or its name as for ``celery -A``; None if only a broker is given.
    :param options: Flower's and ours, and Tornado's for the log.
    :param notes: lines for the log.
    :param no_color: leave colours out of the log.
    :param quiet: omit the start-up summary.
    :raises InputError: the application cannot be loaded, or the settings cannot be used.
    :raises MachineError: the address or socket cannot be listened on, the state file cannot be used, or the client
        library of the broker is missing.
    :raises SystemExit: the state could not be saved at the end, with status 1; the log has the reason.
    """
    manager = ServiceManager()
    capp = app if isinstance(app, celery.Celery) else import_app(app, debug=options.debug)
    # After the import, as the application may set up logging itself
    _set_up_logging(options, no_color)
    for note in notes:
        logger.warning(note)
    load_configuration(capp, source=f"-A: {app!r}: " if isinstance(app, str) else "", debug=options.debug)
    if app is None and not capp.conf.broker_url:
        raise InputError("neither an application nor a broker is given: add -A with the module of your Celery app")
    use_transport_options(capp, options.broker_transport_options or {})
    check_broker(capp)
    loop = asyncio.new_event_loop()
    # Not asyncio.run, which waits for threads without an end
    _leave(status=loop.run_until_complete(_serve(capp, options, manager, quiet=quiet)))


async def _serve(capp: celery.Celery, options: OptionParser, manager: ServiceManager, *, quiet: bool) -> int:
    try:
        flower = FlowerProxy(capp=capp, options=options)
    except ValueError as error:
        raise InputError(one_line(error)) from None
    except StateFileError as error:
        raise MachineError(str(error)) from None
    except Exception as error:
        refuse("the application cannot be set up", error, options.debug)
    signalled = end_requested(exit_on_second=True)
    try:
        sockets = handed_over()
        await flower.open(sockets)
    except AddressError as error:
        raise InputError(str(error)) from None
    except ListenError as error:
        raise MachineError(str(error)) from None
    try:
        _announce(flower, _address(options, sockets), quiet=quiet)
        manager.ready()
        await signalled.wait()
    finally:
        manager.stopping()
        await flower.close(_SECONDS_TO_END)
    return 0 if flower.monitor.receiver.saved else 1


def _address(options: OptionParser, sockets: Sequence[socket.socket]) -> str:
    """Return the address it listens on; empty for all interfaces, if that is the default and was not asked for."""
    name = sockets[0].getsockname() if sockets else None
    return str(name[0]) if isinstance(name, tuple) else str(options.address)


def _announce(flower: FlowerProxy, address: str, *, quiet: bool) -> None:
    if not quiet:
        for level, line in banner(flower, address):
            logger.log(level, line)
    if flower.entrance.made_up:
        # Not by the log, which may be kept
        user, password = flower.entrance.made_up
        click.echo(f"Log in as {user} with the password {password} (made up for this run)", err=True)


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


def _leave(status: int) -> None:
    """End the process even where a thread still waits for a broker that does not answer (P10)."""
    logging.shutdown()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.current_thread()):
        os._exit(status)
    if status:
        sys.exit(status)


# What is said at the start


def banner(flower: FlowerProxy, address: str) -> Iterator[tuple[int, str]]:
    """Yield the start-up summary, each line with its level: addresses, access policy, trusted proxies, broker.

    :param flower: the application, listening.
    :param address: where; empty for all interfaces by default.
    """
    options, scheme = flower.options, "https" if flower.ssl_options else "http"
    path = f"{flower.locator.mount}/"
    beyond = False
    if flower.port is None:
        yield INFO, f"Listening on the unix socket {options.unix_socket}, for a proxy to serve at {path}"
    else:
        hosts, everywhere = hosts_of(address)
        beyond = everywhere or not all(map(is_loopback, hosts))
        for host in hosts:
            yield INFO, f"Visit me at {scheme}://{host_and_port(host, flower.port)}{path}"
        if not address:
            yield (
                WARNING,
                "Listening on all interfaces, so other hosts can connect: set --address=127.0.0.1 if the proxy is on"
                " this machine, --address=0.0.0.0 if it is not",
            )
    if flower.metrics_port is not None:
        for host in hosts_of(options.metrics_address or "")[0]:
            yield INFO, f"Metrics at {scheme}://{host_and_port(host, flower.metrics_port)}/metrics"
    for line in _who(flower):
        yield INFO, line
    if options.no_auth and beyond:
        yield WARNING, "NOBODY IS ASKED WHO THEY ARE, and it listens beyond this machine: whoever reaches it may act"
    yield INFO, f"Trusted proxies: {flower.locator.trusted}"
    yield INFO, f"Broker: {flower.broker_uri}"


def _who(flower: FlowerProxy) -> Iterator[str]:
    options, entrance = flower.options, flower.entrance
    ways = []
    if options.no_auth:
        ways.append("everybody: somebody in front asks who they are")
    if options.auth_header:
        ways.append(f"whom a trusted proxy names in {options.auth_header}")
    secrets = []
    if entrance.made_up:
        secrets.append("one user, whose password is made up for this run")
    elif entrance.users:
        secrets.append(f"{len(entrance.users.names())} user(s) by password")
    if options.auth:
        secrets.append(f"those of --auth, by {options.auth_provider}")
    if secrets:
        ways.append(" who are also ".join(secrets))
    yield f"Who may enter: {', or '.join(ways)}"
    if options.read_only:
        yield "Who may act: nobody, as --read_only is set"
    elif options.viewers:
        yield f"Who may act: all of them but {', '.join(options.viewers)}"
    if options.metrics_open:
        yield "Metrics: for everybody" + (" who reaches their port" if options.metrics_port is not None else "")
    elif options.metrics_auth:
        yield "Metrics: for the user of --metrics_auth, and for those who may enter"
