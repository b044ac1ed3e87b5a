"""How often a password can be guessed."""

from __future__ import annotations

import pytest

from flower_proxy.throttle import Throttle

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
    throttle = Throttle(tries=3, seconds_per_try=20.0, clock=clock)
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
    throttle = Throttle(seconds_per_try=seconds, clock=clock)
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
    assert len(throttle) == 100
    clock.now += 30
    throttle.reserve(CLIENT, USER)
    assert len(throttle) == 1


def test_no_more_pairs_are_kept_than_was_said_and_the_oldest_goes_first(clock: Clock) -> None:
    throttle = Throttle(clock=clock, most=3)
    for user in ("a", "b", "c", "a", "d"):
        throttle.reserve(CLIENT, user)
    assert len(throttle) == 3
    assert use_up(throttle, CLIENT, "a") == 8
    assert use_up(throttle, CLIENT, "b") == 10


def test_to_give_back_what_is_forgotten_does_nothing(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    throttle.give_back(CLIENT, USER)
    assert len(throttle) == 0
    assert use_up(throttle) == 10
