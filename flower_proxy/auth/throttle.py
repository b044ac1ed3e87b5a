"""Rate limits for failed logins."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address

from flower_proxy.proxy.addresses import parse_address

_ADDRESS_BITS, _NETWORK_BITS = 64, 48  # of IPv6
_USERS_PER_NETWORK = 10
_PURGE_INTERVAL = 1.0  # seconds
_ROUNDING = 1e-6  # seconds
_SHARED = b""


class Throttle:
    """Limits failed logins by token buckets.

    :param max_attempts: capacity of a user's bucket: failed attempts in a burst.
    :param refill_interval: seconds after which one more attempt is allowed.
    :param clock: returns the time in seconds.
    :param max_buckets: maximum number of buckets of each kind.

    ========================  ================================  =========  ============
    bucket                    key                               capacity   refill
    ========================  ================================  =========  ============
    user and address          IPv4 address, IPv6 /64            10         one in 30 s
    network                   IPv4 address, IPv6 /48            100        one in 3 s
    ========================  ================================  =========  ============

    An attempt takes a token from both, so one network never has more than 200 user buckets, whatever names it tries.
    Buckets are kept until they are full again, since dropping one earlier would return its tokens. When the table is
    full, clients without a bucket share one.

    Users behind one address (NAT, a proxy that sends no ``X-Forwarded-For``) share its limits with an attacker there.
    Attempts at one name delay only that user. A hundred attempts at any names delay the first login of every user at
    that address, but neither passwords that were verified before nor known browsers. An attacker with several networks
    has that many times the attempts.
    """

    def __init__(
        self,
        max_attempts: int = 10,
        refill_interval: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        max_buckets: int = 50_000,
    ) -> None:
        self._clock = clock
        self._users = _Buckets(max_attempts, refill_interval, max_buckets)
        self._networks = _Buckets(max_attempts * _USERS_PER_NETWORK, refill_interval / _USERS_PER_NETWORK, max_buckets)

    def wait(self, client: str, user: str) -> float:
        """Return the seconds until an attempt is allowed, without counting one.

        :param client: an IP address, or any other identifier.
        """
        if not len(self):
            return 0.0
        now = self._clock()
        return max(self._users.wait(_user_key(client, user), now), self._networks.wait(_network_key(client), now))

    def reserve(self, client: str, user: str) -> float:
        """Count an attempt before the password is checked, so that concurrent attempts are limited.

        :returns: the seconds until an attempt is allowed; 0.0 if this one was counted.
        """
        wait = self.wait(client, user)
        if not wait:
            now = self._clock()
            self._users.take(_user_key(client, user), now)
            self._networks.take(_network_key(client), now)
        return wait

    def give_back(self, client: str, user: str) -> None:
        """Return the tokens of an attempt whose password was valid or not checked."""
        now = self._clock()
        self._users.give_back(_user_key(client, user), now)
        self._networks.give_back(_network_key(client), now)

    def allows_comparison(self, client: str, user: str) -> bool:
        """Return whether a password may be compared with the verified ones.

        Users whose password was verified before are not delayed by other attempts from the same network, so the
        comparison needs a limit of its own against guessing.
        """
        if not len(self):
            return True
        now = self._clock()
        if self._users.wait(_user_key(client, user), now):
            return False
        limited = self._networks.wait(_network_key(client), now)
        return not (limited and self._users.wait(_comparison_key(client, user), now))

    def count_comparison(self, client: str, user: str) -> None:
        """Count a failed comparison without a reserved token, while the network is limited.

        It has a separate bucket: in the bucket of attempts it would later disclose which users exist.

        :param user: an existing user, so that other names occupy no bucket.
        """
        if self.allows_comparison(client, user):
            self._users.take(_comparison_key(client, user), self._clock())

    def __len__(self) -> int:
        """Return the number of buckets; full ones are dropped once a second."""
        now = self._clock()
        return self._users.count(now) + self._networks.count(now)


class _Buckets:
    """Token buckets by key."""

    def __init__(self, capacity: int, refill_interval: float, max_buckets: int) -> None:
        self._refill_interval = refill_interval
        self._seconds_to_fill = capacity * refill_interval
        self._max_buckets = max_buckets
        # The time at which a bucket is full determines its tokens; a missing bucket is full
        self._full_at: dict[bytes, float] = {}
        self._purged_at = -math.inf

    def wait(self, key: bytes, now: float) -> float:
        """Return the seconds until there is a token."""
        full_at = max(now, self._full_at.get(self._place(key, now), now)) + self._refill_interval
        wait = full_at - now - self._seconds_to_fill
        # Rounding must not cost a token
        return wait if wait > _ROUNDING else 0.0

    def take(self, key: bytes, now: float) -> None:
        self._purge(now)
        key = self._place(key, now)
        self._full_at[key] = max(now, self._full_at.get(key, now)) + self._refill_interval

    def give_back(self, key: bytes, now: float) -> None:
        key = self._place(key, now)
        if key in self._full_at:
            self._full_at[key] -= self._refill_interval
            if self._full_at[key] <= now:
                del self._full_at[key]

    def count(self, now: float) -> int:
        """Return the number of buckets."""
        self._purge(now)
        return len(self._full_at)

    def _place(self, key: bytes, now: float) -> bytes:
        if key in self._full_at:
            return key
        if len(self._full_at) >= self._max_buckets:
            self._purge(now)
        return key if len(self._full_at) < self._max_buckets else _SHARED

    def _purge(self, now: float) -> None:
        # Bounds the work per attempt in a flood
        if now - self._purged_at >= _PURGE_INTERVAL:
            self._purged_at = now
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}


def network_of(client: str) -> str:
    """Return the network of a client: its IPv4 address or IPv6 /48; other identifiers unchanged."""
    return _prefix(client, _NETWORK_BITS)


def _prefix(client: str, bits: int) -> str:
    address = parse_address(client)
    if isinstance(address, IPv6Address):
        return f"{int(address) >> (128 - bits):x}::/{bits}"
    return str(address) if address else client


def _network_key(client: str) -> bytes:
    return _digest("network", network_of(client))


def _user_key(client: str, user: str) -> bytes:
    return _digest("user", _prefix(client, _ADDRESS_BITS), user)


def _comparison_key(client: str, user: str) -> bytes:
    return _digest("comparison", _prefix(client, _ADDRESS_BITS), user)


def _digest(*parts: str) -> bytes:
    # Bounds the length of keys
    return hashlib.sha256(ascii(parts).encode()).digest()
