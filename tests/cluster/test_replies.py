"""Validation of worker replies; a malformed reply does not affect others."""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from celery import Celery
from flower.inspector import Inspector
from hypothesis import given
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from flower_proxy.events import control
from flower_proxy.events.broker import connected, mailbox_of
from flower_proxy.events.control import CheckedCelery, Inspected, ask
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS, InvalidReplyError, is_worker_name, validate_reply
from tests.support.invalid_replies import INSPECTIONS, Answer, answering_worker
from tests.support.outage import Interruptible, interruptible

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

GOOD, BAD = "good@test", "bad@test"
TIMEOUT = 1.0  # seconds
# Where all replies are valid and known, nothing waits for the end of the timeout
MAX_TIMEOUT = 20.0  # seconds


# Validation


@pytest.mark.parametrize("command", INSPECTIONS)
def test_valid_replies_are_unchanged(command: str) -> None:
    assert validate_reply(command, copy.deepcopy(INSPECTIONS[command])) == INSPECTIONS[command]


def changed(command: str, **fields: Any) -> Any:
    reply = copy.deepcopy(INSPECTIONS[command])
    (reply if isinstance(reply, dict) else reply[0]).update(fields)
    return reply


@pytest.mark.parametrize(
    ("command", "reply", "reason"),
    [
        ("stats", changed("stats", pool="x"), "invalid"),
        ("stats", changed("stats", pool=None), "invalid"),
        ("stats", changed("stats", pool={"processes": "x"}), "invalid"),
        ("stats", changed("stats", pool={"max-concurrency": -1}), "invalid"),
        ("stats", changed("stats", total={"t": float("nan")}), "invalid"),
        ("stats", changed("stats", total=None), "invalid"),
        ("stats", changed("stats", broker="x"), "invalid"),
        ("stats", changed("stats", consumer={}, broker=None), "invalid"),
        ("stats", changed("stats", consumer="x"), "invalid"),
        ("stats", changed("stats", autoscaler="x"), "invalid"),
        ("stats", changed("stats", uptime=10**400), "invalid"),
        ("stats", changed("stats", rusage={"utime": "x"}), "invalid"),
        ("stats", None, "invalid"),
        ("stats", {"error": "busy"}, "error"),
        ("active_queues", {}, "invalid"),
        ("active_queues", ["celery"], "invalid"),
        ("active_queues", changed("active_queues", name=5), "invalid"),
        ("active_queues", changed("active_queues", name=""), "invalid"),
        ("active_queues", changed("active_queues", name="x" * 256), "invalid"),
        ("active_queues", [{"name": "celery"}], "invalid"),
        ("active_queues", INSPECTIONS["active_queues"] * 1001, "too_large"),
        ("registered", "x", "invalid"),
        ("revoked", [5], "invalid"),
        ("active", [{"name": "t"}], "invalid"),
        ("reserved", changed("reserved", id={}), "invalid"),
        ("scheduled", changed("scheduled", request="x"), "invalid"),
        ("conf", [], "invalid"),
        ("conf", {"error": "busy"}, "error"),
        ("pool_grow", "ok", "invalid"),
        ("pool_grow", None, "invalid"),
    ],
)
def test_invalid_replies_are_rejected(command: str, reply: Any, reason: str) -> None:
    with pytest.raises(InvalidReplyError) as rejected:
        validate_reply(command, reply)
    assert rejected.value.reason == reason


def test_deeply_nested_replies_are_rejected() -> None:
    nested: list[Any] = []
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(InvalidReplyError, match="more than 50 levels of nesting") as rejected:
        validate_reply("conf", {"x": nested})
    assert rejected.value.reason == "too_large"


def test_values_outside_json_become_strings() -> None:
    """A task may have any arguments."""
    arguments = [float("nan"), float("-inf"), "\ud800", datetime.date(2020, 1, 2), 2**5000, {5: (1,)}]
    (task,) = validate_reply("reserved", changed("reserved", args=arguments))
    assert task["args"] == ["nan", "-inf", "\\ud800", "2020-01-02", hex(2**5000), {"5": [1]}]


def test_errors_of_control_commands_are_valid_replies() -> None:
    assert validate_reply("pool_grow", {"error": "no such pool"}) == {"error": "no such pool"}


@pytest.mark.parametrize(("name", "valid"), [("w@h", True), ("", False), ("\ud800", False), ("w" * 256, False)])
def test_worker_names_are_validated(name: str, valid: bool) -> None:
    assert is_worker_name(name) is valid


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(command=st.sampled_from([*INSPECTIONS, "pool_grow"]), reply=anything)
def test_accepted_replies_are_strict_json(command: str, reply: Any) -> None:
    try:
        valid = validate_reply(command, reply)
    except InvalidReplyError:
        return
    assert json.loads(json.dumps(valid, allow_nan=False, ensure_ascii=False).encode()) == valid


# Over brokers


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def outage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interruptible]:
    with interruptible(request.param, tmp_path_factory.mktemp(request.param)) as outage:
        yield outage


class AnsweringWorker:
    """Worker whose answers a test sets; by default it does not answer."""

    def __init__(self) -> None:
        self.answers: Callable[[str], Iterable[Answer]] = lambda command: ()

    def __call__(self, command: str) -> Iterable[Answer]:
        return self.answers(command)


@pytest.fixture(scope="module")
def answering(outage: Interruptible) -> Iterator[AnsweringWorker]:
    answering = AnsweringWorker()
    with answering_worker(outage.broker.url, GOOD, answering):
        yield answering


@pytest.fixture
def worker(answering: AnsweringWorker) -> Iterator[AnsweringWorker]:
    yield answering
    answering.answers = lambda command: ()


@pytest.fixture
def capp(outage: Interruptible) -> Iterator[Celery]:
    with Celery(broker=outage.broker.url) as capp:
        yield capp


@pytest.fixture
def rejections() -> Rejections:
    return Rejections("a reply", REASONS)


def answer(name: str, command: str) -> Answer:
    return Answer({name: INSPECTIONS[command]})


MALFORMED = {
    "null": (Answer(None), "malformed"),
    "number": (Answer(5), "malformed"),
    "list": (Answer([{GOOD: {}}]), "malformed"),
    "string": (Answer("x"), "malformed"),
    "not JSON": (Answer(b"{"), "malformed"),
    "not UTF-8": (Answer(b"\xff"), "malformed"),
    "nested": (Answer(b"[" * 200_000), "malformed"),
    "unknown content type": (Answer(b"x", {"content_type": "application/x-unknown"}), "malformed"),
    "pickle": (Answer(b"x", {"content_type": "application/x-python-serialize"}), "malformed"),
    "unknown worker": (Answer({"unknown@test": {}}), "unknown_worker"),
    "no reply": (Answer({BAD: None}), "invalid"),
    "huge": (Answer({BAD: "x" * 2**20}), "too_large"),
}


@pytest.mark.parametrize(("bad", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_replies_do_not_affect_others(
    capp: Celery,
    worker: AnsweringWorker,
    rejections: Rejections,
    monkeypatch: pytest.MonkeyPatch,
    bad: Answer,
    reason: str,
) -> None:
    monkeypatch.setattr(control, "MAX_REPLY", 2**20)

    def answers(command: str) -> list[Answer]:
        # More malformed replies than workers
        return [bad, bad, bad, answer(GOOD, command), answer(BAD, command)]

    worker.answers = answers
    with connected(capp) as connection:
        mailbox = mailbox_of(capp, connection)
        for _ in range(2):
            replies = ask(mailbox, "stats", destination=[GOOD, BAD], timeout=MAX_TIMEOUT, rejections=rejections)
            assert replies == {GOOD: INSPECTIONS["stats"], BAD: INSPECTIONS["stats"]}
    assert rejections.counts == {**dict.fromkeys(REASONS, 0), reason: 6}


def test_a_valid_reply_after_an_invalid_one_of_the_same_worker_is_accepted(
    capp: Celery, worker: AnsweringWorker, rejections: Rejections
) -> None:
    def answers(command: str) -> list[Answer]:
        return [Answer({GOOD: "x"}), answer(GOOD, command)]

    worker.answers = answers
    with connected(capp) as connection:
        replies = ask(
            mailbox_of(capp, connection), "conf", destination=[GOOD], timeout=MAX_TIMEOUT, rejections=rejections
        )
    assert replies == {GOOD: INSPECTIONS["conf"]}


def test_late_replies_are_ignored(capp: Celery, worker: AnsweringWorker, rejections: Rejections) -> None:
    late = Answer({GOOD: {}}, {"headers": {"ticket": "of another command"}})
    worker.answers = lambda command: [late, answer(GOOD, command)]
    with connected(capp) as connection:
        replies = ask(
            mailbox_of(capp, connection), "stats", destination=[GOOD], timeout=MAX_TIMEOUT, rejections=rejections
        )
    assert replies == {GOOD: INSPECTIONS["stats"]}
    assert not any(rejections.counts.values())


def test_the_timeout_ends_a_flood_of_malformed_replies(
    capp: Celery, worker: AnsweringWorker, rejections: Rejections
) -> None:
    ended = threading.Event()

    def answers(command: str) -> Iterator[Answer]:
        yield answer(GOOD, command)
        while not ended.is_set():
            yield Answer(None)

    worker.answers = answers
    with connected(capp) as connection:
        try:
            replies = ask(
                mailbox_of(capp, connection), "conf", destination=None, timeout=TIMEOUT, rejections=rejections
            )
        finally:
            ended.set()
    assert replies == {GOOD: INSPECTIONS["conf"]}
    assert rejections.counts["malformed"] > 1


def test_the_total_size_of_replies_is_limited(
    capp: Celery, worker: AnsweringWorker, rejections: Rejections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_REPLIES", 1000)
    answers = [Answer({f"w{number}@test": {"x": "y" * 400}}) for number in range(3)]
    worker.answers = lambda _: answers
    with connected(capp) as connection:
        replies = ask(mailbox_of(capp, connection), "conf", destination=None, timeout=TIMEOUT, rejections=rejections)
    assert list(replies) == ["w0@test", "w1@test"]
    assert rejections.counts["too_large"] == 1


# Control of the Celery application


@pytest.fixture
def checked(capp: Celery, rejections: Rejections) -> CheckedCelery:
    """The application for Flower, with at most two workers, one of which is known by its events."""
    return CheckedCelery(capp, Inspected(2, GOOD.__eq__), rejections)


def test_the_number_of_unknown_workers_is_limited(
    worker: AnsweringWorker, checked: CheckedCelery, rejections: Rejections
) -> None:
    unknown = Answer({"error": {}, "\ud800": {}, **{f"w{number}@test": {} for number in range(10_000)}})
    worker.answers = lambda command: [unknown, answer(GOOD, command)]
    replies = checked.control.inspect(timeout=TIMEOUT).conf()
    assert list(replies) == ["w0@test", "w1@test", GOOD]
    assert rejections.counts["unknown_worker"] == 10_000


def test_unknown_workers_are_evicted_first() -> None:
    inspected = Inspected(2, GOOD.__eq__)
    for name in (GOOD, "w1@test", "w2@test", "w3@test"):
        inspected[name]["conf"] = {}
    assert list(inspected) == [GOOD, "w3@test"]


def test_control_commands_return_only_valid_replies(worker: AnsweringWorker, checked: CheckedCelery) -> None:
    replies = [Answer({GOOD: "ok"}), Answer({BAD: {"ok": "x"}}), Answer(None)]
    worker.answers = lambda _: replies
    silent = {GOOD: {"error": "no reply within 5 s; the worker may still do it"}}
    assert checked.control.pool_grow(n=1, reply=True, destination=[GOOD]) == [silent]
    replies.append(Answer({GOOD: {"ok": "grown"}}))
    assert checked.control.pool_grow(n=1, reply=True, destination=[GOOD]) == [{GOOD: {"ok": "grown"}}]


def test_control_commands_wait_for_a_busy_worker(worker: AnsweringWorker, checked: CheckedCelery) -> None:
    """Celery waits for one second, after which Flower reports a failure for an unknown reason."""

    def answers(_: str) -> Iterator[Answer]:
        threading.Event().wait(1.5)
        yield Answer({GOOD: {"ok": "shrunk"}})

    worker.answers = answers
    assert checked.control.pool_shrink(n=1, reply=True, destination=[GOOD]) == [{GOOD: {"ok": "shrunk"}}]


def test_broadcasts_without_reply_are_sent(worker: AnsweringWorker, checked: CheckedCelery) -> None:
    asked: list[str] = []

    def answers(command: str) -> list[Answer]:
        asked.append(command)
        return [answer(GOOD, "stats")]

    worker.answers = answers
    assert checked.control.broadcast("shutdown", destination=[GOOD]) is None
    assert checked.control.inspect(timeout=MAX_TIMEOUT, destination=[GOOD]).stats() == {GOOD: INSPECTIONS["stats"]}
    assert asked == ["shutdown", "stats"]


# Log


@pytest.mark.parametrize(
    ("broker", "line"),
    [
        ("redis://127.0.0.1:1/0", "Failed to inspect workers: the broker cannot be reached"),
        ("memory://localhost/", "No worker replied within 0.1 s; start a worker or increase --inspect_timeout"),
    ],
)
def test_failed_inspections_are_logged_once_with_the_cause(
    rejections: Rejections, caplog: pytest.LogCaptureFixture, broker: str, line: str
) -> None:
    capp = Celery(broker=broker, set_as_current=False)
    capp.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0}
    checked = CheckedCelery(capp, Inspected(2, GOOD.__eq__), rejections)

    async def inspect() -> None:
        for _ in range(2):
            await Inspector(IOLoop.current(), checked, timeout=0.1).inspect()

    with caplog.at_level("INFO"):
        asyncio.run(inspect())
    assert caplog.messages == [line]
