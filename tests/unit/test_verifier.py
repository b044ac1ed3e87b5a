"""Verification of passwords outside the event loop: caching, queuing and timing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import bcrypt
import pytest

from flower_proxy.auth.passwords import Bcrypt, Credentials, Plain, Secret, hash_password
from flower_proxy.auth.verifier import Busy, Checks, Client, Verifier

CLIENT = Client("192.0.2.1")
TIMEOUT = 30.0  # seconds; reached only by failing tests


def hashed(password: str, cost: int = 4) -> Bcrypt:
    return Bcrypt(hash_password(password, cost).encode())


USERS: dict[str, Secret] = {"slow": hashed("secret"), "slower": hashed("secret", 5), "plain": Plain.of("secret")}
ONLY_PLAIN: dict[str, Secret] = {"plain": Plain.of("secret")}


class Observed:
    """A wrapper of bcrypt that counts checks, and can block them."""

    def __init__(self) -> None:
        self.costs: list[int] = []
        self.passwords: list[bytes] = []
        self.threads: set[str] = set()
        self.max_running = 0
        self._running = 0
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._go.set()
        self._begun = threading.Semaphore(0)
        self._check = bcrypt.checkpw

    def __call__(self, password: bytes, hashed_password: bytes) -> bool:
        with self._lock:
            self.costs.append(int(hashed_password[4:6]))
            self.passwords.append(password)
            self.threads.add(threading.current_thread().name)
            self._running += 1
            self.max_running = max(self.max_running, self._running)
        self._begun.release()
        assert self._go.wait(TIMEOUT)
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
            assert await asyncio.to_thread(self._begun.acquire, timeout=TIMEOUT)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observed]:
    checks = Observed()
    monkeypatch.setattr(bcrypt, "checkpw", checks)
    yield checks
    checks.go()


def credentials(user: str, password: str = "secret") -> Credentials:
    return Credentials(user, password.encode())


def run(
    test: Callable[[Verifier], Coroutine[Any, Any, None]], users: Callable[[], dict[str, Secret]], waiting: int = 32
) -> None:
    async def with_verifier() -> None:
        threads = Checks(per_client=waiting)
        try:
            await test(Verifier(users, threads))
        finally:
            threads.close()

    asyncio.run(with_verifier())


T = TypeVar("T")


async def started(*awaitables: Coroutine[Any, Any, T]) -> list[asyncio.Task[T]]:
    """Run each until it waits."""
    tasks = [asyncio.create_task(awaitable) for awaitable in awaitables]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("users", "user", "password", "right", "costs"),
    [
        pytest.param(USERS, "slow", "secret", True, [4], id="right"),
        pytest.param(USERS, "slow", "wrong", False, [4], id="wrong"),
        pytest.param(USERS, "slower", "secret", True, [5], id="right-at-a-higher-cost"),
        pytest.param(USERS, "unknown", "secret", False, [5], id="unknown-user-costs-as-much-as-the-slowest"),
        pytest.param(USERS, "plain", "secret", True, [], id="plain-right"),
        pytest.param(USERS, "plain", "wrong", False, [5], id="plain-wrong-costs-as-much-as-a-hash"),
        pytest.param(USERS, "slow", "x" * 73, False, [], id="too-long-for-bcrypt"),
        pytest.param(USERS, "unknown", "x" * 73, False, [], id="too-long-for-bcrypt-unknown-user"),
        pytest.param(USERS, "plain", "x" * 73, False, [], id="too-long-for-bcrypt-plain"),
        pytest.param(ONLY_PLAIN, "plain", "secret", True, [], id="no-hashes-right"),
        pytest.param(ONLY_PLAIN, "plain", "wrong", False, [], id="no-hashes-wrong"),
        pytest.param(ONLY_PLAIN, "unknown", "wrong", False, [], id="no-hashes-unknown-user"),
        pytest.param({}, "unknown", "secret", False, [], id="no-users"),
    ],
)
def test_result_and_bcrypt_costs(
    users: dict[str, Secret], user: str, password: str, right: bool, costs: list[int], checks: Observed
) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials(user, password), CLIENT) is right
        assert checks.costs == costs

    run(test, lambda: users)


def test_the_event_loop_does_not_wait_for_a_check(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow"), CLIENT))
        await checks.begun(1)
        assert await verifier.verify(credentials("plain"), CLIENT), "the event loop is not blocked"
        checks.go()
        assert await task
        assert threading.current_thread().name not in checks.threads

    run(test, lambda: USERS)


def test_verified_credentials_are_cached(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        assert not verifier.knows(credentials("slow"))
        assert await verifier.verify(credentials("slow"), CLIENT)
        assert verifier.knows(credentials("slow"))
        assert await verifier.verify(credentials("slow"), CLIENT)
        assert checks.costs == [4]
        assert not verifier.knows(credentials("slow", "wrong"))
        assert not verifier.knows(credentials("slower")), "the same password, but another user"

    run(test, lambda: USERS)


def test_invalid_credentials_are_not_cached(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        for _ in range(2):
            assert not await verifier.verify(credentials("slow", "wrong"), CLIENT)
            assert not await verifier.verify(credentials("unknown"), CLIENT)
        assert checks.costs == [4, 5] * 2

    run(test, lambda: USERS)


@pytest.mark.parametrize(
    ("user", "password", "known"),
    [
        pytest.param("plain", "secret", True, id="right"),
        pytest.param("plain", "wrong", False, id="wrong"),
        pytest.param("plain", "", False, id="empty"),
        pytest.param("unknown", "secret", False, id="unknown-user"),
        pytest.param("unknown", "", False, id="unknown-user-empty"),
        pytest.param("slow", "secret", False, id="hash"),
    ],
)
def test_credentials_known_without_bcrypt(user: str, password: str, known: bool, checks: Observed) -> None:
    verifier = Verifier(lambda: USERS, Checks())
    assert verifier.knows(credentials(user, password)) is known
    assert checks.costs == []


@pytest.mark.parametrize(
    ("change", "known", "right"),
    [
        pytest.param({"slow": hashed("new")}, False, False, id="new-password"),
        pytest.param({"slow": hashed("secret")}, False, True, id="new-hash-of-the-same-password"),
        pytest.param({}, False, False, id="user-removed"),
        pytest.param({"slow": Plain.of("new")}, False, False, id="replaced-by-a-plain-password"),
        pytest.param({"slow": Bcrypt(USERS["slow"].hashed)}, True, True, id="read-again-unchanged"),  # type: ignore[union-attr]
    ],
)
def test_a_changed_hash_invalidates_verified_credentials(
    change: dict[str, Secret], known: bool, right: bool, checks: Observed
) -> None:
    users: dict[str, Secret] = {"slow": USERS["slow"]}

    async def test(verifier: Verifier) -> None:
        nonlocal users
        assert await verifier.verify(credentials("slow"), CLIENT)
        users = change
        assert verifier.knows(credentials("slow")) is known
        assert await verifier.verify(credentials("slow"), CLIENT) is right

    run(test, lambda: users)


@pytest.mark.parametrize(
    ("change", "right"),
    [
        pytest.param({}, False, id="user-removed"),
        pytest.param({"slow": hashed("new")}, False, id="new-password"),
        pytest.param({"slow": Bcrypt(USERS["slow"].hashed)}, True, id="read-again-unchanged"),  # type: ignore[union-attr]
    ],
)
def test_a_user_removed_during_the_check_is_rejected(change: dict[str, Secret], right: bool, checks: Observed) -> None:
    users: dict[str, Secret] = {"slow": USERS["slow"]}

    async def test(verifier: Verifier) -> None:
        nonlocal users
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow"), CLIENT))
        await checks.begun(1)
        users = change
        checks.go()
        assert await task is right

    run(test, lambda: users)


@pytest.mark.parametrize(("user", "right"), [("slow", True), ("unknown", False)])
def test_concurrent_checks_of_the_same_credentials_run_once(user: str, right: bool, checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        assert not verifier.is_checking(credentials(user))
        tasks = await started(*(verifier.verify(credentials(user), CLIENT) for _ in range(100)))
        assert verifier.is_checking(credentials(user))
        assert not verifier.is_checking(credentials(user, "wrong"))
        checks.go()
        assert await asyncio.gather(*tasks) == [right] * 100
        assert len(checks.costs) == 1
        assert not verifier.is_checking(credentials(user))

    run(test, lambda: USERS)


def test_a_check_continues_after_the_first_client_disconnects(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        first, second = await started(
            verifier.verify(credentials("slow"), CLIENT), verifier.verify(credentials("slow"), CLIENT)
        )
        first.cancel()
        await checks.begun(1)
        checks.go()
        assert await second
        assert first.cancelled()
        assert len(checks.costs) == 1

    run(test, lambda: USERS)


def test_the_result_for_a_disconnected_client_is_cached(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        [task] = await started(verifier.verify(credentials("slow"), CLIENT))
        await checks.begun(1)
        task.cancel()
        [again] = await started(verifier.verify(credentials("slow"), CLIENT))
        checks.go()
        assert await again
        assert verifier.knows(credentials("slow"))
        assert len(checks.costs) == 1

    run(test, lambda: USERS)


def test_two_checks_run_concurrently_and_a_full_queue_is_busy(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("slow"), CLIENT)
        checks.hold()
        tasks = await started(*(verifier.verify(credentials("slow", str(number)), CLIENT) for number in range(5)))
        await checks.begun(3)  # the first one above, and two of these tasks
        with pytest.raises(Busy):
            await verifier.verify(credentials("slow", "one too many"), CLIENT)
        with pytest.raises(Busy):
            await verifier.verify(credentials("unknown"), CLIENT)
        assert await verifier.verify(credentials("slow"), CLIENT), "verified credentials do not wait"
        assert await verifier.verify(credentials("plain"), CLIENT)
        joined = await started(verifier.verify(credentials("slow", "4"), CLIENT))
        checks.go()
        assert await asyncio.gather(*tasks, *joined) == [False] * 6
        assert len(checks.costs) == 6
        assert checks.max_running == 2
        assert not await verifier.verify(credentials("slow", "one too many"), CLIENT), "the queue has room again"

    run(test, lambda: USERS, waiting=3)


def test_the_least_recently_used_verified_credentials_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bcrypt, "matches", lambda secret, password: True)

    async def test(verifier: Verifier) -> None:
        for number in range(1024):
            assert await verifier.verify(credentials("slow", str(number)), CLIENT)
        assert verifier.knows(credentials("slow", "0"))
        assert await verifier.verify(credentials("slow", "one more"), CLIENT)
        assert verifier.knows(credentials("slow", "0")), "it was used recently"
        assert not verifier.knows(credentials("slow", "1"))
        assert verifier.knows(credentials("slow", "2"))

    run(test, lambda: USERS)


def test_user_and_password_are_delimited_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bcrypt, "matches", lambda secret, password: True)
    same = USERS["slow"]

    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("a", "bc"), CLIENT)
        assert not verifier.knows(credentials("ab", "c"))

    run(test, lambda: {"a": same, "ab": same})


def test_passwords_are_not_kept(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        assert await verifier.verify(credentials("slow"), CLIENT)
        assert "secret" not in repr(vars(verifier))

    run(test, lambda: USERS)


def test_a_check_with_an_error_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(secret: Bcrypt, password: bytes) -> bool:
        raise MemoryError

    async def test(verifier: Verifier) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Bcrypt, "matches", fail)
            with pytest.raises(MemoryError):
                await verifier.verify(credentials("slow"), CLIENT)
        assert not verifier.is_checking(credentials("slow"))
        assert await verifier.verify(credentials("slow"), CLIENT)

    run(test, lambda: USERS)


def test_closing_drops_queued_checks(checks: Observed) -> None:
    async def ended(awaitable: Awaitable[bool]) -> bool:
        try:
            return await awaitable
        except asyncio.CancelledError:
            return False

    async def test() -> None:
        threads = Checks()
        verifier = Verifier(lambda: USERS, threads)
        checks.hold()
        wrong = [credentials("slow", str(number)) for number in range(5)]
        tasks = await started(*(ended(verifier.verify(each, CLIENT)) for each in wrong))
        await checks.begun(2)
        threads.close()
        checks.go()
        await asyncio.gather(*tasks)
        assert len(checks.costs) == 2

    asyncio.run(test())


async def answer(awaitable: Awaitable[bool]) -> bool | None:
    """Return the result; None if the queue is full."""
    try:
        return await awaitable
    except Busy:
        return None


FLOOD = [Client(f"198.51.100.{number}") for number in range(200)]


@pytest.mark.parametrize(
    ("flooders", "flood", "client", "checked_before"),
    [
        pytest.param(1, 1000, CLIENT, 2, id="one-flooder"),
        pytest.param(3, 1000, CLIENT, 4, id="three-flooders"),
        pytest.param(100, 1000, CLIENT, 101, id="a-hundred-flooders"),
        pytest.param(200, 1000, Client("browser", is_known=True), 1, id="known-browser"),
        pytest.param(1, 1000, FLOOD[0], None, id="same-address-as-the-flooder"),
        pytest.param(200, 200, CLIENT, None, id="more-flooders-than-the-queue-holds"),
    ],
)
def test_a_flood_delays_another_client_by_one_check_per_flooder(
    flooders: int,
    flood: int,
    client: Client,
    checked_before: int | None,
    checks: Observed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`checked_before` is the number of checks that start before the client's own, including the running one."""
    # Two threads would count in an order that the operating system chooses
    monkeypatch.setattr("flower_proxy.auth.verifier._THREADS", 1)

    async def test(verifier: Verifier) -> None:
        checks.hold()
        guesses = [
            answer(verifier.verify(credentials(f"user{number}", "guess"), FLOOD[number % flooders]))
            for number in range(flood)
        ]
        tasks = await started(*guesses)
        await checks.begun(1)
        [own] = await started(answer(verifier.verify(credentials("slow"), client)))
        checks.go()
        assert await own is (None if checked_before is None else True)
        await asyncio.gather(*tasks)
        if checked_before is not None:
            assert checks.passwords.index(b"secret") == checked_before

    run(test, lambda: USERS)


def test_a_flood_is_busy_beyond_the_queue_of_its_client(checks: Observed) -> None:
    async def test(verifier: Verifier) -> None:
        checks.hold()
        guesses = [verifier.verify(credentials(f"user{number}"), FLOOD[0]) for number in range(100)]
        tasks = await started(*map(answer, guesses))
        checks.go()
        found = await asyncio.gather(*tasks)
        assert found == [False] * 34 + [None] * 66

    run(test, lambda: USERS)


def test_a_dropped_check_is_busy_for_all_requests_waiting_for_it(checks: Observed) -> None:
    async def test() -> None:
        threads = Checks(per_client=3, total=3)
        verifier = Verifier(lambda: USERS, threads)
        checks.hold()
        guesses = [credentials("slow", str(number)) for number in range(5)]
        first = await started(*(answer(verifier.verify(each, FLOOD[0])) for each in (*guesses, guesses[-1])))
        await checks.begun(2)
        other = await started(answer(verifier.verify(credentials("slow"), CLIENT)))
        assert not verifier.is_checking(guesses[-1])
        checks.go()
        assert await asyncio.gather(*first, *other) == [False] * 4 + [None] * 2 + [True]
        threads.close()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("user", "password", "right", "costs"),
    [
        pytest.param("scraper", "scrape", True, [], id="right"),
        pytest.param("scraper", "wrong", False, [5], id="wrong"),
        pytest.param("scraper", "secret", False, [5], id="password-of-a-user"),
        pytest.param("unknown", "wrong", False, [5], id="unknown-user"),
        pytest.param("slow", "secret", False, [5], id="user-of-the-pages"),
    ],
)
def test_denying_the_scraper_takes_as_long_as_denying_users(
    user: str, password: str, right: bool, costs: list[int], checks: Observed
) -> None:
    async def test() -> None:
        threads = Checks()
        verifier = Verifier(lambda: {"scraper": Plain.of("scrape")}, threads, timing_reference=lambda: USERS)
        assert await verifier.verify(credentials(user, password), CLIENT) is right
        assert checks.costs == costs
        threads.close()

    asyncio.run(test())
