"""Passwords checked beside the event loop: how often, how many at once, and what can be learned from the time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import bcrypt
import pytest

from flower_proxy.credentials import Bcrypt, Credentials, Plain, Secret, hash_password
from flower_proxy.verifier import Busy, Verifier

PATIENCE = 30.0  # seconds; only a test that fails needs them


def hashed(password: str, cost: int = 4) -> Bcrypt:
    return Bcrypt(hash_password(password, cost).encode())


USERS: dict[str, Secret] = {"slow": hashed("secret"), "slower": hashed("secret", 5), "plain": Plain.of(b"secret")}
ONLY_PLAIN: dict[str, Secret] = {"plain": Plain.of(b"secret")}


class Checks:
    """The bcrypt checks that run: each is counted, and may be held up."""

    def __init__(self) -> None:
        self.costs: list[int] = []
        self.threads: set[str] = set()
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._go.set()
        self._begun = threading.Semaphore(0)
        self._check = bcrypt.checkpw

    def __call__(self, password: bytes, hashed_password: bytes) -> bool:
        with self._lock:
            self.costs.append(int(hashed_password[4:6]))
            self.threads.add(threading.current_thread().name)
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        self._begun.release()
        assert self._go.wait(PATIENCE)
        try:
            return self._check(password, hashed_password)
        finally:
            with self._lock:
                self._running -= 1

    def hold(self) -> None:
        self._go.clear()

    def go(self) -> None:
        self._go.set()

    async def begun(self, number: int) -> None:
        for _ in range(number):
            assert await asyncio.to_thread(self._begun.acquire, timeout=PATIENCE)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    checks = Checks()
    monkeypatch.setattr(bcrypt, "checkpw", checks)
    yield checks
    checks.go()


def credentials(user: str, password: str = "secret") -> Credentials:
    return Credentials(user, password.encode())


def run(
    test: Callable[[Verifier], Coroutine[Any, Any, None]], users: Callable[[], dict[str, Secret]], waiting: int = 32
) -> None:
    async def with_verifier() -> None:
        verifier = Verifier(users, waiting)
        try:
            await test(verifier)
        finally:
            verifier.close()

    asyncio.run(with_verifier())


async def started(*awaitables: Coroutine[Any, Any, bool]) -> list[asyncio.Task[bool]]:
    """Run each to the point where it has to wait."""
    tasks = [asyncio.create_task(awaitable) for awaitable in awaitables]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("users", "user", "password", "right", "costs"),
    [
        pytest.param(USERS, "slow", "secret", True, [4], id="right"),
        pytest.param(USERS, "slow", "wrong", False, [4], id="wrong"),
        pytest.param(USERS, "slower", "secret", True, [5], id="right-at-a-higher-cost"),
        pytest.param(USERS, "nobody", "secret", False, [5], id="unknown-user-costs-as-much-as-the-slowest"),
        pytest.param(USERS, "plain", "secret", True, [], id="plain-right"),
        pytest.param(USERS, "plain", "wrong", False, [5], id="plain-wrong-costs-as-much-as-a-hash"),
        pytest.param(USERS, "slow", "x" * 73, False, [], id="too-long-for-bcrypt"),
        pytest.param(USERS, "nobody", "x" * 73, False, [], id="too-long-for-bcrypt-unknown-user"),
        pytest.param(USERS, "plain", "x" * 73, False, [], id="too-long-for-bcrypt-plain"),
        pytest.param(ONLY_PLAIN, "plain", "secret", True, [], id="no-hashes-right"),
        pytest.param(ONLY_PLAIN, "plain", "wrong", False, [], id="no-hashes-wrong"),
        pytest.param(ONLY_PLAIN, "nobody", "wrong", False, [], id="no-hashes-unknown-user"),
        pytest.param({}, "nobody", "secret", False, [], id="no-users"),
    ],
)
def test_the_answer_and_what_it_costs(
    users: dict[str, Secret], user: str, password: str, right: bool, costs: list[int], checks: Checks
) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials(user, password)) is right
        assert checks.costs == costs

    run(test, lambda: users)


def test_the_event_loop_does_not_wait_for_a_check(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow")))
        await checks.begun(1)
        assert await verifier.verify(credentials("plain")), "others are answered meanwhile"
        checks.go()
        assert await task
        assert threading.current_thread().name not in checks.threads

    run(test, lambda: USERS)


def test_who_was_let_in_once_is_known(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        assert not verifier.knows(credentials("slow"))
        assert await verifier.verify(credentials("slow"))
        assert verifier.knows(credentials("slow"))
        assert await verifier.verify(credentials("slow"))
        assert checks.costs == [4]
        assert not verifier.knows(credentials("slow", "wrong"))
        assert not verifier.knows(credentials("slower")), "the same password, but another user"

    run(test, lambda: USERS)


def test_a_wrong_password_is_never_known(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        for _ in range(2):
            assert not await verifier.verify(credentials("slow", "wrong"))
            assert not await verifier.verify(credentials("nobody"))
        assert checks.costs == [4, 5] * 2

    run(test, lambda: USERS)


@pytest.mark.parametrize(
    ("user", "password", "known"),
    [
        pytest.param("plain", "secret", True, id="right"),
        pytest.param("plain", "wrong", False, id="wrong"),
        pytest.param("plain", "", False, id="empty"),
        pytest.param("nobody", "secret", False, id="unknown-user"),
        pytest.param("nobody", "", False, id="unknown-user-empty"),
        pytest.param("slow", "secret", False, id="hash"),
    ],
)
def test_what_is_known_at_once(user: str, password: str, known: bool, checks: Checks) -> None:
    verifier = Verifier(lambda: USERS)
    assert verifier.knows(credentials(user, password)) is known
    assert checks.costs == []


@pytest.mark.parametrize(
    ("change", "known", "right"),
    [
        pytest.param({"slow": hashed("new")}, False, False, id="new-password"),
        pytest.param({"slow": hashed("secret")}, False, True, id="new-hash-of-the-same-password"),
        pytest.param({}, False, False, id="user-removed"),
        pytest.param({"slow": Plain.of(b"new")}, False, False, id="no-hash-any-more"),
        pytest.param({"slow": Bcrypt(USERS["slow"].hashed)}, True, True, id="read-again-unchanged"),  # type: ignore[union-attr]
    ],
)
def test_a_changed_hash_makes_everybody_log_in_anew(
    change: dict[str, Secret], known: bool, right: bool, checks: Checks
) -> None:
    users: dict[str, Secret] = {"slow": USERS["slow"]}

    async def test(verifier: Verifier) -> None:
        nonlocal users
        assert await verifier.verify(credentials("slow"))
        users = change
        assert verifier.knows(credentials("slow")) is known
        assert await verifier.verify(credentials("slow")) is right

    run(test, lambda: users)


@pytest.mark.parametrize(
    ("change", "right"),
    [
        pytest.param({}, False, id="user-removed"),
        pytest.param({"slow": hashed("new")}, False, id="new-password"),
        pytest.param({"slow": Bcrypt(USERS["slow"].hashed)}, True, id="read-again-unchanged"),  # type: ignore[union-attr]
    ],
)
def test_who_is_removed_during_the_check_is_not_let_in(change: dict[str, Secret], right: bool, checks: Checks) -> None:
    users: dict[str, Secret] = {"slow": USERS["slow"]}

    async def test(verifier: Verifier) -> None:
        nonlocal users
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow")))
        await checks.begun(1)
        users = change
        checks.go()
        assert await task is right

    run(test, lambda: users)


@pytest.mark.parametrize(("user", "right"), [("slow", True), ("nobody", False)])
def test_the_same_credentials_at_once_are_checked_once(user: str, right: bool, checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        assert not verifier.is_checking(credentials(user))
        tasks = await started(*(verifier.verify(credentials(user)) for _ in range(100)))
        assert verifier.is_checking(credentials(user))
        assert not verifier.is_checking(credentials(user, "wrong"))
        checks.go()
        assert await asyncio.gather(*tasks) == [right] * 100
        assert len(checks.costs) == 1
        assert not verifier.is_checking(credentials(user))

    run(test, lambda: USERS)


def test_who_asked_first_may_go_away(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        first, second = await started(verifier.verify(credentials("slow")), verifier.verify(credentials("slow")))
        first.cancel()
        await checks.begun(1)
        checks.go()
        assert await second
        assert first.cancelled()
        assert len(checks.costs) == 1

    run(test, lambda: USERS)


def test_what_was_checked_for_somebody_who_went_away_is_known(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow")))
        await checks.begun(1)
        task.cancel()
        [again] = await started(verifier.verify(credentials("slow")))
        checks.go()
        assert await again
        assert verifier.knows(credentials("slow"))
        assert len(checks.costs) == 1

    run(test, lambda: USERS)


def test_two_checks_run_at_once_some_wait_and_then_it_is_busy(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("slow"))
        checks.hold()
        tasks = await started(*(verifier.verify(credentials("slow", str(number))) for number in range(5)))
        await checks.begun(3)  # the first one above, and two of these
        with pytest.raises(Busy):
            await verifier.verify(credentials("slow", "one too many"))
        with pytest.raises(Busy):
            await verifier.verify(credentials("nobody"))
        assert await verifier.verify(credentials("slow")), "who was let in before is not held up"
        assert await verifier.verify(credentials("plain"))
        joined = await started(verifier.verify(credentials("slow", "4")))
        checks.go()
        assert await asyncio.gather(*tasks, *joined) == [False] * 6
        assert len(checks.costs) == 6
        assert checks.most_at_once == 2
        assert not await verifier.verify(credentials("slow", "one too many")), "it is over"

    run(test, lambda: USERS, waiting=3)


def test_so_many_are_known_and_the_one_who_was_away_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bcrypt, "matches", lambda secret, password: True)

    async def test(verifier: Verifier) -> None:
        for number in range(1024):
            assert await verifier.verify(credentials("slow", str(number)))
        assert verifier.knows(credentials("slow", "0"))
        assert await verifier.verify(credentials("slow", "one more"))
        assert verifier.knows(credentials("slow", "0")), "it was asked for meanwhile"
        assert not verifier.knows(credentials("slow", "1"))
        assert verifier.knows(credentials("slow", "2"))

    run(test, lambda: USERS)


def test_user_and_password_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bcrypt, "matches", lambda secret, password: True)
    same = USERS["slow"]

    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("a", "bc"))
        assert not verifier.knows(credentials("ab", "c"))

    run(test, lambda: {"a": same, "ab": same})


def test_no_password_is_kept(checks: Checks) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("slow"))
        assert "secret" not in repr(vars(verifier))

    run(test, lambda: USERS)


def test_a_check_that_fails_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(secret: Bcrypt, password: bytes) -> bool:
        raise MemoryError

    async def test(verifier: Verifier) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Bcrypt, "matches", fail)
            with pytest.raises(MemoryError):
                await verifier.verify(credentials("slow"))
        assert not verifier.is_checking(credentials("slow"))
        assert await verifier.verify(credentials("slow"))

    run(test, lambda: USERS)


def test_the_end_does_not_wait_for_those_who_wait(checks: Checks) -> None:
    async def ended(awaitable: Awaitable[bool]) -> bool:
        try:
            return await awaitable
        except asyncio.CancelledError:
            return False

    async def test(verifier: Verifier) -> None:
        checks.hold()
        tasks = await started(*(ended(verifier.verify(credentials("slow", str(number)))) for number in range(5)))
        await checks.begun(2)
        verifier.close()
        checks.go()
        await asyncio.gather(*tasks)
        assert len(checks.costs) == 2

    run(test, lambda: USERS)
