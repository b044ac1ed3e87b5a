"""Mixins of all request handlers: authentication, response headers, and URLs and cookies below the public prefix."""

from __future__ import annotations

import hashlib
import secrets
from asyncio import Future
from collections.abc import Awaitable
from functools import cached_property, lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, cast
from urllib.parse import unquote, urlencode

from tornado.auth import AuthError
from tornado.escape import xhtml_escape
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from flower_proxy.auth.authenticator import AccessDenied, Attempt, Principal
from flower_proxy.auth.csrf import mask, refusal, unmask
from flower_proxy.auth.policy import SAFE_METHODS, AccessPolicy, Permission
from flower_proxy.proxy.location import Location, PublicURL
from flower_proxy.web import audit
from flower_proxy.web.compression import accepted_codings
from flower_proxy.web.limits import MAX_BODY
from flower_proxy.web.losses import end_note, missed_note
from flower_proxy.web.security_headers import OTHER_HEADERS, content_security_policy
from flower_proxy.web.static import packaged_overrides

BROWSER = "browser"
"""The name of the cookie that identifies a browser after a login with a password."""

_ANONYMOUS = "anonymous"

# Without a known prefix, only the browser can determine the base URL of relative links
_RELATIVE_LINKS = (packaged_overrides() / "js" / "relative_links.js").read_text(encoding="utf-8")


def set_location(request: HTTPServerRequest, location: Location, policy: AccessPolicy) -> None:
    """Rewrite a request so that to Flower's handlers it looks like a direct one, without a prefix."""
    query = request.uri.partition("?")[2] if request.uri else ""
    request.path = location.path
    request.uri = f"{location.path}?{query}" if query else location.path
    request.protocol = location.scheme
    request.host = location.host
    request.remote_ip = location.client
    # Tornado looks for the word, whatever its weight
    if "gzip" not in accepted_codings(request.headers.get("Accept-Encoding", "")):
        request.headers.pop("Accept-Encoding", None)
    vars(request).update(location=location, access_policy=policy)


def _of_user(cookie: bytes | None, user: str) -> str | None:
    """Return the cookie's value if it belongs to the user."""
    value = (cookie or b"").decode()
    return value if value.partition(" ")[2] == user else None


class SecurityHeadersMixin(RequestHandler):
    """Base class of all handlers: sets security headers and omits the Server header.

    :cvar route: the value of the ``route`` label in metrics.
    """

    route = "other"

    def set_default_headers(self) -> None:
        """Set the headers of every response."""
        super().set_default_headers()
        self.clear_header("Server")
        for name, value in OTHER_HEADERS.items():
            self.set_header(name, value)


class AuthMixin(SecurityHeadersMixin):
    """Mixin that authenticates and authorizes requests by the policy that `set_location` has attached.

    :cvar permission: the permission required; if missing, that of the method, see `Permission.of`.
    :cvar max_body: maximum size of a body in bytes.
    """

    application: Any
    max_body: ClassVar[int] = MAX_BODY
    permission: ClassVar[Permission]

    principal = Principal("")

    @cached_property
    def location(self) -> Location:
        """The public location of the request."""
        return cast(Location, vars(self.request)["location"])

    @cached_property
    def access_policy(self) -> AccessPolicy:
        """The access policy for the request."""
        return cast(AccessPolicy, vars(self.request)["access_policy"])

    def set_default_headers(self) -> None:
        """Set the headers of every response, with CSP and CORS headers where they apply."""
        super().set_default_headers()
        if issubclass(type(self), StaticFileHandler):
            self.clear_header("Cache-Control")
        else:
            self.set_header("Content-Security-Policy", self.application.policy)
        if self.access_policy.cors_origins:
            self._set_cors_headers()

    def _set_cors_headers(self) -> None:
        self.set_header("Vary", "Origin")
        if self._is_from_cors_origin():
            self.set_header("Access-Control-Allow-Origin", self.request.headers["Origin"])
            self.set_header("Access-Control-Allow-Credentials", "true")

    def _is_from_cors_origin(self) -> bool:
        return self.request.headers.get("Origin", "").lower() in self.access_policy.cors_origins

    # Authentication

    def prepare(self) -> Awaitable[None] | None:
        """Authenticate and authorize the request, unless the handler is public."""
        return super().prepare() if self._required is Permission.PUBLIC else self._authenticate()

    @cached_property
    def _required(self) -> Permission:
        declared = getattr(self, "permission", None)
        # A login provider's handler may have an unrelated attribute of this name
        return declared if isinstance(declared, Permission) else Permission.of(self.request.method or "")

    async def _authenticate(self) -> None:
        if self._is_preflight():
            self.set_header("Access-Control-Allow-Methods", "GET, HEAD")
            self.set_header("Access-Control-Allow-Headers", "Authorization")
            self.set_status(HTTPStatus.NO_CONTENT)
            self.finish()
            return
        reads = self.request.method in SAFE_METHODS
        attempt = Attempt(
            location=self.location,
            headers=self.request.headers,
            session=self._session,
            known_browser=self._known_browser,
        )
        try:
            self.principal = await self.access_policy.admit(self._required, attempt, reads=reads)
        except AccessDenied as denied:
            self._deny(denied)
            return
        if self._required is not Permission.LOG_IN:
            self.current_user = self.principal.name or _ANONYMOUS
        if not reads and (reason := refusal(self.request.headers, self.location, self._has_page_token)):
            raise HTTPError(HTTPStatus.FORBIDDEN, f"Refused: {reason}")
        if self._required is Permission.CONTROL and not self.may_control:
            raise HTTPError(HTTPStatus.FORBIDDEN, "Refused: read-only access")
        if (prepared := super().prepare()) is not None:
            await prepared

    @property
    def _log_fields(self) -> dict[str, str]:
        return {"client": self.location.client, "method": self.request.method or "", "path": self.location.path}

    def _is_preflight(self) -> bool:
        # Browsers send CORS preflight requests without credentials
        method = self.request.headers.get("Access-Control-Request-Method")
        return self.request.method == "OPTIONS" and method in ("GET", "HEAD") and self._is_from_cors_origin()

    def _deny(self, denied: AccessDenied) -> None:
        if denied.failure is not None:
            self.application.monitor.own.count_login_failure(denied.failure)
            audit.refused_login(**self._log_fields, user=denied.user, reason=denied.reason, status=denied.status)
        elif denied.status is HTTPStatus.FORBIDDEN and not denied.may_log_in:
            audit.refused_request(**self._log_fields, reason=denied.reason)
        if denied.may_log_in and self.request.method in ("GET", "HEAD"):
            self.redirect(self.get_login_url() + "?" + urlencode({"next": self.request.uri}))
            return
        self.set_status(denied.status)
        if denied.status is HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", 'Basic realm="flower", charset="UTF-8"')
        if denied.retry_after is not None:
            self.set_header("Retry-After", str(denied.retry_after))
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{denied.reason}\n")

    def _session(self) -> str | None:
        address = self.get_signed_cookie("user")
        return address.decode() if address else None

    def _known_browser(self, user: str) -> str | None:
        return _of_user(self.get_signed_cookie(BROWSER), user)

    @property
    def may_control(self) -> bool:
        """Whether the user may perform control actions."""
        return self.access_policy.roles.may_control(self.principal)

    @property
    def user_name(self) -> str | None:
        """The name of the authenticated user."""
        return self.principal.name or None

    def on_finish(self) -> None:
        """Log a control action of an authenticated user."""
        super().on_finish()
        if self._required is Permission.CONTROL and self.current_user:
            arguments = self.request.arguments.items()
            audit.control_action(
                user=self.principal.name,
                client=self.location.client,
                path=unquote(self.location.path),
                arguments={name: values[-1].decode(errors="replace") for name, values in arguments},
                status=self.get_status(),
            )

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log an exception, without the query, which contains the authorization code in an OAuth callback."""
        if not isinstance(value, (HTTPError, AuthError)):
            audit.failed_request(**self._log_fields, error=value)
        elif not isinstance(value, HTTPError):
            audit.refused_request(**self._log_fields, reason=f"authentication error: {value}")
        elif value.log_message:
            message = value.log_message % value.args if value.args else value.log_message
            audit.refused_request(**self._log_fields, reason=message)

    @cached_property
    def csp_nonce(self) -> str:
        """The nonce of the page's inline scripts."""
        return secrets.token_urlsafe(16)

    def render(self, template_name: str, **kwargs: Any) -> Future[None]:
        """Render a page with its CSP header, and renew the cookie of a browser that used a password."""
        user = self.principal.password_of
        if user and not _of_user(self.application.read_browser(self.get_cookie(BROWSER)), user):
            self.set_signed_cookie(BROWSER, f"{secrets.token_urlsafe(12)} {user}", httponly=True, samesite="Lax")
        policy = content_security_policy(self.csp_nonce, self.application.frame_ancestors)
        self.set_header("Content-Security-Policy", policy)
        return super().render(template_name, **kwargs)

    # Control actions

    @cached_property
    def xsrf_token(self) -> bytes:
        """The user's token for control actions, which each page contains masked."""
        return self.create_signed_value("page", str(self.current_user))

    def check_xsrf_cookie(self) -> None:
        """Check nothing: Tornado calls this before authentication, and `prepare` checks afterwards."""

    def _has_page_token(self) -> bool:
        token = unmask(self.request.headers.get("X-XSRFToken", ""))
        return bool(token) and self.get_signed_cookie("page", token) == str(self.current_user).encode()


class ProxyMixin(AuthMixin):
    """Mixin for URLs, pages and cookies at the public location."""

    # URLs

    def reverse_url(self, name: str, *args: Any) -> PublicURL:
        """Return the URL of a named route."""
        return self.location.url(super().reverse_url(name, *args))

    def static_url(self, path: str, include_host: bool | None = None, **kwargs: Any) -> PublicURL:
        """Return the URL of a static file, always without a host."""
        return self.location.url(super().static_url(path, include_host=False, **kwargs))

    def get_login_url(self) -> PublicURL:
        """Return the URL of the login page."""
        return self.location.url(super().get_login_url())

    def redirect(self, url: str, permanent: bool = False, status: int | None = None) -> None:
        """Redirect to a URL; the public prefix is added to an absolute path."""
        super().redirect(self.location.url(url) if url.startswith("/") else url, permanent, status)

    # Pages

    def get_template_path(self) -> str:
        """Return the key of the template loader in Tornado's cache, distinct from stock Flower's."""
        return "flower-proxy"

    def render_string(self, template_name: str, **kwargs: Any) -> bytes:
        """Render a template with the public prefix and the user's permissions."""
        kwargs["url_prefix"] = self.location.base
        kwargs["read_only"] = not self.may_control
        return super().render_string(template_name, **kwargs)

    @property
    def page_head(self) -> str:
        """HTML for the head of the page: its path, its token, and a script if the prefix is unknown."""
        # Without the leading slash, so that nginx's `sub_filter '="/' '="/flower/'` does not rewrite it
        page, token = xhtml_escape(self.location.path[1:]), mask(self.xsrf_token)
        head = f'<meta name="flower-page" content="{page}"><meta name="flower-token" content="{token}">'
        if self.location.prefix is not None:
            return head
        return f'{head}<script nonce="{self.csp_nonce}">{_RELATIVE_LINKS}</script>'

    @property
    def missed_note(self) -> str:
        """A note about tasks whose events did not arrive; empty if there are none."""
        app = self.application
        return missed_note({name: app.task_events.missed(name) for name in app.events.state.workers})

    @property
    def end_note(self) -> str:
        """A note about the end of the page's task; empty if it has not ended, or its event has arrived."""
        return end_note(self.application.monitor.ends.end_of(self.path_args[0]))

    # Cookies

    def get_cookie(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Return a cookie of this location."""
        return super().get_cookie(self._cookie_name(name), default)

    def set_cookie(self, name: str, value: str | bytes, *args: Any, **kwargs: Any) -> None:
        """Set a cookie for the public prefix only, Secure over HTTPS."""
        # Without a path, the browser uses the directory of the page, which for /login is the public prefix
        kwargs["path"] = None if self.location.prefix is None else self.location.prefix or "/"
        kwargs["secure"] = self.location.scheme == "https"
        super().set_cookie(self._cookie_name(name), value, *args, **kwargs)

    def _cookie_name(self, name: str) -> str:
        # The host's other ports and the paths below the prefix receive the cookie too, so its name must be unique
        return f"flower_{name}_{_digest(self.location.host, self.location.prefix)}"


@lru_cache(maxsize=256)
def _digest(host: str, prefix: str | None) -> str:
    return hashlib.sha256(f"{host}{prefix or ''}".encode()).hexdigest()[:8]
