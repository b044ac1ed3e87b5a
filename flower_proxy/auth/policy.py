"""May they? One gate in front of every handler: what is not on the short list of what is open is closed."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus

from tornado.web import RequestHandler, StaticFileHandler

from flower_proxy._flower import Healthcheck, Metrics, TasksDataTable
from flower_proxy.auth.authenticator import Attempt, Authenticator, Denied, PasswordCheck, Person, Roles
from flower_proxy.auth.csrf import site_refusal
from flower_proxy.auth.passwords import CredentialsError, read_authorization
from flower_proxy.check.report import Check
from flower_proxy.metrics.collector import Ready

OPEN = (StaticFileHandler, Healthcheck, Ready)
"""What is answered whoever asks."""

READING_POSTS = (TasksDataTable, Check)
"""What changes nothing although it is asked by POST."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Those of which nobody expects that they change something (RFC 9110, section 9.2.1)."""


class Access(enum.Enum):
    """What a request asks for."""

    OPEN = enum.auto()
    LOG_IN = enum.auto()
    SCRAPE = enum.auto()
    LOOK = enum.auto()
    ACT = enum.auto()


def access(handler: type[RequestHandler], method: str, *, is_login: bool = False) -> Access:
    """Tell what a request asks for.

    :param handler: what would answer it.
    :param is_login: whether that is the login page of an OAuth provider.
    """
    if issubclass(handler, OPEN):
        return Access.OPEN
    if is_login:
        return Access.LOG_IN
    if issubclass(handler, Metrics):
        return Access.SCRAPE
    reads = method in SAFE_METHODS or issubclass(handler, READING_POSTS)
    return Access.LOOK if reads else Access.ACT


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

    async def admit(self, wanted: Access, attempt: Attempt, *, reads: bool) -> Person:
        """Let a request pass.

        :param reads: whether its method is one that changes nothing.
        :returns: who is asking; whether they may act is for `roles` to say.
        :raises Denied: it may not pass.
        """
        if wanted is Access.SCRAPE and self.metrics_open:
            return Person("")
        # Before a password is asked for: the page of another site must not make a browser ask people for one
        if reason := site_refusal(attempt.headers, reads=reads, cors_origins=self.cors_origins):
            raise Denied(HTTPStatus.FORBIDDEN, reason)
        if wanted is Access.LOG_IN:
            by_password = self.authenticator.by_password
            return await by_password.identify(attempt) if by_password else Person("")
        # Where the pages are for everybody, who has a password for the metrics wants it asked for all the same
        if wanted is Access.SCRAPE and self.scrapers and self._is_scraper(attempt):
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
