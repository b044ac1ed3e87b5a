"""Who is asking: what happens while passwords are checked, and how names are compared."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus

import pytest
from tornado.httputil import HTTPHeaders

from flower_proxy.authentication import Attempt, Authenticator, Denied, PasswordCheck, Person, Roles, fold
from flower_proxy.credentials import hash_password, parse_auth_file, parse_entries
from flower_proxy.location import Location
from flower_proxy.throttle import Throttle
from flower_proxy.verifier import Verifier

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
        told_host=False,
        prefix="",
        path="/",
    )
    return Attempt(location=location, headers=sent, session=lambda: None, known_browser=lambda user: None)


async def status(check: PasswordCheck, authorization: str | None, **kwargs: str) -> int:
    try:
        person = await check.identify(attempt(authorization, **kwargs))
    except Denied as denied:
        return int(denied.status)
    assert person == Person("alice", password_of="alice")
    return 200


def run(scenario: Callable[[PasswordCheck], object], *, waiting: int = 32, plain: bool = False) -> None:
    check = PasswordCheck(passwords=Verifier(lambda: PLAIN if plain else BCRYPT, waiting), throttle=Throttle())
    try:
        asyncio.run(scenario(check))  # type: ignore[arg-type]
    finally:
        check.passwords.close()


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
        with pytest.raises(Denied) as caught:
            await check.identify(late)
        assert (caught.value.status, caught.value.retry_after) == (HTTPStatus.SERVICE_UNAVAILABLE, 1)
        assert caught.value.user is None
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
        with pytest.raises(Denied) as caught:
            check.identify(attempt("alice:eleventh")).send(None)
        assert caught.value.status == HTTPStatus.TOO_MANY_REQUESTS

    run(scenario)


@pytest.mark.parametrize("plain", [True, False])
def test_a_denial_names_whom_it_was_said_to_be_only_where_somebody_tried(plain: bool) -> None:
    async def scenario(check: PasswordCheck) -> None:
        for authorization, user in ((None, None), ("alice:wrong", "alice"), ("eve:x", "eve"), ("alice", "")):
            with pytest.raises(Denied) as caught:
                await check.identify(attempt(authorization))
            assert (caught.value.status, caught.value.user) == (HTTPStatus.UNAUTHORIZED, user)

    run(scenario, plain=plain)


def test_whoever_asks_may_enter_where_nothing_is_a_way_in() -> None:
    authenticator = Authenticator()
    assert not authenticator.asks
    assert asyncio.run(authenticator.identify(attempt("anybody:x"))) == Person("")


def test_the_word_of_somebody_else_is_not_taken() -> None:
    """The header has been taken away already; where that failed, this holds."""
    said = attempt(X_Forwarded_User="alice")
    stranger = replace(said, location=replace(said.location, trusted=False))
    with pytest.raises(Denied, match="no proxy that is trusted"):
        asyncio.run(Authenticator(user_header="X-Forwarded-User").identify(stranger))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        pytest.param("alice", "alice", id="ascii"),
        pytest.param("\tJ\xf6rg ".encode().decode("latin-1"), "J\xf6rg", id="utf-8"),
        pytest.param("J\xf6rg", "J\xf6rg", id="latin-1"),
        pytest.param("x" * 200, "x" * 200, id="longest"),
        pytest.param("CN=alice,OU=people", "CN=alice,OU=people", id="distinguished-name"),
    ],
)
def test_the_name_that_a_proxy_passes_on(value: str, name: str) -> None:
    authenticator = Authenticator(user_header="X-Forwarded-User")
    assert asyncio.run(authenticator.identify(attempt(X_Forwarded_User=value))) == Person(name)


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
    assert not Roles(viewers={fold(one)}).may_act(Person(other))


@pytest.mark.parametrize(("one", "other"), [("alice", "alicia"), ("alice", "\u0430lice"), ("", "alice")])
def test_names_that_are_not(one: str, other: str) -> None:
    assert fold(one) != fold(other)
    assert Roles(viewers={fold(one)}).may_act(Person(other))
