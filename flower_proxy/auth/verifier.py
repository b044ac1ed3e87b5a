"""Verification of passwords beside the event loop, in a time that does not tell which users exist."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from flower_proxy._bounded import BoundedDict
from flower_proxy.auth.fair_queue import FairQueue
from flower_proxy.auth.passwords import Bcrypt, Credentials, Plain, Secret

_THREADS = 2
_MAX_WAITING_PER_CLIENT = 32
_MAX_WAITING = 128
_MAX_VERIFIED = 1024

# Matches no password, in the time of one that does
_NOBODY = Plain(secrets.token_bytes(32))


class Busy(Exception):  # noqa: N818  as queue.Full and asyncio.QueueFull: it is no mistake
    """Too many checks are waiting; to be answered with 503."""


@dataclass(frozen=True)
class Client:
    """The client of a check, for its fair share of the threads.

    :ivar name: its network, or whatever else tells it from others.
    :ivar is_known: whether it has logged in before; such clients are served first.
    """

    name: str
    is_known: bool = False


@dataclass(frozen=True, eq=False)
class _Check:
    name: bytes
    secret: Bcrypt
    password: bytes = field(repr=False)
    result: asyncio.Future[bool]


class Checks:
    """The bcrypt checks that run and wait.

    :param per_client: maximum number of checks of one client that wait for one of the two threads.
    :param total: maximum number of checks that wait, of known clients and of others each.

    Clients take turns, so that a flood from one of them delays any other by a single check. A flood from many clients
    delays the first login of unknown ones; it fails with `Busy` when there are more clients than the queue holds.
    """

    def __init__(self, per_client: int = _MAX_WAITING_PER_CLIENT, total: int = _MAX_WAITING) -> None:
        self._known: FairQueue[_Check] = FairQueue(per_client, total)
        self._others: FairQueue[_Check] = FairQueue(per_client, total)
        self._checks: dict[bytes, _Check] = {}
        self._running = 0
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="bcrypt")

    def __contains__(self, name: bytes) -> bool:
        return name in self._checks

    async def run(self, name: bytes, secret: Bcrypt, password: bytes, client: Client) -> bool:
        """Tell whether the password matches; checks of the same name at the same time are one.

        :raises Busy: the queue is full.
        """
        check = self._checks.get(name)
        if check is None:
            check = _Check(name, secret, password, asyncio.get_running_loop().create_future())
            self._checks[name] = check
            self._enqueue(check, client)
        # The first client may disconnect: others wait for the same check
        return await asyncio.shield(check.result)

    def close(self) -> None:
        """Drop the checks that wait, and do not wait for those that run."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for queue in (self._known, self._others):
            while queue:
                check = queue.pop()
                del self._checks[check.name]
                check.result.cancel()

    def _enqueue(self, check: _Check, client: Client) -> None:
        queue = self._known if client.is_known else self._others
        refused = queue.put(client.name, check)
        if refused is not None:
            del self._checks[refused.name]
            refused.result.set_exception(Busy())
        self._start()

    def _start(self) -> None:
        while self._running < _THREADS and (queue := self._known or self._others):
            check = queue.pop()
            self._running += 1
            running = asyncio.get_running_loop().run_in_executor(self._executor, check.secret.matches, check.password)
            running.add_done_callback(partial(self._finish, check))

    def _finish(self, check: _Check, running: asyncio.Future[bool]) -> None:
        self._running -= 1
        del self._checks[check.name]
        if running.cancelled():
            check.result.cancel()
        elif error := running.exception():
            check.result.set_exception(error)
        else:
            check.result.set_result(running.result())
        self._start()


class Verifier:
    """Verifies credentials.

    :param users: returns the current users; called in the event loop.
    :param checks: runs the bcrypt checks; several verifiers may share it.
    :param equal_to: returns the users whose refusal takes as long; `users` by default.

    A wrong password takes as long as one for a user that does not exist, if all hashes are of the same cost.
    Credentials that were right once are known from then on, until the user's hash changes; no password is kept for it.
    """

    def __init__(
        self,
        users: Callable[[], Mapping[str, Secret]],
        checks: Checks,
        equal_to: Callable[[], Mapping[str, Secret]] | None = None,
    ) -> None:
        self._users = users
        self._equal_to = equal_to or users
        self._checks = checks
        self._key = secrets.token_bytes(32)
        # The names of credentials that were right
        self._verified: BoundedDict[bytes, None] = BoundedDict(_MAX_VERIFIED)

    def has(self, user: str) -> bool:
        """Tell whether there is such a user."""
        return user in self._users()

    def knows(self, credentials: Credentials) -> bool:
        """Tell whether these are right, as far as can be told at once: never by bcrypt."""
        secret = self._users().get(credentials.user)
        if not isinstance(secret, Bcrypt):
            return (secret or _NOBODY).matches(credentials.password)
        return self._verified.touch(self._name(credentials, secret))

    async def verify(self, credentials: Credentials, client: Client) -> bool:
        """Tell whether these are right.

        :param client: waits for its turn, if the threads are busy.
        :raises Busy: it cannot be told now.
        """
        if self.knows(credentials):
            return True
        hashed = self._hash_to_try(credentials.user)
        if hashed is None:
            return False
        name = self._name(credentials, hashed)
        if not await self._checks.run(name, hashed, credentials.password, client):
            return False
        # Not if there is another hash by now
        if hashed != self._users().get(credentials.user):
            return False
        self._verified.put(name, None)
        return True

    def is_checking(self, credentials: Credentials) -> bool:
        """Tell whether these very credentials are being checked, so that `verify` would wait for the same answer."""
        hashed = self._hash_to_try(credentials.user)
        return hashed is not None and self._name(credentials, hashed) in self._checks

    def _hash_to_try(self, user: str) -> Bcrypt | None:
        """Return the user's hash; where there is none, one that takes as long: the time would tell who has one."""
        secret = self._users().get(user)
        if isinstance(secret, Bcrypt):
            return secret
        costs = [other.cost for other in self._equal_to().values() if isinstance(other, Bcrypt)]
        return _nobody(max(costs)) if costs else None

    def _name(self, credentials: Credentials, secret: Bcrypt) -> bytes:
        parts = credentials.user.encode(), secret.hashed, credentials.password
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, message, "sha256")


def _nobody(cost: int) -> Bcrypt:
    # Looks like a hash, so that it takes the time; nothing hashes to it
    return Bcrypt(b"$2b$%02d$" % cost + b"." * 53)
