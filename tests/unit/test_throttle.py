"""Rate limits for failed logins."""

from __future__ import annotations

import pytest

from flower_proxy.auth.throttle import Throttle

CLIENT, USER = "192.0.2.1", "me"


class Clock:
    """A clock that is advanced by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def exhaust(throttle: Throttle, client: str = CLIENT, user: str = USER) -> int:
    """Reserve attempts until none is allowed; return their number."""
    attempts = 0
    while not throttle.reserve(client, user):
        attempts += 1
    return attempts


def test_ten_attempts_in_a_burst_and_one_more_every_30_seconds(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert exhaust(throttle) == 10
    clock.now += 29
    assert throttle.reserve(CLIENT, USER) == 1
    clock.now += 1
    assert exhaust(throttle) == 1
    clock.now += 75
    assert exhaust(throttle) == 2
    assert throttle.reserve(CLIENT, USER) == 15
    clock.now += 24 * 3600
    assert exhaust(throttle) == 10, "the bucket holds at most ten"


def test_an_attempt_is_allowed_after_the_returned_wait(clock: Clock) -> None:
    throttle = Throttle(max_attempts=3, refill_interval=20.0, clock=clock)
    assert exhaust(throttle) == 3
    assert throttle.wait(CLIENT, USER) == throttle.reserve(CLIENT, USER) == 20
    clock.now += 20
    assert throttle.wait(CLIENT, USER) == 0
    assert throttle.wait(CLIENT, USER) == 0, "wait() counts no attempt"
    assert throttle.reserve(CLIENT, USER) == 0
    assert throttle.wait(CLIENT, USER) == 20


@pytest.mark.parametrize("now", [0.1, 1234.567, 987654.321012, 1.7e9 + 0.123456])
@pytest.mark.parametrize("seconds", [30.0, 0.1, 1 / 3])
def test_rounding_costs_no_attempt(now: float, seconds: float, clock: Clock) -> None:
    clock.now = now
    throttle = Throttle(refill_interval=seconds, clock=clock)
    for attempts in (10, 1, 1, 1):
        assert exhaust(throttle) == attempts
        clock.now += throttle.wait(CLIENT, USER)


def test_refused_attempts_do_not_extend_the_wait(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    exhaust(throttle)
    assert {throttle.reserve(CLIENT, USER) for _ in range(100)} == {30}


def test_valid_logins_are_never_limited(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for _ in range(100):
        assert throttle.reserve(CLIENT, USER) == 0
        throttle.give_back(CLIENT, USER)
    assert len(throttle) == 0
    assert exhaust(throttle) == 10, "the bucket does not exceed its capacity"


def test_a_valid_login_does_not_reset_failed_attempts(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for _ in range(4):
        throttle.reserve(CLIENT, USER)
    throttle.give_back(CLIENT, USER)
    assert exhaust(throttle) == 7


def test_concurrent_attempts_count_before_any_is_answered(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    waits = [throttle.reserve(CLIENT, USER) for _ in range(1000)]
    assert waits.count(0) == 10


@pytest.mark.parametrize(
    ("client", "user", "attempts"),
    [
        pytest.param("192.0.2.1", "me", 0, id="same-user-and-address"),
        pytest.param("192.0.2.2", "me", 10, id="same-user-another-address"),
        pytest.param("192.0.2.1", "you", 10, id="another-user-same-address"),
        pytest.param("192.0.2.1", "ME", 10, id="user-in-another-case"),
        pytest.param("::ffff:192.0.2.1", "me", 0, id="same-address-ipv4-mapped"),
        pytest.param("unix", "me", 10, id="unix-socket"),
    ],
)
def test_limits_are_per_user_and_address(client: str, user: str, attempts: int, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    exhaust(throttle, "192.0.2.1", "me")
    assert exhaust(throttle, client, user) == attempts


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True, id="same-64"),
        pytest.param("2001:db8:1:2::1", "2001:DB8:1:2:0:0:0:1", True, id="other-spelling"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", False, id="next-64"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="ipv4-neighbours"),
        pytest.param("unix", "unix", True, id="unix-socket"),
        pytest.param("browser-1", "browser-2", False, id="identifiers"),
        pytest.param("::1", "", False, id="empty"),
    ],
)
def test_ipv6_clients_are_limited_by_64_network(first: str, second: str, same: bool, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    exhaust(throttle, first)
    assert exhaust(throttle, second) == (0 if same else 10)


def test_client_and_user_are_delimited_in_keys(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    exhaust(throttle, "a', 'b", "c")
    assert exhaust(throttle, "a", "b', 'c") == 10


@pytest.mark.parametrize("user", ["x" * 1_000_000, "jörg", "\udce4", "a\0b", ""])
def test_any_user_name_has_its_own_limit(user: str, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert exhaust(throttle, CLIENT, user) == 10
    assert exhaust(throttle, CLIENT, user + "y") == 10


def test_full_buckets_are_dropped(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for number in range(100):
        throttle.reserve(CLIENT, str(number))
    assert len(throttle) == 101, "one bucket per user, and one of the network"
    clock.now += 300
    throttle.reserve(CLIENT, USER)
    assert len(throttle) == 2


# One address, many users


@pytest.mark.parametrize(
    ("client", "wait"),
    [
        pytest.param("192.0.2.1", 3, id="same-address"),
        pytest.param("::ffff:192.0.2.1", 3, id="same-address-ipv4-mapped"),
        pytest.param("192.0.2.2", 0, id="another-address"),
        pytest.param("2001:db8::1", 0, id="ipv6"),
        pytest.param("unix", 0, id="unix-socket"),
    ],
)
def test_one_address_has_a_hundred_attempts_and_one_more_every_three_seconds(
    client: str, wait: float, clock: Clock
) -> None:
    throttle = Throttle(clock=clock)
    attempts = [throttle.reserve("192.0.2.1", f"user{number}") for number in range(150)]
    assert attempts.count(0) == 100
    assert throttle.wait(client, "another-user") == wait
    clock.now += 3
    assert [throttle.reserve("192.0.2.1", f"more{number}") for number in range(2)] == [0, 3]


@pytest.mark.parametrize(
    ("client", "limited"),
    [
        pytest.param("2001:db8:1:2::1", True, id="same-64"),
        pytest.param("2001:db8:1:ffff::1", True, id="same-48"),
        pytest.param("2001:db8:2::1", False, id="next-48"),
    ],
)
def test_ipv6_networks_are_limited_by_48_network(client: str, limited: bool, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for number in range(150):
        throttle.reserve(f"2001:db8:1:{number:x}::1", USER)
    assert bool(throttle.wait(client, "another-user")) is limited


def test_attempts_at_other_names_do_not_reset_the_limit_of_a_user(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert exhaust(throttle, CLIENT, "ann") == 10
    begin, more = clock.now, 0
    for number in range(10_050):
        throttle.reserve(CLIENT, f"name{number}")
        clock.now += 1 / 700
    while more < 10:
        if wait := throttle.reserve(CLIENT, "ann"):
            clock.now += wait
        else:
            more += 1
    assert 300 <= clock.now - begin < 310


def test_one_address_cannot_fill_the_table(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for number in range(10_000):
        throttle.reserve(CLIENT, f"name{number}")
        clock.now += 1 / 10
    assert len(throttle) <= 201


# Many addresses


def test_clients_share_a_bucket_when_the_table_is_full(clock: Clock) -> None:
    throttle = Throttle(clock=clock, max_buckets=3)
    for number in range(3):
        assert exhaust(throttle, f"192.0.2.{number}") == 10
    for number in range(3, 200):
        throttle.reserve(f"192.0.2.{number}", USER)
    assert len(throttle) <= 2 * 4
    for number in (0, 1, 2, 3, 199):
        assert throttle.wait(f"192.0.2.{number}", USER) == 30, "no client regained attempts"
    clock.now += 300
    assert exhaust(throttle, "192.0.2.199") == 10, "the table has room again"


# Comparisons with verified passwords


def flooded(clock: Clock) -> Throttle:
    throttle = Throttle(clock=clock)
    for number in range(100):
        throttle.reserve(CLIENT, f"name{number}")
    assert throttle.wait(CLIENT, USER) == 3
    return throttle


def test_comparisons_have_their_own_limit_while_the_network_is_limited(clock: Clock) -> None:
    throttle, compared = flooded(clock), 0
    while throttle.allows_comparison(CLIENT, USER):
        throttle.count_comparison(CLIENT, USER)
        compared += 1
    assert compared == 10
    assert throttle.allows_comparison(CLIENT, "another-user")
    clock.now += 3
    assert throttle.allows_comparison(CLIENT, USER), "an attempt is counted instead"
    assert exhaust(throttle) == 1


def test_comparisons_are_not_allowed_for_a_limited_user(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    exhaust(throttle)
    assert not throttle.allows_comparison(CLIENT, USER)
    clock.now += 30
    assert throttle.allows_comparison(CLIENT, USER)


def test_giving_back_an_uncounted_attempt_has_no_effect(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    throttle.give_back(CLIENT, USER)
    assert len(throttle) == 0
    assert exhaust(throttle) == 10
