"""The way of a request to its handler: who speaks, where are we, and how much may be sent."""

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

from flower_proxy.auth.policy import Gate
from flower_proxy.proxy.addresses import UNIX, normalize_peer
from flower_proxy.proxy.headers import HEADERS, ForwardedHeaderError
from flower_proxy.proxy.location import Locator
from flower_proxy.web.handlers import BodyTooLarge, PlainText, Redirect
from flower_proxy.web.limits import MAX_BODY, MAX_DISCARDED_BODY, oversized_body, oversized_head
from flower_proxy.web.mixins import set_location

logger = logging.getLogger(__name__)

_NOT_AN_ADDRESS = "0.0.0.0"  # noqa: S104  what Tornado calls the peer of a unix socket


class Routed(Protocol):
    """The application that answers."""

    def find_page(self, request: HTTPServerRequest) -> HTTPMessageDelegate:
        """Find the handler of a request that has its location, as Tornado does."""

    def answer(self, request: HTTPServerRequest, handler: type[RequestHandler], **kwargs: Any) -> HTTPMessageDelegate:
        """Let a handler answer that stands in front of the gate and needs no location."""


class PublicRouter(Router):
    """Finds what answers a request at its public location.

    :param application: answers, unaware of any prefix.
    :param locator: finds the location.
    :param gate: in front of everything that is answered.
    :param paths: the only ones that are answered; empty for all.
    """

    def __init__(self, application: Routed, locator: Locator, gate: Gate, *, paths: Sequence[str] = ()) -> None:
        self._application, self._locator, self._gate, self._paths = application, locator, gate, paths
        # Each peer once; the cache is bounded, so a flood of peers cannot fill it
        self._warn_untrusted = lru_cache(maxsize=256)(_warn_untrusted)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        answer, peer = self._application.answer, _name_peer(request)
        if self._paths and request.path not in self._paths:
            return answer(request, PlainText, status=HTTPStatus.NOT_FOUND, message=f"see {self._paths[0]}")
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
            logger.warning("%s, sent by %s", error, peer)
            return answer(request, PlainText, status=HTTPStatus.BAD_REQUEST, message=error.answer)
        if not location.path:
            # Relative, so that a part of the prefix which nobody told stays where it is (P1)
            return answer(request, Redirect, path=f"./{request.path.rpartition('/')[2]}/", status=308)
        if location.repeated:
            # What a proxy closes at one address must not be open at another; not for ever, as headers may decide it
            return answer(request, Redirect, path=location.url(location.path), status=307)
        set_location(request, location, self._gate)
        return self._application.find_page(request)

    def _ignore_headers(self, request: HTTPServerRequest, peer: str) -> None:
        user_header = self._gate.authenticator.user_header
        if any(name in request.headers for name in (*HEADERS, user_header or HEADERS[0])):
            self._warn_untrusted(peer)
        if user_header:
            # So that nothing below can take it for true
            request.headers.pop(user_header, None)


def limit_body(application: Routed, request: HTTPServerRequest, maximum: int) -> HTTPMessageDelegate | None:
    """Limit the body of a request.

    :param maximum: bytes.
    :returns: what answers if the body is larger; else None.
    """
    connection = cast(HTTP1Connection, request.connection)
    if problem := oversized_body(request.headers.get("Content-Length"), maximum):
        connection.set_max_body_size(MAX_DISCARDED_BODY)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return application.answer(request, BodyTooLarge, status=status, message=problem)
    if maximum != MAX_BODY:
        connection.set_max_body_size(maximum)
    return None


def _name_peer(request: HTTPServerRequest) -> str:
    """Replace the request's peer by its normal form, and return that."""
    remote = str(request.remote_ip)
    request.remote_ip = UNIX if remote == _NOT_AN_ADDRESS else normalize_peer(remote)
    return request.remote_ip


def _warn_untrusted(peer: str) -> None:
    logger.warning(
        "%s sends X-Forwarded headers and is not trusted, so they are ignored; if it is your proxy, add it:"
        " --trusted_proxies=%s",
        peer,
        peer,
    )
