"""Is it them? Passwords checked without stopping the event loop, and without telling which users there are."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from flower_proxy.credentials import Bcrypt, Credentials, Plain, Secret

_THREADS = 2
_MOST_VERIFIED = 1024

# Matches no password, in the time of one that does
_NOBODY = Plain(secrets.token_bytes(32))


class Busy(Exception):  # noqa: N818  as queue.Full and asyncio.QueueFull: it is no mistake
    """Too many checks are waiting; to be answered with 503."""


class Verifier:
    """Checks credentials.

    :param users: returns the users of the moment; called in the event loop.
    :param waiting: how many different checks may wait for one of the two threads.

    A wrong password takes as long as one for a user that does not exist, if all hashes are of the same cost.
    Credentials that were right once are known from then on, until the user's hash changes; no password is kept for it.
    """

    def __init__(self, users: Callable[[], Mapping[str, Secret]], waiting: int = 32) -> None:
        self._users = users
        self._most_checks = waiting + _THREADS
        self._key = secrets.token_bytes(32)
        # The names of credentials that were right; the one that was used last comes last
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._checks: dict[bytes, asyncio.Future[bool]] = {}
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="bcrypt")

    def knows(self, credentials: Credentials) -> bool:
        """Tell whether these are right, as far as can be told at once: never by bcrypt."""
        secret = self._users().get(credentials.user)
        if not isinstance(secret, Bcrypt):
            return (secret or _NOBODY).matches(credentials.password)
        name = self._name(credentials, secret)
        if name not in self._verified:
            return False
        self._verified.move_to_end(name)
        return True

    async def verify(self, credentials: Credentials) -> bool:
        """Tell whether these are right.

        :raises Busy: it cannot be told now.
        """
        if self.knows(credentials):
            return True
        hashed = self._hash_to_try(credentials.user)
        if hashed is None or not await self._check(credentials, hashed):
            return False
        # Not if there is another hash by now
        return hashed == self._users().get(credentials.user)

    def is_checking(self, credentials: Credentials) -> bool:
        """Tell whether these very credentials are being checked, so that `verify` would wait for the same answer."""
        hashed = self._hash_to_try(credentials.user)
        return hashed is not None and self._name(credentials, hashed) in self._checks

    def close(self) -> None:
        """Drop the checks that wait, and do not wait for those that run."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _hash_to_try(self, user: str) -> Bcrypt | None:
        """Return the user's hash; where there is none, one that takes as long: the time would tell who has one."""
        users = self._users()
        secret = users.get(user)
        if isinstance(secret, Bcrypt):
            return secret
        costs = [other.cost for other in users.values() if isinstance(other, Bcrypt)]
        return _nobody(max(costs)) if costs else None

    async def _check(self, credentials: Credentials, secret: Bcrypt) -> bool:
        name = self._name(credentials, secret)
        check = self._checks.get(name)
        if check is None:
            if len(self._checks) >= self._most_checks:
                raise Busy
            loop = asyncio.get_running_loop()
            check = loop.run_in_executor(self._executor, secret.matches, credentials.password)
            self._checks[name] = check
            check.add_done_callback(lambda check: self._done(name, check))
        # Who asked first may go away: others wait for the same check
        return await asyncio.shield(check)

    def _done(self, name: bytes, check: asyncio.Future[bool]) -> None:
        del self._checks[name]
        if not check.cancelled() and not check.exception() and check.result():
            self._verified[name] = None
            if len(self._verified) > _MOST_VERIFIED:
                self._verified.popitem(last=False)

    def _name(self, credentials: Credentials, secret: Bcrypt) -> bytes:
        parts = credentials.user.encode(), secret.hashed, credentials.password
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, message, "sha256")


def _nobody(cost: int) -> Bcrypt:
    # Looks like a hash, so that it takes the time; nothing hashes to it
    return Bcrypt(b"$2b$%02d$" % cost + b"." * 53)
