"""Authentication: concurrent attempts, rate limits, user headers and comparison of names."""

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
        principal = await check.identify(attempt(authorization, **kwargs))
    except AccessDenied as denied:
        return int(denied.status)
    assert principal == Principal("alice", password_of="alice")
    return 200


def run(scenario: Callable[[PasswordCheck], object], *, waiting: int = 32, plain: bool = False) -> None:
    checks = Checks(total=waiting)
    check = PasswordCheck(
        passwords=Verifier(lambda: PLAIN if plain else BCRYPT, checks), throttle=Throttle(clock=lambda: 0.0)
    )
    try:
        asyncio.run(scenario(check))  # type: ignore[arg-type]
    finally:
        checks.close()


def test_concurrent_failed_attempts_are_limited() -> None:
    async def scenario(check: PasswordCheck) -> None:
        found = await asyncio.gather(*(status(check, f"alice:wrong{i}") for i in range(25)))
        assert sorted(found) == [401] * 10 + [429] * 15

    run(scenario)


def test_concurrent_requests_with_the_right_password_are_one_attempt() -> None:
    """A browser sends the requests of a page before bcrypt has verified the first."""

    async def scenario(check: PasswordCheck) -> None:
        assert set(await asyncio.gather(*(status(check, "alice:right") for _ in range(50)))) == {200}
        assert len(check.throttle) == 0

    run(scenario)


def test_concurrent_requests_with_the_same_wrong_password_are_one_attempt() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert set(await asyncio.gather(*(status(check, "alice:wrong") for _ in range(50)))) == {401}
        assert await asyncio.gather(*(status(check, f"alice:{i}") for i in range(9))) == [401] * 9
        assert await status(check, "alice:right") == 429

    run(scenario)


def test_a_full_queue_is_answered_with_503_and_counts_no_attempt() -> None:
    async def scenario(check: PasswordCheck) -> None:
        # One client more than the threads and the queue hold
        attempts = [status(check, f"alice:wrong{i}", client=f"203.0.113.{i}") for i in range(5)]
        late = attempt("alice:right", client="203.0.113.99")
        checks = asyncio.gather(*attempts)
        await asyncio.sleep(0)
        with pytest.raises(AccessDenied) as caught:
            await check.identify(late)
        assert (caught.value.status, caught.value.retry_after) == (HTTPStatus.SERVICE_UNAVAILABLE, 1)
        assert caught.value.failure is None
        assert sorted(await checks) == [401, 401, 401, 503, 503]
        assert check.throttle.wait("203.0.113.99", "alice") == 0
        assert await status(check, "alice:right", client="203.0.113.99") == 200

    run(scenario, waiting=1)


def test_verified_credentials_do_not_wait_behind_guesses() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right") == 200
        guesses = asyncio.gather(*(status(check, f"alice:{i}", client=f"198.51.100.{i}") for i in range(20)))
        await asyncio.sleep(0)
        # Without yielding to the event loop, so bcrypt has not been called
        assert_done_at_once(check.identify(attempt("alice:right")))
        await guesses

    run(scenario)


def assert_done_at_once(coroutine: object) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]


def test_a_rate_limited_client_causes_no_check() -> None:
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
    """Fail logins of other users until the address is limited; return the number of attempts."""
    for number in range(1000):
        with pytest.raises(AccessDenied) as caught:
            await check.identify(attempt(guess(number), client=client))
        if caught.value.status == HTTPStatus.TOO_MANY_REQUESTS:
            return number
    raise AssertionError("never limited")


@pytest.mark.parametrize("plain", [True, False])
def test_one_address_has_a_hundred_failed_attempts_for_all_names(plain: bool) -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await flood(check) == 100
        assert await flood(check, client="203.0.113.2") == 100

    run(scenario, plain=plain)


def test_a_verified_password_is_not_delayed_by_a_flood_from_the_same_address() -> None:
    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right") == 200
        await flood(check)
        assert {await status(check, "alice:right") for _ in range(50)} == {200}
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario)


def test_a_first_login_with_bcrypt_is_delayed_while_its_address_is_limited() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        assert await status(check, "alice:right") == 429
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario)


@pytest.mark.parametrize("plain", [True, False])
def test_a_verified_password_cannot_be_guessed_from_a_limited_address(plain: bool) -> None:
    """Guesses are compared with the verified password without bcrypt, so comparisons need a limit."""

    async def scenario(check: PasswordCheck) -> None:
        assert await status(check, "alice:right", client="203.0.113.2") == 200
        await flood(check)
        assert {await status(check, f"alice:{number}") for number in range(10)} == {429}
        assert await status(check, "alice:right") == 429
        assert await status(check, "alice:right", client="203.0.113.2") == 200

    run(scenario, plain=plain)


def test_a_limited_address_does_not_disclose_which_users_exist() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        reasons = set()
        for number in range(30):
            with pytest.raises(AccessDenied) as caught:
                await check.identify(attempt(f"{'alice' if number % 2 else 'unknown'}:{number}"))
            reasons.add((caught.value.status, caught.value.reason))
        assert reasons == {(HTTPStatus.TOO_MANY_REQUESTS, "too many failed logins; retry in 3 s")}
        # Nor after the limit has expired
        for user in ("alice", "unknown"):
            assert check.throttle.allows_comparison("203.0.113.2", user)
            check.throttle.give_back("203.0.113.1", user)
            assert check.throttle.wait("203.0.113.1", user) == 0

    run(scenario)


def test_a_known_browser_is_limited_separately_from_its_address() -> None:
    async def scenario(check: PasswordCheck) -> None:
        await flood(check)
        known = replace(attempt("alice:right"), known_browser=lambda user: f"browser {user}")
        assert await check.identify(known) == Principal("alice", password_of="alice")

    run(scenario)


@pytest.mark.parametrize("plain", [True, False])
def test_guesses_of_a_known_browser_are_limited(plain: bool) -> None:
    """This includes comparisons with the verified password."""

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
def test_a_denial_contains_the_user_only_after_a_login_attempt(plain: bool) -> None:
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


def test_without_authentication_methods_clients_are_anonymous() -> None:
    authenticator = Authenticator()
    assert not authenticator.asks
    assert asyncio.run(authenticator.identify(attempt("unknown:x"))) == Principal("")


def test_the_user_header_of_an_untrusted_peer_is_ignored() -> None:
    """The header was already removed; this is the second line of defence."""
    forwarded = attempt(X_Forwarded_User="alice")
    untrusted = replace(forwarded, location=replace(forwarded.location, trusted=False))
    with pytest.raises(AccessDenied, match="no trusted proxy sent X-Forwarded-User"):
        asyncio.run(Authenticator(user_header="X-Forwarded-User").identify(untrusted))


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
def test_the_user_header_of_a_trusted_proxy_is_decoded(value: str, name: str) -> None:
    authenticator = Authenticator(user_header="X-Forwarded-User")
    assert asyncio.run(authenticator.identify(attempt(X_Forwarded_User=value))) == Principal(name)


EXPECTED = "X-Forwarded-User: expected one line with one user name: printable, no comma, at most 200 characters"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["alice", "bob"], id="two-lines"),
        pytest.param(["alice", "alice"], id="duplicate-line"),
        pytest.param(["", "bob"], id="first-line-empty"),
        pytest.param(["alice", ""], id="second-line-empty"),
        pytest.param(["", ""], id="two-empty-lines"),
        pytest.param(["alice,bob"], id="comma"),
        pytest.param(["alice,"], id="trailing-comma"),
        pytest.param([","], id="only-a-comma"),
        pytest.param(["CN=alice,OU=people"], id="distinguished-name"),
        pytest.param(["a\tb"], id="tab-inside"),
        pytest.param(["x" * 201], id="too-long"),
    ],
)
def test_a_user_header_without_exactly_one_user_is_a_bad_request(lines: list[str]) -> None:
    """The second line, or the part behind the comma, may be the client's."""
    sent = attempt()
    for line in lines:
        sent.headers.add("X-Forwarded-User", line)  # type: ignore[attr-defined]
    with pytest.raises(AccessDenied) as caught:
        asyncio.run(Authenticator(user_header="X-Forwarded-User").identify(sent))
    assert (caught.value.status, caught.value.user) == (HTTPStatus.BAD_REQUEST, "")
    assert caught.value.reason == f"{EXPECTED}; let the proxy replace the header"


def test_an_empty_user_header_is_ignored() -> None:
    check = PasswordCheck(passwords=Verifier(lambda: PLAIN, Checks()), throttle=Throttle(clock=lambda: 0.0))
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
        pytest.param("Jose\u0301", "JOS\xc9", id="unicode-normalization"),
        pytest.param("\uff41lice", "alice", id="full-width"),
        pytest.param("\u0130", "i\u0307", id="dotted-capital-i"),
        pytest.param("\u1e9e", "ss", id="capital-sharp-s"),
    ],
)
def test_equivalent_names_are_the_same_user(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert not Roles(viewers={fold(one)}).may_control(Principal(other))


@pytest.mark.parametrize(("one", "other"), [("alice", "alicia"), ("alice", "\u0430lice"), ("", "alice")])
def test_different_names_are_different_users(one: str, other: str) -> None:
    assert fold(one) != fold(other)
    assert Roles(viewers={fold(one)}).may_control(Principal(other))
