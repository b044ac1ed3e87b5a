"""How often may they try? A limit to guessing passwords."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address

from flower_proxy.forwarded import parse_address

_HOST_BITS = 64
_NO_TIME = 1e-6  # seconds


class Throttle:
    """A token bucket for each pair of client and user.

    :param tries: how many tries a pair has at once.
    :param seconds_per_try: after how many seconds it has another one.
    :param clock: the time in seconds.
    :param most: how many pairs are kept; beyond it the one whose last try is the oldest is forgotten.

    Pairs are independent: whoever guesses a user's password uses up the tries of his own address, and the user gets in
    from every other one. Hence the limits: who shares an address (NAT, a whole IPv6 /64) and a user name with the
    guesser waits with him; who has many addresses has as many times the tries, and one try for each of many users
    is no more than that.
    """

    def __init__(
        self,
        tries: int = 10,
        seconds_per_try: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        most: int = 10_000,
    ) -> None:
        self._seconds_per_try = seconds_per_try
        self._seconds_to_fill = tries * seconds_per_try
        self._clock = clock
        self._most = most
        # When each bucket will be full again, which says it all; the one whose token was taken last comes last
        self._full_at: OrderedDict[bytes, float] = OrderedDict()

    def wait(self, client: str, user: str) -> float:
        """Return the seconds until there is a token, 0.0 if there is one, and take none.

        :param client: an IP address, or any other word.
        """
        # Nobody has tried in vain: so it is at nearly every request
        return self._wait(_key(client, user), self._clock()) if self._full_at else 0.0

    def reserve(self, client: str, user: str) -> float:
        """Take a token, before the password is checked: of tries at the same time none slips through.

        :returns: 0.0; or, if there is no token, the seconds until there is one.
        """
        key, now = _key(client, user), self._clock()
        wait = self._wait(key, now)
        if not wait:
            self._full_at[key] = max(now, self._full_at.pop(key, now)) + self._seconds_per_try
            self._forget(now)
        return wait

    def give_back(self, client: str, user: str) -> None:
        """Put back the token of a try that was right."""
        key = _key(client, user)
        if key in self._full_at:
            self._full_at[key] -= self._seconds_per_try
            if self._full_at[key] <= self._clock():
                del self._full_at[key]

    def __len__(self) -> int:
        """Return how many pairs are kept."""
        return len(self._full_at)

    def _wait(self, key: bytes, now: float) -> float:
        full_at = max(now, self._full_at.get(key, now)) + self._seconds_per_try
        wait = full_at - now - self._seconds_to_fill
        # The sums of a token's seconds are rounded, which is no reason to wait
        return wait if wait > _NO_TIME else 0.0

    def _forget(self, now: float) -> None:
        while self._full_at:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= self._most:
                break
            del self._full_at[oldest]


def _key(client: str, user: str) -> bytes:
    address = parse_address(client)
    if isinstance(address, IPv6Address):
        # What one customer has of it at the least
        client = f"{int(address) >> _HOST_BITS:x}::/64"
    elif address:
        client = str(address)
    # Of one length, whatever the client makes up
    return hashlib.sha256(ascii((client, user)).encode()).digest()
