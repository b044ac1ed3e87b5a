"""Routing of requests: peer, public location, size limits, handler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import RequestHandler

from flower_proxy.auth.policy import AccessPolicy
from flower_proxy.proxy.addresses import UNIX, normalize_peer
from flower_proxy.proxy.headers import HEADERS, ForwardedHeaderError
from flower_proxy.proxy.location import Locator
from flower_proxy.web.handlers import BodyTooLarge, PlainText, Redirect
from flower_proxy.web.limits import MAX_BODY, MAX_DISCARDED_BODY, oversized_body, oversized_head
from flower_proxy.web.mixins import set_location

logger = logging.getLogger(__name__)

_TORNADO_UNIX_PEER = "0.0.0.0"  # noqa: S104  Tornado's remote_ip for unix sockets


class Routed(Protocol):
    """The interface of the application to `PublicRouter`."""

    def find_page(self, request: HTTPServerRequest) -> HTTPMessageDelegate:
        """Route a request that has a location to a page of Flower or flower-proxy."""

    def answer(self, request: HTTPServerRequest, handler: type[RequestHandler], **kwargs: Any) -> HTTPMessageDelegate:
        """Answer a request with a handler that requires neither a location nor authentication."""


class PublicRouter(Router):
    """A router that determines the public location of a request and hides it from the application.

    :param application: the application, which is unaware of any prefix.
    :param locator: determines the location.
    :param policy: the access policy for all requests.
    :param paths: the only paths served; empty for all.
    """

    def __init__(
        self, application: Routed, locator: Locator, policy: AccessPolicy, *, paths: Sequence[str] = ()
    ) -> None:
        self._application, self._locator, self._policy, self._paths = application, locator, policy, paths
        # The cache limits the log to one warning per peer
        self._warn_untrusted = lru_cache(maxsize=256)(_warn_untrusted)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        """Return the delegate of the page, or of a redirect or an error response."""
        answer, peer = self._application.answer, _normalize_peer(request)
        if self._paths and request.path not in self._paths:
            return answer(request, PlainText, status=HTTPStatus.NOT_FOUND, message=f"Not found; see {self._paths[0]}")
        if problem := oversized_head(request.uri or "", request.headers):
            return answer(request, PlainText, status=HTTPStatus.BAD_REQUEST, message=problem)
        if peer not in self._locator.trusted:
            self._ignore_headers(request, peer)
        try:
            location = self._locator.locate(
                peer=peer,
                scheme=request.protocol,
                host=request.host,
                path=request.path,
                headers=request.headers,
            )
        except ForwardedHeaderError as error:
            logger.warning("Answered 400 to %s: %s", peer, error)
            return answer(request, PlainText, status=HTTPStatus.BAD_REQUEST, message=error.answer)
        if not location.path:
            # Relative, because the proxy may have stripped another part of the prefix (mher/flower#1207)
            return answer(request, Redirect, path=f"./{request.path.rpartition('/')[2]}/", status=308)
        if location.repeated:
            # Repeating the prefix must not bypass access rules of the proxy; temporary, as it can depend on headers
            return answer(request, Redirect, path=location.url(location.path), status=307)
        set_location(request, location, self._policy)
        return self._application.find_page(request)

    def _ignore_headers(self, request: HTTPServerRequest, peer: str) -> None:
        user_header = self._policy.authenticator.user_header
        if any(name in request.headers for name in (*HEADERS, user_header or HEADERS[0])):
            self._warn_untrusted(peer)
        if user_header:
            # No handler may trust the header of an untrusted peer
            request.headers.pop(user_header, None)


def limit_body(application: Routed, request: HTTPServerRequest, maximum: int) -> HTTPMessageDelegate | None:
    """Limit the size of a request's body.

    :param maximum: bytes.
    :returns: the delegate of a 413 response if the body is larger; else None.
    """
    connection = cast(HTTP1Connection, request.connection)
    if problem := oversized_body(request.headers.get("Content-Length"), maximum):
        connection.set_max_body_size(MAX_DISCARDED_BODY)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return application.answer(request, BodyTooLarge, status=status, message=problem)
    if maximum != MAX_BODY:
        connection.set_max_body_size(maximum)
    return None


def _normalize_peer(request: HTTPServerRequest) -> str:
    """Normalize the peer address of a request in place, and return it."""
    remote = str(request.remote_ip)
    request.remote_ip = UNIX if remote == _TORNADO_UNIX_PEER else normalize_peer(remote)
    return request.remote_ip


def _warn_untrusted(peer: str) -> None:
    logger.warning(
        "Ignored forwarded headers from %s, which is not trusted; if it is your proxy, add --trusted_proxies=%s",
        peer,
        peer,
    )
