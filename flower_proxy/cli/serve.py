"""Start-up, serving and shutdown."""

from __future__ import annotations

import asyncio
import gc
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

_CLOSE_TIMEOUT = 2.0  # seconds
_GC_THRESHOLDS = (50_000, 20, 100)
_SWITCH_INTERVAL = 0.0005  # seconds


def serve(
    app: celery.Celery | str | None, options: OptionParser, notes: Iterable[str], *, no_color: bool, quiet: bool
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    :param app: the Celery application, or its name as for ``celery -A``; None if only a broker is given.
    :param options: Flower's, flower-proxy's and Tornado's logging options.
    :param notes: warnings for the log.
    :param no_color: log without colours.
    :param quiet: omit the start-up summary.
    :raises InputError: the application cannot be loaded, or the settings are invalid.
    :raises MachineError: listening fails, the state file cannot be used, or the client library of the broker is
        missing.
    :raises SystemExit: the state could not be saved at shutdown; the status is 1 and the log has the reason.
    """
    manager = ServiceManager()
    capp = app if isinstance(app, celery.Celery) else import_app(app, debug=options.debug)
    # Follows the import, as the application may configure logging
    _set_up_logging(options, no_color)
    for note in notes:
        logger.warning(note)
    load_configuration(capp, source=f"-A: {app!r}: " if isinstance(app, str) else "", debug=options.debug)
    if app is None and not capp.conf.broker_url:
        raise InputError("no application or broker is given; add -A with the module of your Celery application")
    use_transport_options(capp, options.broker_transport_options or {})
    check_broker(capp)
    loop = asyncio.new_event_loop()
    # asyncio.run would wait for blocked threads
    _leave(status=loop.run_until_complete(_serve(capp, options, manager, quiet=quiet)))


async def _serve(capp: celery.Celery, options: OptionParser, manager: ServiceManager, *, quiet: bool) -> int:
    # A full collection stops the event loop, and events create many objects that live long
    gc.set_threshold(*_GC_THRESHOLDS)
    # The thread that reads events waits for the event loop after each system call, ten times as long by default
    sys.setswitchinterval(_SWITCH_INTERVAL)
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
        # Later collections skip the modules
        gc.freeze()
        await signalled.wait()
    finally:
        manager.stopping()
        await flower.close(_CLOSE_TIMEOUT)
    return 0 if flower.saved else 1


def _address(options: OptionParser, sockets: Sequence[socket.socket]) -> str:
    """Return the address that the server listens on; empty for all interfaces by default."""
    name = sockets[0].getsockname() if sockets else None
    return str(name[0]) if isinstance(name, tuple) else str(options.address)


def _announce(flower: FlowerProxy, address: str, *, quiet: bool) -> None:
    if not quiet:
        for level, line in banner(flower, address):
            logger.log(level, line)
    if flower.access.generated:
        # Printed instead of logged, as logs are stored
        user, password = flower.access.generated
        click.echo(f"Log in as {user} with the password {password} (generated for this run)", err=True)


def _set_up_logging(options: OptionParser, no_color: bool) -> None:
    options.logging = options.logging.lower()
    if options.debug and options.logging == "info":
        options.logging = "debug"
    try:
        options.run_parse_callbacks()
    except (OSError, ValueError) as error:
        raise InputError(f"the --log_ options cannot be used: {one_line(error)}; check --log_file_prefix") from None
    for handler in logging.getLogger().handlers:
        on_terminal = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        handler.setFormatter(OneLineFormatter(color=on_terminal and not no_color))


def _leave(status: int) -> None:
    """Exit, even if a thread is blocked by a broker that does not respond (mher/flower#771)."""
    logging.shutdown()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.current_thread()):
        os._exit(status)
    if status:
        sys.exit(status)


# Start-up summary


def banner(flower: FlowerProxy, address: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of the start-up summary with their log levels.

    :param flower: the application, which must be listening.
    :param address: the address that it listens on; empty for all interfaces by default.
    """
    options, scheme = flower.options, "https" if flower.ssl_options else "http"
    path = f"{flower.locator.mount}/"
    beyond = False
    if flower.port is None:
        yield INFO, f"Listening on unix socket {options.unix_socket} for a reverse proxy at {path}"
    else:
        hosts, everywhere = hosts_of(address)
        beyond = everywhere or not all(map(is_loopback, hosts))
        for host in hosts:
            yield INFO, f"Visit me at {scheme}://{host_and_port(host, flower.port)}{path}"
        if not address:
            yield (
                WARNING,
                "Listening on all interfaces, so other hosts can connect; set --address=127.0.0.1 if the reverse proxy"
                " is on this machine, or --address=0.0.0.0 to confirm",
            )
    if flower.metrics_port is not None:
        for host in hosts_of(options.metrics_address or "")[0]:
            yield INFO, f"Metrics at {scheme}://{host_and_port(host, flower.metrics_port)}/metrics"
    for line in _access_policy(flower):
        yield INFO, line
    if options.no_auth and beyond:
        yield (
            WARNING,
            "Authentication is disabled and the server is reachable from other hosts; make sure that only the reverse"
            " proxy can connect",
        )
    yield INFO, f"Trusted proxies: {flower.locator.trusted}"
    yield INFO, f"Broker: {flower.broker_uri}"


def _access_policy(flower: FlowerProxy) -> Iterator[str]:
    options, access = flower.options, flower.access
    methods = []
    if options.no_auth:
        methods.append("disabled (--no_auth)")
    if options.auth_header:
        methods.append(f"{options.auth_header} from trusted proxies")
    secrets = []
    if access.generated:
        secrets.append("generated password for one user")
    elif access.users:
        secrets.append(f"passwords of {len(access.users.names())} user(s)")
    if options.auth:
        secrets.append(f"OAuth with {options.auth_provider}")
    if secrets:
        methods.append(" and ".join(secrets))
    yield f"Authentication: {', or '.join(methods)}"
    if options.read_only:
        yield "Control actions: disabled (--read_only)"
    elif options.viewers:
        yield f"Control actions: all users except {', '.join(options.viewers)}"
    if options.metrics_open:
        yield "Metrics: public" + (" on their own port" if options.metrics_port is not None else "")
    elif options.metrics_auth:
        yield "Metrics: the user of --metrics_auth, and all users"
