"""What is mixed into each of Flower's handlers: the one place where links, cookies and redirects leave."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from tornado.auth import OAuth2Mixin
from tornado.escape import xhtml_escape
from tornado.web import HTTPError, RequestHandler, stream_request_body

from flower_proxy._flower import BaseHandler
from flower_proxy.events.queues import KombuQueues
from flower_proxy.proxy.location import PublicURL
from flower_proxy.proxy.paths import parse_next
from flower_proxy.web.mixins import Bare, Guarded
from flower_proxy.web.static import packaged_overrides

# Where nobody told the prefix only the browser can put right what relative links need
_UNTOLD = (packaged_overrides() / "js" / "untold.js").read_text(encoding="utf-8")


class Proxied(Guarded):
    """Any handler, answering at its public location."""

    # Links

    def reverse_url(self, name: str, *args: Any) -> PublicURL:
        return self.location.url(super().reverse_url(name, *args))

    def static_url(self, path: str, include_host: bool | None = None, **kwargs: Any) -> PublicURL:
        # Never a host: only the proxy knows the right one
        return self.location.url(super().static_url(path, include_host=False, **kwargs))

    def get_login_url(self) -> PublicURL:
        return self.location.url(super().get_login_url())

    def redirect(self, url: str, permanent: bool = False, status: int | None = None) -> None:
        super().redirect(self.location.url(url) if url.startswith("/") else url, permanent, status)

    # Pages

    def get_template_path(self) -> str:
        # What Tornado keeps the loader by; stock Flower in the same process has its own
        return "flower-proxy"

    def render_string(self, template_name: str, **kwargs: Any) -> bytes:
        kwargs["url_prefix"] = self.location.base
        kwargs["read_only"] = not self.may_act
        return super().render_string(template_name, **kwargs)

    @property
    def page_head(self) -> str:
        # No leading slash: `sub_filter '="/' '="/flower/'` would take it for a link
        page, token = xhtml_escape(self.location.path[1:]), self.xsrf_token.decode()
        head = f'<meta name="flower-page" content="{page}"><meta name="flower-token" content="{token}">'
        if self.location.prefix is not None:
            return head
        return f'{head}<script nonce="{self.csp_nonce}">{_UNTOLD}</script>'

    # Cookies

    def get_cookie(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        return super().get_cookie(self._cookie_name(name), default)

    def set_cookie(self, name: str, value: str | bytes, *args: Any, **kwargs: Any) -> None:
        # Without a path the browser takes the folder of the page, which for /login is the public prefix
        kwargs["path"] = None if self.location.prefix is None else self.location.prefix or "/"
        kwargs["secure"] = self.location.scheme == "https"
        super().set_cookie(self._cookie_name(name), value, *args, **kwargs)

    def _cookie_name(self, name: str) -> str:
        # A cookie is seen by everything below its path, and by every port of the host
        return f"flower_{name}_{_digest(self.location.host, self.location.prefix)}"


@lru_cache(maxsize=256)
def _digest(host: str, prefix: str | None) -> str:
    return hashlib.sha256(f"{host}{prefix or ''}".encode()).hexdigest()[:8]


class ProxiedFlower(Proxied, BaseHandler):  # type: ignore[misc]
    """A handler of Flower's."""

    def get_current_user(self) -> None:
        """Nobody, as long as `prepare` has not found out who."""

    def get_argument(self, name: str, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        value = super().get_argument(name, default, *args, **kwargs)
        # Flower answers 500 to an order that is empty
        return default if name == "sort_by" and value == "" else value

    def get_broker(self) -> Any:
        try:
            return super().get_broker()
        except HTTPError as error:
            if error.status_code != 404:
                raise
            return KombuQueues(self.capp)


class ProxiedLogin(ProxiedFlower, OAuth2Mixin):
    """A login handler: brings people back to where they were going (P19)."""

    is_login = True

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
class LargeBody(RequestHandler):
    """Takes a body only from a client that has been authenticated: Tornado calls `prepare` before it reads it."""

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


class _Answer(Bare):
    """Answers whatever the method, before anything is looked up or done."""

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here that another site could want."""


class Redirect(_Answer):
    """Sends a request on to the right address of the same page, with its query."""

    def initialize(self, path: str, status: int) -> None:
        self.path, self.status = path, status

    def prepare(self) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(self.path + query, status=self.status)


class PlainText(_Answer):
    """Answers a line of text."""

    def initialize(self, status: HTTPStatus, message: str) -> None:
        self.status, self.message = status, message

    def prepare(self) -> None:
        self.set_status(self.status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self.message}\n")


@stream_request_body
class BodyTooLarge(PlainText):
    """Answers once the body has been sent and dropped: an earlier answer could be lost with the connection."""

    def prepare(self) -> None:
        """Wait for the body."""

    def data_received(self, chunk: bytes) -> None:
        """Drop it."""

    def get(self) -> None:
        super().prepare()

    head = post = put = patch = delete = options = get
