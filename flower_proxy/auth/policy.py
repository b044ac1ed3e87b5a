"""The access policy: permissions, roles and the check of every request.

Handlers require authentication unless they declare another permission.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus

from flower_proxy.auth.authenticator import AccessDenied, Attempt, Authenticator, PasswordCheck, Principal
from flower_proxy.auth.csrf import site_refusal
from flower_proxy.auth.passwords import CredentialsError, read_authorization

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""The safe methods that are supported (RFC 9110, section 9.2.1)."""


class Permission(enum.Enum):
    """The permission that a request requires.

    A handler declares it in its class attribute ``permission``. The default is READ for safe methods and CONTROL for
    others; both require authentication.

    :cvar PUBLIC: no authentication.
    :cvar LOG_IN: the OAuth login; requires a password if passwords are configured.
    :cvar SCRAPE: metrics.
    :cvar READ: read access, with any method.
    :cvar CONTROL: control of workers and tasks.
    """

    PUBLIC = enum.auto()
    LOG_IN = enum.auto()
    SCRAPE = enum.auto()
    READ = enum.auto()
    CONTROL = enum.auto()

    @classmethod
    def of(cls, method: str) -> Permission:
        """Return the default permission for a method."""
        return cls.READ if method in SAFE_METHODS else cls.CONTROL


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The roles: viewers with read-only access, and operators.

    :ivar viewers: the user names of viewers, as `fold` returns them.
    :ivar read_only: whether all users are viewers.
    """

    viewers: Collection[str] = ()
    read_only: bool = False

    def may_control(self, principal: Principal) -> bool:
        """Return whether a user may control workers and tasks."""
        return not self.read_only and fold(principal.name) not in self.viewers


def fold(name: str) -> str:
    """Return a user name normalized for comparison: e-mail addresses are case-insensitive for providers."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


@dataclass(frozen=True, kw_only=True)
class AccessPolicy:
    """The access policy that every request must pass.

    :ivar authenticator: the authentication methods.
    :ivar scrapers: the password check of the scraper, valid for metrics only; None if disabled.
    :ivar scraper: the scraper's user name.
    :ivar metrics_open: whether the metrics are public.
    :ivar roles: the roles of users.
    :ivar cors_origins: origins that may read.
    """

    authenticator: Authenticator
    scrapers: PasswordCheck | None = None
    scraper: str | None = None
    metrics_open: bool = False
    roles: Roles
    cors_origins: Collection[str] = ()

    async def admit(self, needed: Permission, attempt: Attempt, *, reads: bool) -> Principal:
        """Authenticate a request and check the access policy, except for `roles`.

        :param needed: the permission that the handler requires.
        :param reads: whether the method is safe.
        :returns: the authenticated client.
        :raises AccessDenied: the policy denies the request.
        """
        if needed is Permission.SCRAPE and self.metrics_open:
            return Principal("")
        # Checked before authentication, so that another site cannot trigger the browser's password prompt
        if reason := site_refusal(attempt.headers, reads=reads, cors_origins=self.cors_origins):
            raise AccessDenied(HTTPStatus.FORBIDDEN, reason)
        if needed is Permission.LOG_IN:
            password_check = self.authenticator.password_check
            return await password_check.identify(attempt) if password_check else Principal("")
        # The scraper's password protects the metrics even if authentication is disabled
        if needed is Permission.SCRAPE and self.scrapers and self._is_scraper(attempt):
            return await self.scrapers.identify(attempt)
        return await self.authenticator.identify(attempt)

    def _is_scraper(self, attempt: Attempt) -> bool:
        return not self.authenticator.asks or _user(attempt) == self.scraper


def _user(attempt: Attempt) -> str | None:
    try:
        credentials = read_authorization(attempt.headers.get_list("Authorization"))
    except CredentialsError:
        return None
    return credentials.user if credentials else None
