"""Verification of passwords outside the event loop, without disclosing by its time which users exist."""

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

# Matches no password, in the same time
_UNMATCHABLE = Plain(secrets.token_bytes(32))


class Busy(Exception):  # noqa: N818  named like queue.Full and asyncio.QueueFull
    """The queue of checks is full; the response is 503."""


@dataclass(frozen=True)
class Client:
    """The client of a check, for fair queuing.

    :ivar name: its network, or another identifier.
    :ivar is_known: whether it has logged in before; known clients are served first.
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
    """The running and queued bcrypt checks.

    :param per_client: maximum number of queued checks of one client.
    :param total: maximum number of queued checks, for known and for unknown clients each.

    Clients are served round robin, so a flood from one client delays any other by a single check. A flood from many
    clients delays the first login of unknown clients, which fails with `Busy` if the queue is too short for all.
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
        """Return whether the password matches; concurrent checks of the same name run once.

        :raises Busy: the queue is full.
        """
        check = self._checks.get(name)
        if check is None:
            check = _Check(name, secret, password, asyncio.get_running_loop().create_future())
            self._checks[name] = check
            self._enqueue(check, client)
        # Other requests may wait for the same check after the first client disconnects
        return await asyncio.shield(check.result)

    def close(self) -> None:
        """Drop queued checks, without waiting for running ones."""
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
    :param checks: runs the bcrypt checks; verifiers may share it.
    :param timing_reference: returns the users whose hashes determine the time of a denial; `users` by default.

    A wrong password takes as long as an unknown user, if all hashes have the same cost. Verified credentials are cached
    as keyed digests until the user's hash changes.
    """

    def __init__(
        self,
        users: Callable[[], Mapping[str, Secret]],
        checks: Checks,
        timing_reference: Callable[[], Mapping[str, Secret]] | None = None,
    ) -> None:
        self._users = users
        self._timing_reference = timing_reference or users
        self._checks = checks
        self._key = secrets.token_bytes(32)
        # The names of verified credentials
        self._verified: BoundedDict[bytes, None] = BoundedDict(_MAX_VERIFIED)

    def has(self, user: str) -> bool:
        """Return whether the user exists."""
        return user in self._users()

    def knows(self, credentials: Credentials) -> bool:
        """Return whether the credentials are known to be valid, without running bcrypt."""
        secret = self._users().get(credentials.user)
        if not isinstance(secret, Bcrypt):
            return (secret or _UNMATCHABLE).matches(credentials.password)
        return self._verified.touch(self._name(credentials, secret))

    async def verify(self, credentials: Credentials, client: Client) -> bool:
        """Return whether the credentials are valid.

        :param client: the client, for fair queuing.
        :raises Busy: the queue is full.
        """
        if self.knows(credentials):
            return True
        hashed = self._hash_to_try(credentials.user)
        if hashed is None:
            return False
        name = self._name(credentials, hashed)
        if not await self._checks.run(name, hashed, credentials.password, client):
            return False
        # The hash may have changed during the check
        if hashed != self._users().get(credentials.user):
            return False
        self._verified.put(name, None)
        return True

    def is_checking(self, credentials: Credentials) -> bool:
        """Return whether the same credentials are already being checked."""
        hashed = self._hash_to_try(credentials.user)
        return hashed is not None and self._name(credentials, hashed) in self._checks

    def _hash_to_try(self, user: str) -> Bcrypt | None:
        """Return the user's hash; without one, an unmatchable hash, so that the time does not disclose users."""
        secret = self._users().get(user)
        if isinstance(secret, Bcrypt):
            return secret
        costs = [other.cost for other in self._timing_reference().values() if isinstance(other, Bcrypt)]
        return _unmatchable_hash(max(costs)) if costs else None

    def _name(self, credentials: Credentials, secret: Bcrypt) -> bytes:
        parts = credentials.user.encode(), secret.hashed, credentials.password
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, message, "sha256")


def _unmatchable_hash(cost: int) -> Bcrypt:
    # Well-formed, so that bcrypt takes its time, but no password hashes to it
    return Bcrypt(b"$2b$%02d$" % cost + b"." * 53)
