"""Flower's request handlers, combined with the mixins of flower-proxy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from tornado.auth import OAuth2Mixin
from tornado.escape import json_encode
from tornado.routing import PathMatches, Rule
from tornado.web import RequestHandler, StaticFileHandler, stream_request_body

from flower_proxy._flower import (
    HEARTBEAT_FIELDS,
    TASK_BODIES,
    WORKER_PAGES,
    BaseHandler,
    FlowerDefaults,
    FlowerOverrides,
    Healthcheck,
    ListTasks,
    LoginHandler,
    Metrics,
    NotFoundErrorHandler,
    TaskInfo,
    TasksDataTable,
    UnproxiedOptions,
    WorkersView,
    concrete_handler,
)
from flower_proxy.auth.policy import Permission
from flower_proxy.proxy.paths import parse_next
from flower_proxy.web.handlers import Check, TrustedMetrics
from flower_proxy.web.limits import MAX_TASK_BODY
from flower_proxy.web.mixins import ProxyMixin
from flower_proxy.web.task_search import TaskSearchMixin

_PERMISSIONS: Mapping[type[RequestHandler], Permission] = {
    StaticFileHandler: Permission.PUBLIC,
    Healthcheck: Permission.PUBLIC,
    # Its POST only queries
    TasksDataTable: Permission.READ,
}

_SHOWS_WORKERS = (*WORKER_PAGES, TrustedMetrics, Check)


class Routes:
    """The routes of an application, and the class that replaces each handler.

    :param rules: the routing rules.
    :param options: the options passed to Flower.
    """

    def __init__(self, rules: Iterable[Rule], options: UnproxiedOptions) -> None:
        self._options = options
        self._classes: dict[type[RequestHandler], type[ProxyMixin]] = {}
        # Except the catch-all route
        self._pages = {
            rule.matcher.regex: rule.target
            for rule in rules
            if isinstance(rule.matcher, PathMatches) and rule.target is not NotFoundErrorHandler
        }
        self._names = {target: page.pattern.rstrip("$") for page, target in self._pages.items()}

    def is_page(self, path: str) -> bool:
        """Return whether a path without prefix is a page of Flower or flower-proxy."""
        return any(page.match(path) for page in self._pages)

    def handler_for(self, target: type[RequestHandler]) -> type[ProxyMixin]:
        """Return the class that replaces a handler."""
        handler = self._classes.get(target)
        if handler is None:
            route = self._names.get(target, ProxyMixin.route)
            handler = self._classes[target] = proxied(target, self._options, route)
        return handler


def proxied(target: type[RequestHandler], options: UnproxiedOptions, route: str) -> type[ProxyMixin]:
    """Return a subclass of a handler with the mixins that it needs.

    :param target: the handler of a route: one of Flower, Tornado or flower-proxy.
    :param route: the value of its ``route`` label in metrics.
    """
    handler = TrustedMetrics if target is Metrics else concrete_handler(target, options)
    bases: tuple[type[RequestHandler], ...] = (ProxyMixin, handler)
    if target is LoginHandler and handler is not NotFoundErrorHandler:
        bases = (LoginMixin, handler)
    elif issubclass(handler, BaseHandler):
        bases = (FlowerMixin, handler, FlowerDefaults)
        if issubclass(handler, _SHOWS_WORKERS):
            bases = (FlowerMixin, PurgeMixin, handler, FlowerDefaults)
        if issubclass(handler, WorkersView):
            bases = (FlowerMixin, PurgeMixin, HeartbeatsMixin, handler, FlowerDefaults)
        if issubclass(handler, (ListTasks, TasksDataTable)):
            bases = (FlowerMixin, TaskSearchMixin, handler, FlowerDefaults)
        if issubclass(handler, TaskInfo):
            bases = (EndMixin, *bases)
        if issubclass(handler, TASK_BODIES):
            bases = (LargeBodyMixin, *bases)
    attributes: dict[str, Any] = {"route": route}
    for kind, permission in _PERMISSIONS.items():
        if issubclass(handler, kind):
            attributes["permission"] = permission
    if handler.head is RequestHandler.head:
        attributes["head"] = _head
    return cast(type[ProxyMixin], type(handler.__name__, bases, attributes))


class FlowerMixin(ProxyMixin, FlowerOverrides):
    """Mixin for Flower's handlers."""

    def compute_etag(self) -> str | None:
        """Return a weak ETag, since it is the same for the compressed response (RFC 9110, section 8.8.3.3)."""
        etag = super().compute_etag()
        return f"W/{etag}" if etag else None


class PurgeMixin(BaseHandler):
    """Mixin for handlers that show workers: pages and metrics omit a purged worker at the same time."""

    def prepare(self) -> Any:
        """Purge workers before the request is handled."""
        self.application.forget_workers()
        return super().prepare()


class HeartbeatsMixin(BaseHandler):
    """Mixin for the workers that the workers page requests again and again: heartbeats do not change their ETag."""

    _shown: bytes | None = None

    def write(self, chunk: Any) -> None:
        """Write the workers as JSON, or the page."""
        if isinstance(chunk, dict):
            shown = [{k: v for k, v in worker.items() if k not in HEARTBEAT_FIELDS} for worker in chunk["data"]]
            self._shown = json_encode(shown).encode()
        super().write(chunk)

    def compute_etag(self) -> str | None:
        """Return an ETag of what the page shows."""
        return super().compute_etag() if self._shown is None else f'"{hashlib.sha256(self._shown).hexdigest()}"'


class EndMixin(BaseHandler):
    """Mixin for a task in the API, which adds how its end is known if its event did not arrive."""

    def write(self, chunk: Any) -> None:
        """Write the fields of the task, with ``end`` if that is known."""
        if isinstance(chunk, dict) and (end := self.application.monitor.ends.end_of(self.path_args[0])):
            chunk = {**chunk, "end": end}
        super().write(chunk)


class LoginMixin(FlowerMixin, OAuth2Mixin):
    """Mixin for OAuth login handlers, which returns users to the page that they requested (mher/flower#703)."""

    permission = Permission.LOG_IN

    def authorize_redirect(self, *args: Any, **kwargs: Any) -> None:
        """Store the requested page in a cookie and redirect to the provider."""
        if target := self._requested_next():
            self.set_signed_cookie("next", target, expires_days=1, httponly=True, samesite="Lax")
        super().authorize_redirect(*args, **kwargs)

    def get_argument(self, name: str, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a request argument; ``next`` is read from the cookie first."""
        if name != "next":
            return super().get_argument(name, default, *args, **kwargs)
        # Valid for one login
        carried = (self.get_signed_cookie("next") or b"").decode()
        self.clear_cookie("next")
        return parse_next(carried) or self._requested_next() or default

    def _requested_next(self) -> str | None:
        # Tornado's method, because Flower's escapes the value for HTML
        target = parse_next(RequestHandler.get_argument(self, "next", ""))
        # Returning to the login or logout page would be a loop or end the session
        return None if re.match(r"/log(in|out)/?(\?|$)", target or "") else target


@stream_request_body
class LargeBodyMixin(ProxyMixin):
    """Mixin that reads a large body only after authentication: Tornado calls `prepare` before reading the body."""

    max_body = MAX_TASK_BODY

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Start with an empty body."""
        super().initialize(*args, **kwargs)
        self._received = bytearray()

    def data_received(self, chunk: bytes) -> None:
        """Append a chunk to the body."""
        self._received += chunk

    def post(self, *args: str, **kwargs: str) -> Any:
        """Handle POST: pass the received body to Flower's handler."""
        self.request.body = bytes(self._received)
        return super().post(*args, **kwargs)


def _head(self: RequestHandler, *args: str, **kwargs: str) -> Any:
    # Stock Flower answers 405 (mher/flower#945); Tornado omits the body
    return self.get(*args, **kwargs)
