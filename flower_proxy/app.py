"""Flower's application behind a public location."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from celery import Celery
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.options import OptionParser
from tornado.routing import PathMatches, Router, Rule
from tornado.web import RequestHandler, StaticFileHandler

from flower_proxy import audit
from flower_proxy.browser_policy import parse_frame_ancestors
from flower_proxy.entrance import build_entrance
from flower_proxy.forwarded import HEADERS, UNIX, ForwardedHeaderError, TrustedProxies
from flower_proxy.gate import Gate
from flower_proxy.guarded import Bare, set_location
from flower_proxy.handlers import PlainText, Proxied, ProxiedFlower, ProxiedLogin, Redirect, head
from flower_proxy.internals import (
    FLOWER_JS,
    BaseHandler,
    Flower,
    LoginHandler,
    Metrics,
    NotFoundErrorHandler,
    UnproxiedOptions,
    concrete_handler,
    default_options,
    flower_settings,
)
from flower_proxy.location import Locator
from flower_proxy.monitoring import Monitor, Ready, TrustedMetrics
from flower_proxy.options import parse_mode
from flower_proxy.paths import parse_mount
from flower_proxy.receiver import Receiver
from flower_proxy.seen import PATH, Check
from flower_proxy.statics import OverlaidStaticFiles, SpliceError, packaged_overrides, prepend, splice
from flower_proxy.templates import corrected_templates

logger = logging.getLogger(__name__)

# Bytes; people who have not shown who they are can send them
_LARGEST_BODY = 16 * 1024 * 1024
_PATHS_OF_METRICS = ("/metrics", "/healthcheck", "/ready")
_SECONDS_TO_PURGE = 5
_SECONDS_TO_CONNECT = 1.0
_NOT_AN_ADDRESS = "0.0.0.0"  # noqa: S104  what Tornado calls the peer of a unix socket


class FlowerProxy(Flower):  # type: ignore[misc]
    """Flower, right at any URL and behind any reverse proxy.

    :param capp: the Celery application to watch.
    :param options: Flower's options and those of `flower_proxy.options`; Tornado's global ones by default.
    :param settings: further settings of `tornado.web.Application`.
    :raises ValueError: an option is malformed, or contradicts another one; the message is one line.

    It is closed: where the options name nobody who may enter, a password is made up, which `entrance` holds.
    """

    def __init__(self, *, capp: Celery, options: OptionParser = default_options, **settings: Any) -> None:
        self.entrance = build_entrance(options)
        self.frame_ancestors = parse_frame_ancestors(options.frame_ancestors)
        ours = {
            "static_handler_class": _static_handler(Path(flower_settings["static_path"]), options.static_overrides),
            "template_loader": corrected_templates(Path(flower_settings["template_path"])),
        }
        receiver = _receiver(capp, options)
        self.monitor = _monitor(capp, options, receiver)
        super().__init__(
            capp=capp,
            options=UnproxiedOptions(options),
            events=receiver,
            **{**flower_settings, **ours, **settings},
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
        self.http_servers: list[HTTPServer] = []
        self._socket_file: tuple[str, int] | None = None
        # Each peer once; the cache is bounded, so a flood of peers cannot fill it
        self._warn_untrusted = lru_cache(maxsize=256)(_warn_untrusted)
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
        peer = UNIX if request.remote_ip == _NOT_AN_ADDRESS else str(request.remote_ip)
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
        proxied = self._proxied.get(target_class)
        if proxied is None:
            route = self._routes.get(target_class, Bare.route)
            proxied = self._proxied[target_class] = _proxied(target_class, self.options, route)
        return cast(HTTPMessageDelegate, super().get_handler_delegate(request, proxied, *args, **kwargs))

    # The server

    def start_http_server(self) -> int | None:
        """Listen where the options say.

        :returns: the port, None on a unix socket.
        :raises OSError: the address or socket cannot be bound.
        """
        if not self.options.unix_socket:
            return self._serve(self, bind_sockets(self.options.port, address=self.options.address))
        path = self.options.unix_socket
        _refuse_live_socket(path)
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

    def _serve(self, router: Router, sockets: list[socket.socket]) -> int:
        # Forwarded headers are read in find_handler, with a look at who sends them; Tornado must not read them too
        server = HTTPServer(router, ssl_options=self.ssl_options, max_body_size=_LARGEST_BODY)
        server.add_sockets(sockets)
        self.http_servers.append(server)
        name = sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def start(self) -> None:
        self.monitor.start()
        self._purge_timer.start()
        super().start()

    def _forget_workers(self) -> None:
        self.monitor.forget_producers()
        if self.options.purge_offline_workers is not None:
            for name in self.monitor.forget_workers(self.options.purge_offline_workers):
                self.workers.pop(name, None)

    def stop(self) -> None:
        self._purge_timer.stop()
        self.monitor.stop()
        while self.http_servers:
            self.http_servers.pop().stop()
        if self._socket_file is not None:
            _remove_socket(*self._socket_file)
            self._socket_file = None
        self.entrance.close()
        super().stop()

    def log_request(self, handler: RequestHandler) -> None:
        self.monitor.own.count_request(
            route=getattr(handler, "route", Bare.route),
            method=str(handler.request.method),
            status=handler.get_status(),
        )
        if not self.options.access_log:
            return
        audit.request(
            user=handler.person.name if isinstance(handler, Proxied) else "",
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
            return self.flower.answer(request, PlainText, status=HTTPStatus.NOT_FOUND, message="see /metrics")
        return self.flower.find_guarded_handler(request, self.flower.entrance.metrics_gate, **kwargs)


def _receiver(capp: Celery, options: OptionParser) -> Receiver:
    return Receiver(
        capp,
        io_loop=IOLoop.current(),
        db=options.db,
        persistent=options.persistent,
        state_save_interval=options.state_save_interval,
        enable_events=options.enable_events,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )


def _monitor(capp: Celery, options: OptionParser, receiver: Receiver) -> Monitor:
    return Monitor(
        capp,
        receiver,
        groups=options.metrics,
        buckets=options.task_runtime_metric_buckets,
        most_task_names=options.metrics_task_names,
        most_tasks=options.max_tasks,
        queues=options.queues,
    )


def _proxied(target: type[RequestHandler], options: UnproxiedOptions, route: str) -> type[RequestHandler]:
    handler = TrustedMetrics if target is Metrics else concrete_handler(target, options)
    mixin: type[Proxied] = Proxied
    if target is LoginHandler and handler is not NotFoundErrorHandler:
        mixin = ProxiedLogin
    elif issubclass(handler, BaseHandler):
        mixin = ProxiedFlower
    own_head = handler.head is not RequestHandler.head
    return type(handler.__name__, (mixin, handler), {"route": route, **({} if own_head else {"head": head})})


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


def _refuse_live_socket(path: str) -> None:
    """Raise OSError if somebody listens there; a file that a dead process left is replaced by Tornado."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_SECONDS_TO_CONNECT)
        probe.connect(path)
        raise OSError("another process listens on it")


def _remove_socket(path: str, inode: int) -> None:
    # Not one that another process has put there meanwhile
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
