"""Who is asking: what happens while passwords are checked, and how names are compared."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus

import pytest
from tornado.httputil import HTTPHeaders

from flower_proxy.auth.authenticator import AccessDenied, Attempt, Authenticator, LoginFailure, PasswordCheck, Principal
from flower_proxy.auth.passwords import hash_password
from flower_proxy.auth.policy import Roles, fold
from flower_proxy.auth.throttle import Throttle
from flower_proxy.auth.user_files import parse_auth_file, parse_entries
from flower_proxy.auth.verifier import Checks, Verifier
from flower_proxy.proxy.location import Location

BCRYPT = parse_auth_file(f"alice:{hash_password('right', cost=4)}")
PLAIN = parse_entries(["alice:right"])


def attempt(authorization: str | None = None, *, client: str = "203.0.113.1", **headers: str) -> Attempt:
    sent = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    if authorization is not None:
        sent["Authorization"] = "Basic " + base64.b64encode(authorization.encode()).decode()
    location = Location(
        peer="127.0.0.1",
        trusted=True,
        client=client,
        scheme="http",
        host="127.0.0.1",
        host_forwarded=False,
        prefix="",
        path="/",
    )
    return Attempt(location=location, headers=sent, session=lambda: None, known_browser=lambda user: None)


async def status(check: PasswordCheck, authorization: str | None, **kwargs: str) -> int:
    try:
        person = await check.identify(attempt(authorization, **kwargs))
    except AccessDenied as denied:
        return int(denied.status)
    assert person == Principal("alice", password_of="alice")
    return 200


def run(scenario: Callable[[PasswordCheck], object], *, waiting: int = 32, plain: bool = False) -> None:
    checks = Checks(total=waiting)
    check = PasswordCheck(passwords=Verifier(lambda: PLAIN if plain else BCRYPT, checks), throttle=Throttle())
    try:
        asyncio.run(scenario(check))  # type: ignore[arg-type]
    finally:
        checks.close()


def test_of_wrong_tries_at_the_same_time_none_slips_through() -> None:
    async def scenario(check: PasswordCheck) -> None:
        found = await asyncio.gather(*(status(check, f"alice:wrong{i}") for i in range(25)))
        assert sorted(found) == [401] * 10 + [429] * 15

    run(scenario)


def test_a_page_full_of_requests_with_the_right_password_is_one_try() -> None:
    """A browser sends them all at once, before bcrypt has answered the first."""

    async def scenario(check: PasswordCheck) -> None:
        assert set(await asyncio.gather(*(status(check, "alice:right") for _ in range(50)))) == {200}
        assert len(check.throttle) == 0

    run(scenario)


def test_a_page_full_of_requests_with_the_same_wrong_password_is_one_try() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert set(await asyncio.gather(*(status(check, "alice:wrong") for _ in range(50)))) == {401}
        assert await asyncio.gather(*(status(check, f"alice:{i}") for i in range(9))) == [401] * 9
        assert await status(check, "alice:right") == 429

    run(scenario)


def test_who_cannot_be_told_is_asked_to_come_again_and_has_not_tried() -> None:
    async def scenario(check: PasswordCheck) -> None:
        # As many clients as there are checks at once, and one more
        tries = [status(check, f"alice:wrong{i}", client=f"203.0.113.{i}") for i in range(5)]
        late = attempt("alice:right", client="203.0.113.99")
        checks = asyncio.gather(*tries)
        await asyncio.sleep(0)
        with pytest.raises(AccessDenied) as caught:
            await check.identify(late)
        assert (caught.value.status, caught.value.retry_after) == (HTTPStatus.SERVICE_UNAVAILABLE, 1)
        assert caught.value.failure is None
        assert sorted(await checks) == [401, 401, 401, 503, 503]
        assert check.throttle.wait("203.0.113.99", "alice") == 0
        assert await status(check, "alice:right", client="203.0.113.99") == 200

    run(scenario, waiting=1)


def test_who_is_known_already_does_not_wait_behind_those_who_guess() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right") == 200
        guesses = asyncio.gather(*(status(check, f"alice:{i}", client=f"198.51.100.{i}") for i in range(20)))
        await asyncio.sleep(0)
        # Without ever giving the loop back, so bcrypt cannot have been asked
        assert_done_at_once(check.identify(attempt("alice:right")))
        await guesses

    run(scenario)


def assert_done_at_once(coroutine: object) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]


def test_a_throttled_client_costs_no_check() -> None:
    async def scenario(check: PasswordCheck) -> None:
        for i in range(10):
            assert await status(check, f"alice:{i}") == 401
        with pytest.raises(AccessDenied) as caught:
            check.identify(attempt("alice:eleventh")).send(None)
        assert caught.value.status == HTTPStatus.TOO_MANY_REQUESTS

    run(scenario)


def guess(number: int) -> str:
    return f"user{number}:guess"


async def flood(check: PasswordCheck, *, client: str = "203.0.113.1") -> int:
    """Try other users until the address is limited; return the number of attempts."""
    for number in range(1000):
        with pytest.raises(AccessDenied) as caught:
            await check.identify(attempt(guess(number), client=client))
        if caught.value.status == HTTPStatus.TOO_MANY_REQUESTS:
            return number
    raise AssertionError("never limited")


@pytest.mark.parametrize("plain", [True, False])
def test_one_address_has_a_hundred_failed_attempts_whatever_the_names(plain: bool) -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await flood(check) == 100
        assert await flood(check, client="203.0.113.2") == 100

    run(scenario, plain=plain)


def test_a_verified_password_is_not_delayed_by_a_flood_from_its_address() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right") == 200
        await flood(check)
        assert {await status(check, "alice:right") for _ in range(50)} == {200}
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario)


def test_a_first_login_by_bcrypt_waits_while_its_address_is_limited() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        assert await status(check, "alice:right") == 429
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario)


@pytest.mark.parametrize("plain", [True, False])
def test_a_verified_password_cannot_be_guessed_from_a_limited_address(plain: bool) -> None:
    """Each guess is compared with the verified password, without a check by bcrypt, so comparisons are limited too."""

    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right", client="203.0.113.2") == 200
        await flood(check)
        assert {await status(check, f"alice:{number}") for number in range(10)} == {429}
        assert await status(check, "alice:right") == 429
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario, plain=plain)


def test_a_limited_address_does_not_tell_which_users_exist() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        reasons = set()
        for number in range(30):
            with pytest.raises(AccessDenied) as caught:
                await check.identify(attempt(f"{'alice' if number % 2 else 'nobody'}:{number}"))
            reasons.add((caught.value.status, caught.value.reason))
        assert reasons == {(HTTPStatus.TOO_MANY_REQUESTS, "too many failed logins; retry in 3 s")}
        # Nor does it once it is not limited any more
        for user in ("alice", "nobody"):
            assert check.throttle.allows_comparison("203.0.113.2", user)
            check.throttle.give_back("203.0.113.1", user)
            assert check.throttle.wait("203.0.113.1", user) == 0

    run(scenario)


def test_a_browser_that_logged_in_before_is_limited_apart_from_its_address() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        known = replace(attempt("alice:right"), known_browser=lambda user: f"browser {user}")
        assert await check.identify(known) == Principal("alice", password_of="alice")

    run(scenario)


@pytest.mark.parametrize("plain", [True, False])
def test_a_browser_that_logged_in_before_cannot_guess_without_limit(plain: bool) -> None:
    """Not by comparison with what was verified either, as its address has attempts left."""

    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right") == 200
        statuses = []
        for password in (*map(str, range(11)), "right"):
            known = replace(attempt(f"alice:{password}"), known_browser=lambda user: f"browser {user}")
            with pytest.raises(AccessDenied) as caught:
                await check.identify(known)
            statuses.append(int(caught.value.status))
        assert statuses == [401] * 10 + [429] * 2

    run(scenario, plain=plain)


@pytest.mark.parametrize("plain", [True, False])
def test_a_denial_names_whom_it_was_said_to_be_only_where_somebody_tried(plain: bool) -> None:
    async def scenario(check: PasswordCheck) -> None:
        for authorization, failure, user in (
            (None, None, ""),
            ("alice:wrong", LoginFailure.INVALID_CREDENTIALS, "alice"),
            ("eve:x", LoginFailure.INVALID_CREDENTIALS, "eve"),
            ("alice", LoginFailure.MALFORMED_AUTHORIZATION, ""),
        ):
            with pytest.raises(AccessDenied) as caught:
                await check.identify(attempt(authorization))
            denied = caught.value
            assert (denied.status, denied.failure, denied.user) == (HTTPStatus.UNAUTHORIZED, failure, user)

    run(scenario, plain=plain)


def test_whoever_asks_may_enter_where_nothing_is_a_way_in() -> None:
    authenticator = Authenticator()
    assert not authenticator.asks
    assert asyncio.run(authenticator.identify(attempt("anybody:x"))) == Principal("")


def test_the_word_of_somebody_else_is_not_taken() -> None:
    """The header has been taken away already; where that failed, this holds."""
    said = attempt(X_Forwarded_User="alice")
    stranger = replace(said, location=replace(said.location, trusted=False))
    with pytest.raises(AccessDenied, match="no trusted proxy sent X-Forwarded-User"):
        asyncio.run(Authenticator(user_header="X-Forwarded-User").identify(stranger))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        pytest.param("alice", "alice", id="ascii"),
        pytest.param("\tJ\xf6rg ".encode().decode("latin-1"), "J\xf6rg", id="utf-8"),
        pytest.param("J\xf6rg", "J\xf6rg", id="latin-1"),
        pytest.param("x" * 200, "x" * 200, id="longest"),
        pytest.param("alice smith", "alice smith", id="space-inside"),
    ],
)
def test_the_name_that_a_proxy_passes_on(value: str, name: str) -> None:
    authenticator = Authenticator(user_header="X-Forwarded-User")
    assert asyncio.run(authenticator.identify(attempt(X_Forwarded_User=value))) == Principal(name)


EXPECTED = "X-Forwarded-User: expected one line with one user name: printable, no comma, at most 200 characters"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["alice", "bob"], id="two-lines"),
        pytest.param(["alice", "alice"], id="the-same-twice"),
        pytest.param(["", "bob"], id="second-line-behind-an-empty-one"),
        pytest.param(["alice", ""], id="empty-second-line"),
        pytest.param(["", ""], id="two-empty-lines"),
        pytest.param(["alice,bob"], id="comma"),
        pytest.param(["alice,"], id="comma-at-the-end"),
        pytest.param([","], id="only-a-comma"),
        pytest.param(["CN=alice,OU=people"], id="distinguished-name"),
        pytest.param(["a\tb"], id="tab-inside"),
        pytest.param(["x" * 201], id="too-long"),
    ],
)
def test_a_user_header_that_does_not_name_one_user_is_a_bad_request(lines: list[str]) -> None:
    """A client could send the second line, or the part behind the comma."""
    sent = attempt()
    for line in lines:
        sent.headers.add("X-Forwarded-User", line)  # type: ignore[attr-defined]
    with pytest.raises(AccessDenied) as caught:
        asyncio.run(Authenticator(user_header="X-Forwarded-User").identify(sent))
    assert (caught.value.status, caught.value.user) == (HTTPStatus.BAD_REQUEST, "")
    assert caught.value.reason == f"{EXPECTED}; let the proxy replace the header"


def test_a_single_empty_user_header_names_nobody() -> None:
    check = PasswordCheck(passwords=Verifier(lambda: PLAIN, Checks()), throttle=Throttle())
    authenticator = Authenticator(password_check=check, user_header="X-Forwarded-User")
    assert asyncio.run(authenticator.identify(attempt("alice:right", X_Forwarded_User=""))) == Principal(
        "alice", password_of="alice"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("Alice", "aLICE", id="case"),
        pytest.param(" alice\t", "alice", id="space"),
        pytest.param("STRASSE", "stra\xdfe", id="sharp-s"),
        pytest.param("Jose\u0301", "JOS\xc9", id="composed-and-not"),
        pytest.param("\uff41lice", "alice", id="full-width"),
        pytest.param("\u0130", "i\u0307", id="dotted-capital-i"),
        pytest.param("\u1e9e", "ss", id="capital-sharp-s"),
    ],
)
def test_names_that_are_the_same_person(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert not Roles(viewers={fold(one)}).may_control(Principal(other))


@pytest.mark.parametrize(("one", "other"), [("alice", "alicia"), ("alice", "\u0430lice"), ("", "alice")])
def test_names_that_are_not(one: str, other: str) -> None:
    assert fold(one) != fold(other)
    assert Roles(viewers={fold(one)}).may_control(Principal(other))
