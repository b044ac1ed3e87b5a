"""Flower's own handlers, each with what it needs mixed in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from tornado.auth import OAuth2Mixin
from tornado.routing import PathMatches, Rule
from tornado.web import RequestHandler, StaticFileHandler, stream_request_body

from flower_proxy._flower import (
    TASK_BODIES,
    WORKER_PAGES,
    Amended,
    BaseHandler,
    Healthcheck,
    Lean,
    LoginHandler,
    Metrics,
    NotFoundErrorHandler,
    TasksDataTable,
    UnproxiedOptions,
    concrete_handler,
)
from flower_proxy.auth.policy import Permission
from flower_proxy.proxy.paths import parse_next
from flower_proxy.web.handlers import Check, TrustedMetrics
from flower_proxy.web.limits import MAX_TASK_BODY
from flower_proxy.web.mixins import Proxied

_PERMISSIONS: Mapping[type[RequestHandler], Permission] = {
    StaticFileHandler: Permission.PUBLIC,
    Healthcheck: Permission.PUBLIC,
    # Its query comes by POST and changes nothing
    TasksDataTable: Permission.READ,
}

_SHOWS_WORKERS = (*WORKER_PAGES, TrustedMetrics, Check)


class Routes:
    """The routes of an application, and the class that answers in place of each one's handler.

    :param rules: its routes.
    :param options: Flower's, as it gets them.
    """

    def __init__(self, rules: Iterable[Rule], options: UnproxiedOptions) -> None:
        self._options = options
        self._classes: dict[type[RequestHandler], type[Proxied]] = {}
        # Without the last one, which matches everything
        self._pages = {
            rule.matcher.regex: rule.target
            for rule in rules
            if isinstance(rule.matcher, PathMatches) and rule.target is not NotFoundErrorHandler
        }
        self._names = {target: page.pattern.rstrip("$") for page, target in self._pages.items()}

    def is_page(self, path: str) -> bool:
        """Tell whether a path, without prefix, is one of Flower's pages or ours."""
        return any(page.match(path) for page in self._pages)

    def handler_for(self, target: type[RequestHandler]) -> type[Proxied]:
        """Return the class that answers in place of a handler."""
        handler = self._classes.get(target)
        if handler is None:
            route = self._names.get(target, Proxied.route)
            handler = self._classes[target] = proxied(target, self._options, route)
        return handler


def proxied(target: type[RequestHandler], options: UnproxiedOptions, route: str) -> type[Proxied]:
    """Return the class that answers in place of one that a route names.

    :param target: of Flower's, of Tornado's, or of ours.
    :param route: what it is called in the metrics.
    """
    handler = TrustedMetrics if target is Metrics else concrete_handler(target, options)
    bases: tuple[type[RequestHandler], ...] = (Proxied, handler)
    if target is LoginHandler and handler is not NotFoundErrorHandler:
        bases = (ProxiedLogin, handler)
    elif issubclass(handler, BaseHandler):
        bases = (ProxiedFlower, handler, Lean)
        if issubclass(handler, _SHOWS_WORKERS):
            bases = (ProxiedFlower, CurrentWorkers, handler, Lean)
        if issubclass(handler, TASK_BODIES):
            bases = (LargeBody, *bases)
    attributes: dict[str, Any] = {"route": route}
    for kind, permission in _PERMISSIONS.items():
        if issubclass(handler, kind):
            attributes["permission"] = permission
    if handler.head is RequestHandler.head:
        attributes["head"] = head
    return cast(type[Proxied], type(handler.__name__, bases, attributes))


class ProxiedFlower(Proxied, Amended):
    """A handler of Flower's."""


class CurrentWorkers(BaseHandler):
    """A handler that shows workers: one that is due to be forgotten is on no page when it is in no metric."""

    def prepare(self) -> Any:
        self.application.forget_workers()
        return super().prepare()


class ProxiedLogin(ProxiedFlower, OAuth2Mixin):
    """A login handler: brings people back to where they were going (P19)."""

    permission = Permission.LOG_IN

    def authorize_redirect(self, *args: Any, **kwargs: Any) -> None:
        if target := self._asked_next():
            self.set_signed_cookie("next", target, expires_days=1, httponly=True, samesite="Lax")
        super().authorize_redirect(*args, **kwargs)

    def get_argument(self, name: str, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        if name != "next":
            return super().get_argument(name, default, *args, **kwargs)
        # Good for one login
        carried = (self.get_signed_cookie("next") or b"").decode()
        self.clear_cookie("next")
        return parse_next(carried) or self._asked_next() or default

    def _asked_next(self) -> str | None:
        # Tornado's, because Flower's escapes it for HTML
        target = parse_next(RequestHandler.get_argument(self, "next", ""))
        # Who logs in is not on the way out
        return None if re.match(r"/log(in|out)/?(\?|$)", target or "") else target


@stream_request_body
class LargeBody(Proxied):
    """Takes a body only from a client that has been authenticated: Tornado calls `prepare` before it reads it."""

    max_body = MAX_TASK_BODY

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._received = bytearray()

    def data_received(self, chunk: bytes) -> None:
        self._received += chunk

    def post(self, *args: str, **kwargs: str) -> Any:
        self.request.body = bytes(self._received)
        return super().post(*args, **kwargs)


def head(self: RequestHandler, *args: str, **kwargs: str) -> Any:
    """Answer HEAD like GET; Tornado leaves the content away (P20)."""
    return self.get(*args, **kwargs)
