"""Authentication by password, OAuth session, or a user header from a trusted proxy."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus

from flower_proxy.auth.hosts import host_refusal
from flower_proxy.auth.passwords import CredentialsError, read_authorization
from flower_proxy.auth.throttle import Throttle, network_of
from flower_proxy.auth.verifier import Busy, Client, Verifier
from flower_proxy.proxy.headers import Headers
from flower_proxy.proxy.location import Location

_MAX_USER_LENGTH = 200  # characters
_BUSY_RETRY_AFTER = 1  # seconds
_AUTHENTICATION_REQUIRED = "authentication required"


@dataclass(frozen=True)
class Principal:
    """The client of a request, after authentication.

    :ivar name: the user; empty for an anonymous client.
    :ivar password_of: the user whose password was verified; empty if no password was sent.
    """

    name: str
    password_of: str = ""


class LoginFailure(enum.Enum):
    """Reasons for failed logins: label values of the metric ``flower_proxy_login_failures_total``."""

    INVALID_CREDENTIALS = "invalid_credentials"
    RATE_LIMITED = "rate_limited"
    MALFORMED_AUTHORIZATION = "malformed_authorization"
    MALFORMED_USER_HEADER = "malformed_user_header"


class AccessDenied(Exception):  # noqa: N818  a response, not a bug
    """Denial of a request.

    :ivar status: the HTTP status of the response.
    :ivar reason: one line for the client; it discloses nothing the client did not send.
    :ivar retry_after: seconds; None if retrying does not help.
    :ivar failure: the reason of a failed login; None if the client did not attempt one.
    :ivar user: the user of the failed login; empty if unknown.
    :ivar may_log_in: whether the client should be redirected to the OAuth provider.
    """

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        *,
        retry_after: int | None = None,
        failure: LoginFailure | None = None,
        user: str = "",
        may_log_in: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.failure = failure
        self.user = user
        self.may_log_in = may_log_in


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Input of the authentication of one request.

    :ivar location: the public location, with peer and client.
    :ivar headers: the request's headers.
    :ivar session: returns the e-mail address of the OAuth session; None without a session.
    :ivar known_browser: returns the identifier of a browser in which this user logged in before; None for others.
    """

    location: Location
    headers: Headers
    session: Callable[[], str | None]
    known_browser: Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class PasswordCheck:
    """HTTP Basic authentication (RFC 7617) with rate limits.

    :ivar passwords: verifies credentials.
    :ivar throttle: limits failed attempts by address.
    :ivar browsers: limits failed attempts of known browsers, so that an attacker behind the same address does not delay
        them; its table is separate, so that an attacker cannot fill it.
    """

    passwords: Verifier
    throttle: Throttle
    browsers: Throttle = field(default_factory=Throttle)

    async def identify(self, attempt: Attempt) -> Principal:
        """Authenticate a request by its password.

        :raises AccessDenied: the credentials are missing or invalid, or the client exceeded the rate limit.
        """
        try:
            credentials = read_authorization(attempt.headers.get_list("Authorization"))
        except CredentialsError as error:
            raise _failed(LoginFailure.MALFORMED_AUTHORIZATION, str(error)) from None
        if credentials is None:
            raise AccessDenied(HTTPStatus.UNAUTHORIZED, _AUTHENTICATION_REQUIRED)
        user = credentials.user
        # Without recent failures no limit applies, so the cookie need not be verified
        if not (len(self.throttle) or len(self.browsers)) and self.passwords.knows(credentials):
            return Principal(user, password_of=user)
        browser = attempt.known_browser(user)
        client = browser or attempt.location.client
        throttle = self.browsers if browser else self.throttle
        if throttle.allows_comparison(client, user) and self.passwords.knows(credentials):
            return Principal(user, password_of=user)
        # Concurrent requests with the same credentials count as one attempt
        counts = not self.passwords.is_checking(credentials)
        wait = throttle.reserve(client, user) if counts else throttle.wait(client, user)
        if wait:
            if self.passwords.has(user):
                throttle.count_comparison(client, user)
            raise _throttled(user, math.ceil(wait))
        try:
            valid = await self.passwords.verify(credentials, Client(network_of(client), is_known=browser is not None))
        except Busy:
            valid = None
        if counts and valid is not False:
            throttle.give_back(client, user)
        if valid is None:
            status, reason = HTTPStatus.SERVICE_UNAVAILABLE, "too many concurrent logins; try again"
            raise AccessDenied(status, reason, retry_after=_BUSY_RETRY_AFTER)
        if not valid:
            raise _failed(LoginFailure.INVALID_CREDENTIALS, "wrong user or password", user=user)
        return Principal(user, password_of=user)


@dataclass(frozen=True, kw_only=True)
class Authenticator:
    """The configured authentication methods.

    :ivar password_check: HTTP Basic authentication; None if disabled.
    :ivar is_allowed: returns whether the user of an OAuth session has access; None if OAuth is disabled.
    :ivar user_header: the header in which a trusted proxy sends the user; None if disabled.
    :ivar allowed_hosts: additional values of ``Host``, as `hosts.parse_allowed_host` returns them.

    A user header from a trusted proxy is sufficient. Otherwise, if both password and OAuth are configured, both are
    required, as in Flower. Without any method, clients are anonymous.
    """

    password_check: PasswordCheck | None = None
    is_allowed: Callable[[str], bool] | None = None
    user_header: str | None = None
    allowed_hosts: Collection[str] = ()

    @property
    def asks(self) -> bool:
        """Whether authentication is required."""
        return bool(self.password_check or self.is_allowed or self.user_header)

    async def identify(self, attempt: Attempt) -> Principal:
        """Authenticate a request.

        :raises AccessDenied: authentication failed, or the host is not allowed.
        """
        name = self._forwarded_user(attempt)
        if name is not None or not self.asks:
            # Browsers bind passwords and sessions to the host; without them DNS rebinding must be prevented here
            if reason := host_refusal(attempt.headers, attempt.location, self.allowed_hosts):
                raise AccessDenied(HTTPStatus.FORBIDDEN, reason)
            return Principal(name or "")
        principal = await self.password_check.identify(attempt) if self.password_check else None
        if self.is_allowed is not None:
            address = attempt.session()
            if address is None or not self.is_allowed(address):
                raise AccessDenied(HTTPStatus.FORBIDDEN, _AUTHENTICATION_REQUIRED, may_log_in=True)
            return Principal(address, password_of=principal.password_of if principal else "")
        if principal is None:
            raise AccessDenied(HTTPStatus.FORBIDDEN, f"no trusted proxy sent {self.user_header}")
        return principal

    def _forwarded_user(self, attempt: Attempt) -> str | None:
        if self.user_header is None or not attempt.location.trusted:
            return None
        names = [_decode(line) for line in attempt.headers.get_list(self.user_header)]
        # The client may have sent a second line or name, even if the proxy's own is empty
        if len(names) > 1 or not all(map(_is_name, names)):
            expected = (
                f"expected one line with one user name: printable, no comma, at most {_MAX_USER_LENGTH} characters"
            )
            reason = f"{self.user_header}: {expected}; let the proxy replace the header"
            raise AccessDenied(HTTPStatus.BAD_REQUEST, reason, failure=LoginFailure.MALFORMED_USER_HEADER)
        return names[0] or None if names else None


def _throttled(user: str, seconds: int) -> AccessDenied:
    reason = f"too many failed logins; retry in {seconds} s"
    status, failure = HTTPStatus.TOO_MANY_REQUESTS, LoginFailure.RATE_LIMITED
    return AccessDenied(status, reason, retry_after=seconds, failure=failure, user=user)


def _failed(failure: LoginFailure, reason: str, *, user: str = "") -> AccessDenied:
    return AccessDenied(HTTPStatus.UNAUTHORIZED, reason, failure=failure, user=user)


def _is_name(text: str) -> bool:
    return text.isprintable() and "," not in text and len(text) <= _MAX_USER_LENGTH


def _decode(line: str) -> str:
    # Tornado decodes headers as Latin-1, but proxies send non-ASCII names in UTF-8
    try:
        return line.encode("latin-1").decode().strip()
    except UnicodeError:
        return line.strip()
