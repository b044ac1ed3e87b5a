"""How often a password can be guessed."""

from __future__ import annotations

import pytest

from flower_proxy.auth.throttle import Throttle

CLIENT, USER = "192.0.2.1", "me"


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def use_up(throttle: Throttle, client: str = CLIENT, user: str = USER) -> int:
    tries = 0
    while not throttle.reserve(client, user):
        tries += 1
    return tries


def test_ten_tries_at_once_and_one_more_every_half_minute(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert use_up(throttle) == 10
    clock.now += 29
    assert throttle.reserve(CLIENT, USER) == 1
    clock.now += 1
    assert use_up(throttle) == 1
    clock.now += 75
    assert use_up(throttle) == 2
    assert throttle.reserve(CLIENT, USER) == 15
    clock.now += 24 * 3600
    assert use_up(throttle) == 10, "no more than ten are saved up"


def test_the_time_to_wait_is_told_and_is_enough(clock: Clock) -> None:
    throttle = Throttle(max_attempts=3, refill_interval=20.0, clock=clock)
    assert use_up(throttle) == 3
    assert throttle.wait(CLIENT, USER) == throttle.reserve(CLIENT, USER) == 20
    clock.now += 20
    assert throttle.wait(CLIENT, USER) == 0
    assert throttle.wait(CLIENT, USER) == 0, "to ask takes no try"
    assert throttle.reserve(CLIENT, USER) == 0
    assert throttle.wait(CLIENT, USER) == 20


@pytest.mark.parametrize("now", [0.1, 1234.567, 987654.321012, 1.7e9 + 0.123456])
@pytest.mark.parametrize("seconds", [30.0, 0.1, 1 / 3])
def test_no_try_is_lost_by_rounding(now: float, seconds: float, clock: Clock) -> None:
    clock.now = now
    throttle = Throttle(refill_interval=seconds, clock=clock)
    for tries in (10, 1, 1, 1):
        assert use_up(throttle) == tries
        clock.now += throttle.wait(CLIENT, USER)


def test_to_be_refused_does_not_make_the_wait_longer(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    use_up(throttle)
    assert {throttle.reserve(CLIENT, USER) for _ in range(100)} == {30}


def test_who_has_the_right_password_is_never_held_up(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for _ in range(100):
        assert throttle.reserve(CLIENT, USER) == 0
        throttle.give_back(CLIENT, USER)
    assert len(throttle) == 0
    assert use_up(throttle) == 10, "no try was won by it"


def test_a_right_try_gives_back_itself_and_not_the_wrong_ones(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for _ in range(4):
        throttle.reserve(CLIENT, USER)
    throttle.give_back(CLIENT, USER)
    assert use_up(throttle) == 7


def test_tries_at_the_same_time_count_before_any_is_answered(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    waits = [throttle.reserve(CLIENT, USER) for _ in range(1000)]
    assert waits.count(0) == 10


@pytest.mark.parametrize(
    ("client", "user", "tries"),
    [
        pytest.param("192.0.2.1", "me", 0, id="the-guesser"),
        pytest.param("192.0.2.2", "me", 10, id="the-user-himself-elsewhere"),
        pytest.param("192.0.2.1", "you", 10, id="somebody-else-behind-the-same-address"),
        pytest.param("192.0.2.1", "ME", 10, id="another-name"),
        pytest.param("::ffff:192.0.2.1", "me", 0, id="the-guesser-mapped-into-ipv6"),
        pytest.param("unix", "me", 10, id="unix-socket"),
    ],
)
def test_nobody_locks_out_somebody_else(client: str, user: str, tries: int, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    use_up(throttle, "192.0.2.1", "me")
    assert use_up(throttle, client, user) == tries


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True, id="same-64"),
        pytest.param("2001:db8:1:2::1", "2001:DB8:1:2:0:0:0:1", True, id="other-spelling"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", False, id="next-64"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="ipv4-neighbours"),
        pytest.param("unix", "unix", True, id="unix-socket"),
        pytest.param("browser-1", "browser-2", False, id="words"),
        pytest.param("::1", "", False, id="nothing"),
    ],
)
def test_an_ipv6_client_is_its_64(first: str, second: str, same: bool, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    use_up(throttle, first)
    assert use_up(throttle, second) == (0 if same else 10)


def test_client_and_user_are_not_mixed_up(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    use_up(throttle, "a', 'b", "c")
    assert use_up(throttle, "a", "b', 'c") == 10


@pytest.mark.parametrize("user", ["x" * 1_000_000, "jörg", "\udce4", "a\0b", ""])
def test_any_name_can_be_tried(user: str, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert use_up(throttle, CLIENT, user) == 10
    assert use_up(throttle, CLIENT, user + "y") == 10


def test_what_is_full_again_is_dropped(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for number in range(100):
        throttle.reserve(CLIENT, str(number))
    assert len(throttle) == 101, "a bucket of each user, and the network's"
    clock.now += 300
    throttle.reserve(CLIENT, USER)
    assert len(throttle) == 2


# One address, many names


@pytest.mark.parametrize(
    ("client", "wait"),
    [
        pytest.param("192.0.2.1", 3, id="same-address"),
        pytest.param("::ffff:192.0.2.1", 3, id="same-address-mapped-into-ipv6"),
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
def test_an_ipv6_network_is_a_48(client: str, limited: bool, clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for number in range(150):
        throttle.reserve(f"2001:db8:1:{number:x}::1", USER)
    assert bool(throttle.wait(client, "another-user")) is limited


def test_made_up_names_do_not_win_back_attempts_at_a_user(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert use_up(throttle, CLIENT, "ann") == 10
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


def test_beyond_the_maximum_of_buckets_clients_share_one(clock: Clock) -> None:
    throttle = Throttle(clock=clock, max_buckets=3)
    for number in range(3):
        assert use_up(throttle, f"192.0.2.{number}") == 10
    for number in range(3, 200):
        throttle.reserve(f"192.0.2.{number}", USER)
    assert len(throttle) <= 2 * 4
    for number in (0, 1, 2, 3, 199):
        assert throttle.wait(f"192.0.2.{number}", USER) == 30, "none has won back its attempts"
    clock.now += 300
    assert use_up(throttle, "192.0.2.199") == 10, "there is room again"


# Comparisons with verified passwords


def flooded(clock: Clock) -> Throttle:
    throttle = Throttle(clock=clock)
    for number in range(100):
        throttle.reserve(CLIENT, f"name{number}")
    assert throttle.wait(CLIENT, USER) == 3
    return throttle


def test_comparisons_are_limited_apart_while_the_network_is(clock: Clock) -> None:
    throttle, compared = flooded(clock), 0
    while throttle.allows_comparison(CLIENT, USER):
        throttle.count_comparison(CLIENT, USER)
        compared += 1
    assert compared == 10
    assert throttle.allows_comparison(CLIENT, "another-user")
    clock.now += 3
    assert throttle.allows_comparison(CLIENT, USER), "an attempt counts now"
    assert use_up(throttle) == 1


def test_a_user_who_is_limited_is_not_compared(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    use_up(throttle)
    assert not throttle.allows_comparison(CLIENT, USER)
    clock.now += 30
    assert throttle.allows_comparison(CLIENT, USER)


def test_to_give_back_what_is_forgotten_does_nothing(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    throttle.give_back(CLIENT, USER)
    assert len(throttle) == 0
    assert use_up(throttle) == 10
