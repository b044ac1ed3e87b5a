"""Who is asking? By a password, by a session of an OAuth provider, or by the word of a trusted proxy."""

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

_MAX_NAME = 200  # characters
_SECONDS_WHEN_BUSY = 1


@dataclass(frozen=True)
class Principal:
    """Who is asking.

    :ivar name: empty for nobody in particular.
    :ivar password_of: the user whose password has been shown; empty if none has.
    """

    name: str
    password_of: str = ""


class LoginFailure(enum.Enum):
    """Why a login failed, as the metric ``flower_proxy_login_failures_total`` calls it."""

    INVALID_CREDENTIALS = "invalid_credentials"
    RATE_LIMITED = "rate_limited"
    MALFORMED_AUTHORIZATION = "malformed_authorization"
    MALFORMED_USER_HEADER = "malformed_user_header"


class AccessDenied(Exception):  # noqa: N818  an answer, not a mistake
    """The request is not to be answered.

    :ivar status: the status to answer with.
    :ivar reason: a line for the one who asks; it holds nothing that is not theirs.
    :ivar retry_after: seconds, None where waiting does not help.
    :ivar failure: why the login failed, where somebody tried to log in; else None.
    :ivar user: who it was said to be then; empty if that could not be read.
    :ivar may_log_in: whether the OAuth provider's page is the way in.
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
    """What a request brings along to show who is asking.

    :ivar location: where it was sent to, and by whom.
    :ivar headers: its headers.
    :ivar session: returns the address that an OAuth provider has vouched for, None without a session.
    :ivar known_browser: returns what tells this browser from others that share its address, for a user who has logged
        in with it before; None for others.
    """

    location: Location
    headers: Headers
    session: Callable[[], str | None]
    known_browser: Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class PasswordCheck:
    """Finds out whose password a request brings along (RFC 7617).

    :ivar passwords: the right ones.
    :ivar throttle: limits failed attempts by address.
    :ivar browsers: limits those of browsers that have logged in before, so that no attacker who shares their address
        delays them; its table is a separate one, so that no attacker can fill it.
    """

    passwords: Verifier
    throttle: Throttle
    browsers: Throttle = field(default_factory=Throttle)

    async def identify(self, attempt: Attempt) -> Principal:
        """Tell who is asking.

        :raises AccessDenied: the password is missing, wrong, or was wrong too often.
        """
        try:
            credentials = read_authorization(attempt.headers.get_list("Authorization"))
        except CredentialsError as error:
            raise _failed(LoginFailure.MALFORMED_AUTHORIZATION, str(error)) from None
        if credentials is None:
            raise AccessDenied(HTTPStatus.UNAUTHORIZED, "log in first")
        user = credentials.user
        # Where no attempt has failed lately nothing is limited, and the cookie need not be verified
        if not (len(self.throttle) or len(self.browsers)) and self.passwords.knows(credentials):
            return Principal(user, password_of=user)
        browser = attempt.known_browser(user)
        client = browser or attempt.location.client
        throttle = self.browsers if browser else self.throttle
        if throttle.allows_comparison(client, user) and self.passwords.knows(credentials):
            return Principal(user, password_of=user)
        # Requests that wait for the same answer are one attempt
        counts = not self.passwords.is_checking(credentials)
        wait = throttle.reserve(client, user) if counts else throttle.wait(client, user)
        if wait:
            if self.passwords.has(user):
                throttle.count_comparison(client, user)
            raise _throttled(user, math.ceil(wait))
        try:
            right = await self.passwords.verify(credentials, Client(network_of(client), is_known=browser is not None))
        except Busy:
            right = None
        if counts and right is not False:
            throttle.give_back(client, user)
        if right is None:
            status, reason = HTTPStatus.SERVICE_UNAVAILABLE, "too many logins at once: try again"
            raise AccessDenied(status, reason, retry_after=_SECONDS_WHEN_BUSY)
        if not right:
            raise _failed(LoginFailure.INVALID_CREDENTIALS, "wrong user or password", user=user)
        return Principal(user, password_of=user)


@dataclass(frozen=True, kw_only=True)
class Authenticator:
    """Finds out who is asking.

    :ivar by_password: None where a password is no way in.
    :ivar may_enter: tells whether an address that an OAuth provider vouches for may enter; None where that is no way
        in.
    :ivar user_header: in which a trusted proxy names the user; None where that is no way in.
    :ivar allowed_hosts: names that are ours, as `hosts.parse_allowed_host` returns them.

    A trusted proxy's word is enough. Else, where both password and OAuth are ways in, both are asked for, as in Flower.
    Where nothing is a way in, whoever asks may enter.
    """

    by_password: PasswordCheck | None = None
    may_enter: Callable[[str], bool] | None = None
    user_header: str | None = None
    allowed_hosts: Collection[str] = ()

    @property
    def asks(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.by_password or self.may_enter or self.user_header)

    async def identify(self, attempt: Attempt) -> Principal:
        """Tell who is asking.

        :raises AccessDenied: nobody who may enter.
        """
        name = self._named_by_proxy(attempt)
        if name is not None or not self.asks:
            # A password or a session is shown by a browser where it believes to be; here nothing but the host's name is
            if reason := host_refusal(attempt.headers, attempt.location, self.allowed_hosts):
                raise AccessDenied(HTTPStatus.FORBIDDEN, reason)
            return Principal(name or "")
        principal = await self.by_password.identify(attempt) if self.by_password else None
        if self.may_enter is not None:
            address = attempt.session()
            if address is None or not self.may_enter(address):
                raise AccessDenied(HTTPStatus.FORBIDDEN, "log in first", may_log_in=True)
            return Principal(address, password_of=principal.password_of if principal else "")
        if principal is None:
            raise AccessDenied(
                HTTPStatus.FORBIDDEN, f"no proxy that is trusted has said who you are ({self.user_header})"
            )
        return principal

    def _named_by_proxy(self, attempt: Attempt) -> str | None:
        if self.user_header is None or not attempt.location.trusted:
            return None
        names = [_decode(line) for line in attempt.headers.get_list(self.user_header)]
        # A second line or a second name in a line may be the client's, also where the proxy's own is empty
        if len(names) > 1 or not all(map(_is_name, names)):
            expected = f"expected one line with one user name: printable, no comma, at most {_MAX_NAME} characters"
            reason = f"{self.user_header}: {expected}; let the proxy replace the header"
            raise AccessDenied(HTTPStatus.BAD_REQUEST, reason, failure=LoginFailure.MALFORMED_USER_HEADER)
        return names[0] or None if names else None


def _throttled(user: str, seconds: int) -> AccessDenied:
    reason = f"too many failed logins: wait {seconds} s"
    status, failure = HTTPStatus.TOO_MANY_REQUESTS, LoginFailure.RATE_LIMITED
    return AccessDenied(status, reason, retry_after=seconds, failure=failure, user=user)


def _failed(failure: LoginFailure, reason: str, *, user: str = "") -> AccessDenied:
    return AccessDenied(HTTPStatus.UNAUTHORIZED, reason, failure=failure, user=user)


def _is_name(text: str) -> bool:
    return text.isprintable() and "," not in text and len(text) <= _MAX_NAME


def _decode(line: str) -> str:
    # Tornado reads headers as latin-1; a name that is not ASCII was sent in UTF-8, or is taken as it is
    try:
        return line.encode("latin-1").decode().strip()
    except UnicodeError:
        return line.strip()
