"""The access policy: which permission a request needs, who has it, and the gate in front of every handler.

What no handler declares to be open is closed.
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
"""Those of which nobody expects that they change something (RFC 9110, section 9.2.1)."""


class Permission(enum.Enum):
    """What a request needs.

    A handler declares it in its class attribute ``permission``. Where it declares none, READ is needed for the safe
    methods and CONTROL for all others; both require authentication.

    :cvar PUBLIC: nothing, whoever asks.
    :cvar LOG_IN: to be on the way to an OAuth provider; a password, where there are passwords.
    :cvar SCRAPE: to read the metrics.
    :cvar READ: to read, whatever the method.
    :cvar CONTROL: to act on workers and tasks.
    """

    PUBLIC = enum.auto()
    LOG_IN = enum.auto()
    SCRAPE = enum.auto()
    READ = enum.auto()
    CONTROL = enum.auto()

    @classmethod
    def of(cls, method: str) -> Permission:
        """Return what a request needs whose handler declares nothing."""
        return cls.READ if method in SAFE_METHODS else cls.CONTROL


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who may act, and who may only look.

    :ivar viewers: the names of those who may only look, as `fold` returns them.
    :ivar read_only: whether nobody may act.
    """

    viewers: Collection[str] = ()
    read_only: bool = False

    def may_control(self, principal: Principal) -> bool:
        return not self.read_only and fold(principal.name) not in self.viewers


def fold(name: str) -> str:
    """Return a name in the form in which names are compared: providers do not care for the case of an address."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Decides who may do what.

    :ivar authenticator: who may enter.
    :ivar scrapers: the password that is good for the metrics alone; None if there is none.
    :ivar scraper: whose it is.
    :ivar metrics_open: whether the metrics are for everybody.
    :ivar roles: who may act.
    :ivar cors_origins: origins whose pages may read.
    """

    authenticator: Authenticator
    scrapers: PasswordCheck | None = None
    scraper: str | None = None
    metrics_open: bool = False
    roles: Roles
    cors_origins: Collection[str] = ()

    async def admit(self, needed: Permission, attempt: Attempt, *, reads: bool) -> Principal:
        """Let a request pass.

        :param reads: whether its method is one that changes nothing.
        :returns: who is asking; whether they may act is for `roles` to say.
        :raises AccessDenied: it may not pass.
        """
        if needed is Permission.SCRAPE and self.metrics_open:
            return Principal("")
        # Before a password is asked for: the page of another site must not make a browser ask people for one
        if reason := site_refusal(attempt.headers, reads=reads, cors_origins=self.cors_origins):
            raise AccessDenied(HTTPStatus.FORBIDDEN, reason)
        if needed is Permission.LOG_IN:
            by_password = self.authenticator.by_password
            return await by_password.identify(attempt) if by_password else Principal("")
        # Where the pages are for everybody, who has a password for the metrics wants it asked for all the same
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
