"""Flower's application behind a public location."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from celery import Celery
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets, bind_unix_socket, ssl_options_to_context
from tornado.options import OptionParser
from tornado.platform.asyncio import BaseAsyncIOLoop
from tornado.routing import PathMatches, Router, Rule
from tornado.web import RequestHandler, StaticFileHandler, decode_signed_value

from flower_proxy._flower import (
    FLOWER_JS,
    Flower,
    FlowersLoop,
    NotFoundErrorHandler,
    UnproxiedOptions,
    default_options,
    flower_settings,
)
from flower_proxy.auth.factory import build_entrance
from flower_proxy.auth.policy import Gate
from flower_proxy.check.report import PATH
from flower_proxy.events.listener import Listener
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.collector import MetricsCollector
from flower_proxy.metrics.process import EventDelay
from flower_proxy.metrics.recorder import Recorder
from flower_proxy.proxy.addresses import UNIX, TrustedProxies, normalize_peer
from flower_proxy.proxy.headers import HEADERS, ForwardedHeaderError
from flower_proxy.proxy.location import Locator
from flower_proxy.proxy.paths import parse_mount
from flower_proxy.settings.validators import parse_mode
from flower_proxy.web import audit
from flower_proxy.web.connections import BoundedServer, ConnectionLimit, max_connections
from flower_proxy.web.flower_handlers import LargeBody, proxied
from flower_proxy.web.handlers import BodyTooLarge, Check, PlainText, Ready, Redirect
from flower_proxy.web.limits import MAX_BODY, MAX_DISCARDED_BODY, MAX_TASK_BODY, oversized_body, oversized_head
from flower_proxy.web.mixins import BROWSER, Bare, Proxied, set_location
from flower_proxy.web.security_headers import content_security_policy, parse_frame_ancestors
from flower_proxy.web.sockets import refuse_live_socket, remove_socket
from flower_proxy.web.static import OverlaidStaticFiles, SpliceError, packaged_overrides, prepend, splice
from flower_proxy.web.templates import corrected_templates

logger = logging.getLogger(__name__)

_PATHS_OF_METRICS = ("/metrics", "/healthcheck", "/ready")
_SECONDS_TO_PURGE = 5
_SECONDS_TO_END = 10.0
_NOT_AN_ADDRESS = "0.0.0.0"  # noqa: S104  what Tornado calls the peer of a unix socket


class FlowerProxy(Flower):
    """Flower, right at any URL and behind any reverse proxy.

    :param capp: the Celery application to watch.
    :param options: Flower's options and those of `flower_proxy.settings.options`; Tornado's global ones by default.
    :param settings: further settings of `tornado.web.Application`, in place of those that follow from the options.
    :raises ValueError: an option is malformed, or contradicts another one; the message is one line.
    :ivar port: where it listens once it is open; None on a unix socket.
    :ivar metrics_port: where it listens for /metrics alone; None if it does not.

    It is closed: where the options name nobody who may enter, a password is made up, which `entrance.made_up` holds.

    Inside a program that runs an event loop already, it is made and opened there, once; everything has ended with the
    block:

        async with FlowerProxy(capp=app, options=make_options(port=0)) as flower:
            print(flower.port)

    `open` and `close` do the same for those who have no block. The Celery application, and its connections, stay the
    program's own. `start` is for a program that does nothing else: it runs the event loop.
    """

    def __init__(self, *, capp: Celery, options: OptionParser = default_options, **settings: Any) -> None:
        self.loop = cast(BaseAsyncIOLoop, IOLoop.current())
        self.port: int | None = None
        self.metrics_port: int | None = None
        io_loop = FlowersLoop(self.loop)
        self.entrance = build_entrance(options)
        self._access_log = options.access_log
        self.frame_ancestors = parse_frame_ancestors(options.frame_ancestors)
        self.policy = content_security_policy("", self.frame_ancestors)
        ours = {
            "static_handler_class": _static_handler(Path(flower_settings["static_path"]), options.static_overrides),
            "template_loader": corrected_templates(Path(flower_settings["template_path"])),
        }
        self.connections = ConnectionLimit(max_connections(options.max_connections))
        self.task_events = TaskEvents(options.max_workers)
        self.monitor = _monitor(capp, options, io_loop, self.connections, self.task_events)
        super().__init__(
            capp=capp,
            options=UnproxiedOptions(options),
            events=self.monitor.receiver,
            io_loop=io_loop,
            **{**flower_settings, **_tornado_settings(options), **ours, **settings},
        )
        own = {"/ready": Ready, f"{PATH}/(.+)": Check, PATH: Check}
        self.wildcard_router.rules[:0] = [Rule(PathMatches(path), handler) for path, handler in own.items()]
        self._purge_timer = PeriodicCallback(self._forget_workers, _SECONDS_TO_PURGE * 1000)
        self.locator = Locator(
            mount=parse_mount(options.url_prefix or ""),
            trusted=TrustedProxies(options.trusted_proxies),
            is_page=self._is_page,
            xheaders=options.xheaders,
        )
        self.http_servers: list[BoundedServer] = []
        self._inspections: set[asyncio.Future[None]] = set()
        self._socket_file: tuple[str, int] | None = None
        # Each peer once; the cache is bounded, so a flood of peers cannot fill it
        self._warn_untrusted = lru_cache(maxsize=256)(_warn_untrusted)
        # Only to tell whether a browser needs a new one, so no matter that what is kept does not get too old
        self.read_browser = lru_cache(maxsize=256)(
            partial(decode_signed_value, self.settings["cookie_secret"], BROWSER)
        )
        self._proxied: dict[type[RequestHandler], type[RequestHandler]] = {}
        pages = {
            rule.matcher.regex: rule.target
            for rule in self.wildcard_router.rules
            if isinstance(rule.matcher, PathMatches) and rule.target is not NotFoundErrorHandler
        }
        self._pages = list(pages)
        self._routes = {target: page.pattern.rstrip("$") for page, target in pages.items()}

    def _is_page(self, path: str) -> bool:
        return any(page.match(path) for page in self._pages)

    # Who speaks, and where are we

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        return self.find_guarded_handler(request, self.entrance.gate, **kwargs)

    def find_guarded_handler(self, request: HTTPServerRequest, gate: Gate, **kwargs: Any) -> HTTPMessageDelegate:
        """Find what answers a request, behind this gate."""
        peer = _name_peer(request)
        if problem := oversized_head(request.uri or "", request.headers):
            return self.answer(request, PlainText, status=HTTPStatus.BAD_REQUEST, message=problem)
        if peer not in self.locator.trusted:
            self._ignore_headers(request, peer, gate.authenticator.user_header)
        try:
            location = self.locator.locate(
                peer=peer,
                scheme=request.protocol,
                host=request.host,
                path=request.path,
                headers=request.headers,
            )
        except ForwardedHeaderError as error:
            logger.warning("%s, sent by %s", error, peer)
            return self.answer(request, PlainText, status=HTTPStatus.BAD_REQUEST, message=error.answer)
        if not location.path:
            # Relative, so that a part of the prefix which nobody told stays where it is (P1)
            return self.answer(request, Redirect, path=f"./{request.path.rpartition('/')[2]}/", status=308)
        if location.repeated:
            # What a proxy closes at one address must not be open at another; not for ever, as headers may decide it
            return self.answer(request, Redirect, path=location.url(location.path), status=307)
        set_location(request, location, gate)
        return cast(HTTPMessageDelegate, super().find_handler(request, **kwargs))

    def _ignore_headers(self, request: HTTPServerRequest, peer: str, user_header: str | None) -> None:
        if any(name in request.headers for name in (*HEADERS, user_header or HEADERS[0])):
            self._warn_untrusted(peer)
        if user_header:
            # So that nothing below can take it for true
            request.headers.pop(user_header, None)

    def answer(self, request: HTTPServerRequest, handler: type[RequestHandler], **kwargs: Any) -> HTTPMessageDelegate:
        """Let a handler answer that stands in front of the gate and needs no location."""
        return cast(HTTPMessageDelegate, super().get_handler_delegate(request, handler, kwargs))

    def get_handler_delegate(
        self,
        request: HTTPServerRequest,
        target_class: type[RequestHandler],
        *args: Any,
        **kwargs: Any,
    ) -> HTTPMessageDelegate:
        handler = self._proxied.get(target_class)
        if handler is None:
            route = self._routes.get(target_class, Bare.route)
            handler = self._proxied[target_class] = proxied(target_class, self.options, route)
        maximum = MAX_TASK_BODY if issubclass(handler, LargeBody) else MAX_BODY
        if problem := oversized_body(request.headers.get("Content-Length"), maximum):
            _set_max_body(request, MAX_DISCARDED_BODY)
            return self.answer(request, BodyTooLarge, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message=problem)
        if maximum != MAX_BODY:
            _set_max_body(request, maximum)
        return cast(HTTPMessageDelegate, super().get_handler_delegate(request, handler, *args, **kwargs))

    # The server

    def start_http_server(self, sockets: Sequence[socket.socket] = ()) -> int | None:
        """Listen where the options say.

        :param sockets: that listen already, in place of that.
        :returns: the port, None on a unix socket.
        :raises OSError: the address or socket cannot be bound.
        """
        if sockets:
            return self._serve(self, sockets) or None
        if not self.options.unix_socket:
            return self._serve(self, bind_sockets(self.options.port, address=self.options.address))
        path = self.options.unix_socket
        refuse_live_socket(path)
        bound = bind_unix_socket(path, mode=parse_mode(self.options.unix_socket_mode))
        self._socket_file = (path, os.stat(path).st_ino)
        self._serve(self, [bound])
        return None

    def start_metrics_server(self) -> int | None:
        """Listen for those who scrape the metrics, if they have a port of their own.

        :returns: the port, None if they have none.
        :raises OSError: the address cannot be bound.
        """
        if self.options.metrics_port is None:
            return None
        sockets = bind_sockets(self.options.metrics_port, address=self.options.metrics_address or "")
        return self._serve(_MetricsOnly(self), sockets)

    def _serve(self, router: Router, sockets: Sequence[socket.socket]) -> int:
        server = BoundedServer(router, connections=self.connections, ssl_options=self.ssl_options)
        server.add_sockets(sockets)
        self.http_servers.append(server)
        name = sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def start(self) -> None:
        """Run the event loop, with everything that goes on beside the server, until somebody stops the loop."""
        self._begin()
        self.loop.start()

    def _begin(self) -> None:
        self.monitor.start()
        self._purge_timer.start()
        super().start()

    def update_workers(self, workername: str | None = None) -> asyncio.Future[None]:
        inspection: asyncio.Future[None] = super().update_workers(workername)
        self._inspections.add(inspection)
        inspection.add_done_callback(self._inspections.discard)
        return inspection

    def _forget_workers(self) -> None:
        self.monitor.forget_producers()
        if self.options.purge_offline_workers is not None:
            for name in self.monitor.forget_workers(self.options.purge_offline_workers):
                self.workers.pop(name, None)

    def stop(self) -> None:
        """Let everything end, and wait for nothing; the event loop goes on."""
        self._purge_timer.stop()
        self.monitor.stop()
        while self.http_servers:
            self.http_servers.pop().stop()
        if self._socket_file is not None:
            remove_socket(*self._socket_file)
            self._socket_file = None
        self.entrance.close()
        super().stop()

    # In a program of one's own

    async def open(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Listen, and begin to watch; the event loop that runs goes on.

        :param sockets: bound ones to listen on, in place of where the options say; `close` closes them.
        :raises OSError: the address or socket cannot be bound; nothing is left open.
        :raises RuntimeError: it was made in another event loop, or open before.
        """
        if asyncio.get_running_loop() is not self.loop.asyncio_loop:
            raise RuntimeError("a FlowerProxy is made and opened in the same event loop, while that runs")
        if self.events.ident is not None:
            raise RuntimeError("a FlowerProxy is opened once; make another one")
        try:
            for bound in sockets:
                bound.setblocking(False)
                bound.listen()
            self.port = self.start_http_server(sockets)
            self.metrics_port = self.start_metrics_server()
            self._begin()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End everything, and wait until it has ended, for ten seconds at most each for connections and threads.

        A broker that hangs may keep threads waiting for longer, and with them the end of the program, unless
        `broker_transport_options` of the Celery application have a ``socket_timeout``.
        """
        servers = list(self.http_servers)
        self.stop()
        closing = asyncio.gather(*(server.close_all_connections() for server in servers))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(closing, _SECONDS_TO_END)
        # In a thread of its own, as one of the event loop's would keep the program waiting
        ending = threading.Thread(target=self._wait_for_threads, name="flower-proxy-ending", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _SECONDS_TO_END)
        if ending.is_alive():
            logger.warning("The broker keeps threads waiting: a socket_timeout in broker_transport_options ends that")
        elif self._inspections:
            await asyncio.wait(self._inspections, timeout=_SECONDS_TO_END)

    def _wait_for_threads(self) -> None:
        for thread in (self.events, self.monitor.watch):
            if thread.ident is not None:
                thread.join()
        self.executor.shutdown(cancel_futures=True)

    async def __aenter__(self) -> FlowerProxy:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def log_request(self, handler: RequestHandler) -> None:
        self.monitor.own.count_request(
            route=getattr(handler, "route", Bare.route),
            method=str(handler.request.method),
            status=handler.get_status(),
        )
        if not self._access_log:
            return
        audit.request(
            user=handler.principal.name if isinstance(handler, Proxied) else "",
            client=str(handler.request.remote_ip),
            method=str(handler.request.method),
            path=handler.request.path,
            status=handler.get_status(),
            seconds=handler.request.request_time(),
        )


class _MetricsOnly(Router):
    """What the metrics' own listener answers: no prefix, no page."""

    def __init__(self, flower: FlowerProxy) -> None:
        self.flower = flower

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        if request.path not in _PATHS_OF_METRICS:
            _name_peer(request)
            return self.flower.answer(request, PlainText, status=HTTPStatus.NOT_FOUND, message="see /metrics")
        return self.flower.find_guarded_handler(request, self.flower.entrance.metrics_gate, **kwargs)


def _name_peer(request: HTTPServerRequest) -> str:
    """Replace the request's peer by its normal form, and return that."""
    remote = str(request.remote_ip)
    request.remote_ip = UNIX if remote == _NOT_AN_ADDRESS else normalize_peer(remote)
    return request.remote_ip


def _tornado_settings(options: OptionParser) -> dict[str, Any]:
    """Return what Tornado is told of the options."""
    settings: dict[str, Any] = {"debug": options.debug}
    if options.cookie_secret:
        settings["cookie_secret"] = options.cookie_secret
    if options.auth:
        settings["oauth"] = {
            "key": options.oauth2_key,
            "secret": options.oauth2_secret,
            "redirect_uri": options.oauth2_redirect_uri,
        }
    if options.certfile:
        files = {name: os.path.expanduser(getattr(options, name) or "") for name in ("certfile", "keyfile", "ca_certs")}
        try:
            settings["ssl_options"] = ssl_options_to_context(
                {name: file for name, file in files.items() if file}, server_side=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"--certfile and --keyfile: {error}") from None
    return settings


def _receiver(
    capp: Celery,
    options: OptionParser,
    io_loop: FlowersLoop,
    listeners: Sequence[Listener],
    on_reconnect: Callable[[], None],
) -> Receiver:
    return Receiver(
        capp,
        io_loop=io_loop,
        db=options.db,
        persistent=options.persistent,
        state_save_interval=options.state_save_interval,
        enable_events=options.enable_events,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
        listeners=listeners,
        on_reconnect=on_reconnect,
    )


def _monitor(
    capp: Celery,
    options: OptionParser,
    io_loop: FlowersLoop,
    connections: ConnectionLimit,
    task_events: TaskEvents,
) -> MetricsCollector:
    recorder = Recorder(
        options.task_runtime_metric_buckets,
        max_task_names=options.metrics_task_names,
        max_in_flight=options.max_tasks,
    )
    delay = EventDelay()
    receiver = _receiver(
        capp, options, io_loop, [recorder, delay, task_events], on_reconnect=lambda: monitor.watch.ask_workers()
    )
    monitor = MetricsCollector(
        capp, receiver, recorder, delay, connections, groups=options.metrics, queues=options.queues
    )
    return monitor


def _set_max_body(request: HTTPServerRequest, maximum: int) -> None:
    cast(HTTP1Connection, request.connection).set_max_body_size(maximum)


def _static_handler(flower: Path, folder: str | None) -> type[StaticFileHandler]:
    packaged = packaged_overrides()
    # An empty text is none: as a path it would be the current folder, with everything that lies there
    folders = [Path(folder).expanduser().resolve(), packaged] if folder else [packaged]
    corrected = packaged / FLOWER_JS
    original, corrections = (file.read_text(encoding="utf-8") for file in (flower / FLOWER_JS, corrected))
    try:
        script = splice(original, corrections)
    except SpliceError as error:
        logger.warning("Cannot correct Flower's %s: %s; its pages are served with a substitute", FLOWER_JS, error)
        script = prepend(original, corrections)
    return OverlaidStaticFiles.configure(folders, {corrected: script.encode()})


def _warn_untrusted(peer: str) -> None:
    logger.warning(
        "%s sends X-Forwarded headers and is not trusted, so they are ignored; if it is your proxy, add it:"
        " --trusted_proxies=%s",
        peer,
        peer,
    )
