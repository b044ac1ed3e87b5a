"""The Flower application behind a reverse proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, cast

from celery import Celery
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.options import OptionParser
from tornado.platform.asyncio import BaseAsyncIOLoop
from tornado.routing import PathMatches, Router, Rule
from tornado.web import RequestHandler, decode_signed_value

from flower_proxy._flower import EmbeddedFlower, FlowersLoop
from flower_proxy._timer import Timer
from flower_proxy.auth.factory import build_access
from flower_proxy.check.report import PATH
from flower_proxy.events.control import CheckedCelery, Inspected
from flower_proxy.events.discovery import Discovery
from flower_proxy.events.persistence import Persistence
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.factory import build_collector
from flower_proxy.monitor.history import History
from flower_proxy.monitor.keeper import Keeper
from flower_proxy.monitor.status import status_of
from flower_proxy.proxy.addresses import TrustedProxies
from flower_proxy.proxy.location import Locator
from flower_proxy.proxy.paths import parse_mount
from flower_proxy.settings.loader import make_options
from flower_proxy.settings.validators import parse_frame_ancestors, parse_mode, parse_size
from flower_proxy.web import audit
from flower_proxy.web.application_settings import application_settings
from flower_proxy.web.connections import BoundedServer, ConnectionLimit, max_connections
from flower_proxy.web.flower_handlers import Routes
from flower_proxy.web.handlers import Check, Ready
from flower_proxy.web.mixins import BROWSER, ProxyMixin, SecurityHeadersMixin
from flower_proxy.web.monitor import HistoryApi, MonitorPage
from flower_proxy.web.queues import BrokerQueues
from flower_proxy.web.routing import PublicRouter, limit_body
from flower_proxy.web.security_headers import content_security_policy
from flower_proxy.web.sockets import SocketFile, bind, bind_unix

logger = logging.getLogger(__name__)

_METRICS_PATHS = ("/metrics", "/healthcheck", "/ready")
_PURGE_INTERVAL = 5  # seconds


class FlowerProxy(EmbeddedFlower):
    """Flower at any URL, behind any reverse proxy.

    :param capp: the Celery application to monitor.
    :param options: options of Flower and flower-proxy, as returned by `make_options`; default: all defaults.
    :param settings: settings of `tornado.web.Application`, which override those derived from the options.
    :raises ValueError: an option is malformed or contradicts another; the message is one line.
    :raises OSError: with ``--persistent``, the state file is in use or cannot be accessed; the message is one line.
    :ivar port: the TCP port, once the server listens; None on a unix socket.
    :ivar metrics_port: the TCP port of the separate metrics server; None without one.

    If the options configure no users, `access.generated` holds a generated user and password.

    Create and open it once, in a running event loop. Leaving the block closes it:

        async with FlowerProxy(capp=app, options=make_options(port=0)) as flower:
            print(flower.port)

    Without a block, call `open` and `close`. The Celery application and its connections are not closed.
    """

    def __init__(self, *, capp: Celery, options: OptionParser | None = None, **settings: Any) -> None:
        options = make_options() if options is None else options
        self.loop = cast(BaseAsyncIOLoop, IOLoop.current())
        self.port: int | None = None
        self.metrics_port: int | None = None
        flowers_loop = FlowersLoop(self.loop)
        self.access = build_access(options)
        self._access_log = options.access_log
        self.frame_ancestors = parse_frame_ancestors(options.frame_ancestors)
        self.policy = content_security_policy("", self.frame_ancestors)
        self.connections = ConnectionLimit(max_connections(options.max_connections))
        self.task_events = TaskEvents(options.max_workers)
        self.discovery = Discovery(self.task_events.sends_task_events, max_workers=options.max_workers)
        self.history = History(int(time.time()))
        tornado_settings = {**application_settings(options), **settings}
        mount, trusted = parse_mount(options.url_prefix or ""), TrustedProxies(options.trusted_proxies)
        size = parse_size(options.events_buffer)
        parts = (self.connections, self.task_events, self.discovery, self.history)
        self.monitor = build_collector(capp, options, flowers_loop, *parts, events_buffer=size)
        receiver = self.monitor.receiver
        self.queues = BrokerQueues(capp, self.monitor.watch, broker_api=options.broker_api)
        inspected = Inspected(options.max_workers, lambda name: name in receiver.state.workers)
        super().__init__(
            capp=capp,
            options=options,
            events=receiver,
            loop=flowers_loop,
            checked_capp=CheckedCelery(capp, inspected, self.monitor.replies),
            inspected=inspected,
            settings=tornado_settings,
        )
        self.discovery.begin(receiver, inspected, self.update_workers)
        self._add_pages()
        self._routes = Routes(self.wildcard_router.rules, self.options)
        self.locator = Locator(mount=mount, trusted=trusted, is_page=self._routes.is_page, xheaders=options.xheaders)
        self._router = PublicRouter(self, self.locator, self.access.policy)
        self._purge_timer = Timer(self.forget_workers, _PURGE_INTERVAL)
        self.http_servers: list[BoundedServer] = []
        self._socket_file: SocketFile | None = None
        # The result only decides whether to renew the cookie, so an expired cached value is harmless
        self.read_browser = lru_cache(maxsize=256)(
            partial(decode_signed_value, self.settings["cookie_secret"], BROWSER)
        )
        # It locks the state file, so every option is validated first
        self.persistence: Persistence | None = None
        if options.persistent:
            interval = options.state_save_interval / 1000
            self.persistence = Persistence(receiver, options.db, interval, self.monitor.recorder.restore)
        path = f"{self.persistence.path}.history" if self.persistence else None
        self.history_keeper = Keeper(self.history, partial(status_of, self.monitor, self.task_events), path)

    def _add_pages(self) -> None:
        router = self.wildcard_router
        own = {"/ready": Ready, f"{PATH}/(.+)": Check, PATH: Check, "/monitor": MonitorPage, "/api/history": HistoryApi}
        rules = [Rule(PathMatches(path), handler) for path, handler in own.items()]
        # Before the catch-all route
        router.rules[:0] = rules
        router.named_rules["monitor"] = next(rule for rule in rules if rule.target is MonitorPage)

    # Requests

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        """Route a request; see `PublicRouter`."""
        return self._router.find_handler(request, **kwargs)

    def find_page(self, request: HTTPServerRequest) -> HTTPMessageDelegate:
        """Route a request that has a location to a page of Flower or flower-proxy."""
        return cast(HTTPMessageDelegate, super().find_handler(request))

    def answer(self, request: HTTPServerRequest, handler: type[RequestHandler], **kwargs: Any) -> HTTPMessageDelegate:
        """Answer a request with a handler that requires neither a location nor authentication."""
        return cast(HTTPMessageDelegate, super().get_handler_delegate(request, handler, kwargs))

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *args: Any, **kwargs: Any
    ) -> HTTPMessageDelegate:
        """Return the delegate of the class that replaces a handler, or of a 413 response."""
        handler = self._routes.handler_for(target_class)
        if refused := limit_body(self, request, handler.max_body):
            return refused
        return cast(HTTPMessageDelegate, super().get_handler_delegate(request, handler, *args, **kwargs))

    def log_request(self, handler: RequestHandler) -> None:
        """Count a finished request and write the access log."""
        self.monitor.own.count_request(
            route=getattr(handler, "route", SecurityHeadersMixin.route),
            method=str(handler.request.method),
            status=handler.get_status(),
        )
        if not self._access_log:
            return
        audit.request(
            user=handler.principal.name if isinstance(handler, ProxyMixin) else "",
            client=str(handler.request.remote_ip),
            method=str(handler.request.method),
            path=handler.request.path,
            status=handler.get_status(),
            seconds=handler.request.request_time(),
        )

    # Life cycle

    async def open(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Listen and start monitoring in the running event loop.

        :param sockets: bound sockets to listen on instead of the configured address; `close` closes them.
        :raises OSError: the address or socket cannot be bound; the message is one line, and everything is closed.
        :raises RuntimeError: it was created in another event loop, or has been opened before.
        """
        if asyncio.get_running_loop() is not self.loop.asyncio_loop:
            raise RuntimeError("a FlowerProxy must be created and opened in the same running event loop")
        if self.events.ident is not None:
            raise RuntimeError("a FlowerProxy can be opened once; create another one")
        try:
            self.port = self.start_http_server(sockets)
            self.metrics_port = self.start_metrics_server()
            self.start()
        except BaseException:
            await self.close()
            raise

    async def close(self, timeout: float = 10.0) -> None:
        """Stop accepting connections, finish the requests in progress, save the state and stop all threads.

        If saving the state fails, the error is logged and `saved` is False.

        A broker that does not respond can block threads, and with them the exit of the process, beyond the timeout;
        a ``socket_timeout`` in Celery's `broker_transport_options` prevents that.

        :param timeout: maximum seconds for each of: requests, connections, threads, inspections of workers.
        """
        servers = list(self.http_servers)
        for server in servers:
            server.stop()
        await self.connections.drain(timeout)
        self.stop()
        # Before the state, whose lock protects the history, too
        await self.history_keeper.close()
        saving = [self.persistence.close()] if self.persistence else []
        await asyncio.gather(self._end(servers, timeout), *saving)

    async def _end(self, servers: Sequence[BoundedServer], timeout: float) -> None:
        closing = asyncio.gather(*(server.close_all_connections() for server in servers))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(closing, timeout)
        try:
            await asyncio.wait_for(self._join(), timeout)
        except asyncio.TimeoutError:
            logger.warning(
                "Threads still wait for the broker after %g s; set socket_timeout in broker_transport_options", timeout
            )
        else:
            await self.finish_inspections(timeout)

    @property
    def saved(self) -> bool:
        """Whether the last attempt to save the state succeeded; True without ``--persistent``."""
        return self.persistence is None or self.persistence.saved

    async def __aenter__(self) -> FlowerProxy:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start_http_server(self, sockets: Sequence[socket.socket] = ()) -> int | None:
        """Listen on the configured address or unix socket.

        :param sockets: bound sockets to use instead.
        :returns: the TCP port; None on a unix socket.
        :raises OSError: the address or socket cannot be bound.
        """
        if not sockets and self.options.unix_socket:
            mode = parse_mode(self.options.unix_socket_mode)
            bound, self._socket_file = bind_unix(self.options.unix_socket, mode)
            sockets = [bound]
        return self._serve(self, sockets or bind(self.options.address, self.options.port))

    def start_metrics_server(self) -> int | None:
        """Listen on ``--metrics_port``, if it is set.

        :returns: the TCP port; None if it is not set.
        :raises OSError: the address cannot be bound.
        """
        if self.options.metrics_port is None:
            return None
        router = PublicRouter(self, self.locator, self.access.metrics_policy, paths=_METRICS_PATHS)
        return self._serve(
            router, bind(self.options.metrics_address or "", self.options.metrics_port, prefix="metrics_")
        )

    def _serve(self, router: Router, sockets: Sequence[socket.socket]) -> int | None:
        for bound in sockets:
            bound.setblocking(False)
            bound.listen()
        server = BoundedServer(router, connections=self.connections, ssl_options=self.ssl_options)
        server.add_sockets(sockets)
        self.http_servers.append(server)
        name = sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else None

    def start(self) -> None:
        """Start monitoring; return immediately."""
        self.monitor.start()
        self._purge_timer.start()
        super().start()
        if self.persistence is not None:
            self.persistence.start()
        self.history_keeper.start()

    def stop(self) -> None:
        """Stop everything without waiting."""
        self._purge_timer.stop()
        self.discovery.stop()
        self.monitor.stop()
        while self.http_servers:
            self.http_servers.pop().stop()
        if self._socket_file is not None:
            self._socket_file.remove()
            self._socket_file = None
        self.access.close()
        super().stop()

    def join(self) -> None:
        """Wait for the threads that `stop` has told to stop."""
        self.monitor.join()
        super().join()

    async def _join(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def join() -> None:
            self.join()
            # The event loop may be closed by now
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        # The interpreter waits for executor threads at exit, but not for a daemon thread
        ending = threading.Thread(target=join, name="flower-proxy-ending", daemon=True)
        ending.start()
        await ended.wait()
        ending.join()

    def forget_workers(self) -> None:
        """Remove the workers that exceed ``--purge_offline_workers`` or ``--max_workers``."""
        gone = self.monitor.forget_workers(self.options.purge_offline_workers)
        self.task_events.forget(gone)
        self.forget_inspections(gone)
