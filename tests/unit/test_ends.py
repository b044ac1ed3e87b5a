"""Tasks whose end was not received (mher/flower#869, mher/flower#1428, mher/flower#322)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from datetime import datetime
from typing import Any

import pytest
from celery import Celery

from flower_proxy.events import result_backend
from flower_proxy.events.ends import NOT_SEEN, RESULT_BACKEND, Ends
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.events.result_backend import Question, ResultBackend, Unknown
from flower_proxy.events.state import State
from flower_proxy.web.losses import end_note

WORKER, OTHER = "w1@host", "w2@host"
STARTED_AT = 1_790_000_000.0
END = "2026-11-27T13:00:00+00:00"
ENDED_AT = datetime.fromisoformat(END).timestamp()


class Scene:
    """A state, and the search for ends in it, with inspections by hand.

    :ivar now: the monotonic time.
    """

    def __init__(self, capp: Celery) -> None:
        self.now = 100.0
        self.capp = capp
        self.state = State(max_tasks_in_memory=100, max_workers_in_memory=10)
        self._answered = asyncio.Event()
        loop = asyncio.get_running_loop()

        def in_the_loop(*call: Any) -> None:
            loop.call_soon_threadsafe(*call)
            loop.call_soon_threadsafe(self._answered.set)

        self.ends = Ends(
            capp,
            lambda: self.state,
            rejections=Rejections("a reply", REASONS),
            run=in_the_loop,
            clock=lambda: self.now,
        )

    def event(self, kind: str, uuid: str = "id", worker: str = WORKER, at: float = STARTED_AT, **fields: Any) -> None:
        base = {"hostname": worker, "timestamp": at, "local_received": at, "clock": 1, "pid": 1, "utcoffset": 0}
        self.state.event({"type": kind, "uuid": uuid, **base, **fields})

    async def inspect(self, *ids: str, worker: str = WORKER) -> None:
        """Compare the state with an inspection that begins now."""
        self.now += 10
        self.ends._inspected[worker] = ids, self.now
        self.now += 1
        await self.ends.scan()

    async def answers(self) -> None:
        """Wait for the answers to all questions."""
        while self.ends._asked:
            self._answered.clear()
            await self._answered.wait()

    def store(self, result: object, state: str = "SUCCESS", uuid: str = "id", **fields: Any) -> None:
        self.capp.backend.store_result(uuid, result, state, **fields)

    @property
    def end(self) -> tuple[str, str | None]:
        return self.state.tasks["id"].state, self.ends.end_of("id")


def run(check: Callable[[Scene], Coroutine[Any, Any, None]], backend: str = "cache+memory://") -> None:
    async def checked() -> None:
        with Celery(broker="memory://", backend=backend) as capp:
            scene = Scene(capp)
            try:
                await check(scene)
            finally:
                scene.ends.stop()
                scene.ends.join()

    asyncio.run(checked())


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(result_backend, "_INTERVAL", 0.0)
    monkeypatch.setattr(result_backend, "_PAUSE", 0.0)
    yield
    with Celery(backend="cache+memory://") as capp:
        capp.backend.client.cache.clear()


@pytest.mark.parametrize(
    ("state", "result", "expected"),
    [
        pytest.param("SUCCESS", {"a": [1]}, {"result": "{'a': [1]}"}, id="succeeded"),
        pytest.param("FAILURE", ValueError("no"), {"exception": "ValueError('no')", "traceback": "Trace"}, id="failed"),
        pytest.param("RETRY", ValueError("no"), {"exception": "ValueError('no')", "traceback": "Trace"}, id="retried"),
        pytest.param("REVOKED", ValueError("revoked"), {"exception": None}, id="revoked"),
    ],
)
def test_the_result_backend_has_the_end(state: str, result: object, expected: dict[str, Any]) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        scene.store(result, state, traceback="Trace" if state in ("FAILURE", "RETRY") else None)
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        assert scene.end == (state, RESULT_BACKEND)
        task = scene.state.tasks["id"]
        assert {name: getattr(task, name) for name in expected} == expected
        # The end of a retried task has no time in the backend
        assert STARTED_AT <= task.timestamp <= time.time()

    run(check)


def test_results_are_cut_as_in_events() -> None:
    with Celery(backend="cache+memory://") as capp:
        capp.backend.store_result("id", "x" * 200_000, "SUCCESS")
        (answer,) = answers_of(capp, [question()])
        assert 1000 < len(answer["result"]) < 1100


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "PROGRESS"])
def test_the_end_is_not_seen_without_a_result(state: str) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        scene.store(None, state)
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        assert scene.end == ("STARTED", NOT_SEEN)
        assert end_note(NOT_SEEN).startswith("end not seen")

    run(check)


@pytest.mark.parametrize("backend", ["disabled://", "rpc://"])
def test_the_end_is_not_seen_without_a_readable_backend(backend: str) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        assert scene.end == ("STARTED", NOT_SEEN)

    run(check, backend)


async def _running(scene: Scene) -> None:
    for _ in range(3):
        await scene.inspect("id")


async def _inspected_once(scene: Scene) -> None:
    await scene.inspect()


async def _other_worker(scene: Scene) -> None:
    for _ in range(3):
        await scene.inspect(worker=OTHER)


async def _redelivered(scene: Scene) -> None:
    await scene.inspect()
    scene.event("task-received", worker=OTHER)
    await scene.inspect()


async def _back_again(scene: Scene) -> None:
    await scene.inspect()
    await scene.inspect("id")
    await scene.inspect()


async def _event_in_between(scene: Scene) -> None:
    for number in range(1, 4):
        scene.event("task-started", at=STARTED_AT + number)
        await scene.inspect()


async def _old_inspection(scene: Scene) -> None:
    await scene.inspect()
    # Began before the task started, and was slow
    scene.ends._inspected[WORKER] = (), 100.0
    await scene.ends.scan()


@pytest.mark.parametrize(
    "inspections",
    [_running, _inspected_once, _other_worker, _redelivered, _back_again, _event_in_between, _old_inspection],
)
def test_tasks_that_may_run_are_neither_asked_for_nor_marked(inspections: Callable[[Scene], Any]) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        scene.store(1)
        await inspections(scene)
        assert scene.ends.backend.ident is None
        assert scene.end == ("STARTED", None)

    run(check)


@pytest.mark.parametrize("kind", ["task-sent", "task-succeeded", "task-failed", "task-retried", "task-revoked"])
def test_tasks_that_are_not_at_a_worker_are_not_asked_for(kind: str) -> None:
    async def check(scene: Scene) -> None:
        scene.event(kind)
        await scene.inspect()
        await scene.inspect()
        assert scene.ends.backend.ident is None
        assert scene.end[1] is None

    run(check)


def test_tasks_of_several_workers_are_found_by_separate_inspections() -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started", "id1", WORKER)
        scene.event("task-started", "id2", OTHER)
        for _ in range(2):
            await scene.inspect(worker=WORKER)
            await scene.inspect(worker=OTHER)
        await scene.answers()
        assert [scene.ends.end_of(uuid) for uuid in ("id1", "id2")] == [NOT_SEEN, NOT_SEEN]

    run(check)


def test_a_received_task_is_not_marked_while_it_may_wait_for_a_rate_limit() -> None:
    """No inspection lists these tasks. Here the worker does not reply to the question for its rate limits."""

    async def check(scene: Scene) -> None:
        scene.event("task-received", name="tasks.add")
        scene.store(1)
        for _ in range(3):
            await scene.inspect()
            await scene.answers()
            assert scene.end == ("RECEIVED", None)

    run(check)


@pytest.mark.parametrize(
    ("kind", "worker"), [("task-received", OTHER), ("task-received", WORKER), ("task-started", WORKER)]
)
def test_a_redelivered_task_loses_its_mark(kind: str, worker: str) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        assert scene.end == ("STARTED", NOT_SEEN)
        scene.event(kind, worker=worker, at=STARTED_AT + 60)
        assert scene.end[1] is None

    run(check)


def test_a_late_event_replaces_the_end_of_the_backend() -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        scene.store(1)
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        scene.event("task-succeeded", at=STARTED_AT + 1, result="'event'", runtime=0.5)
        assert scene.end == ("SUCCESS", None)
        assert scene.state.tasks["id"].result == "'event'"

    run(check)


def test_a_task_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        for _ in range(4):
            await scene.inspect()
            await scene.answers()
        assert asked == ["id"]

    asked: list[str] = []
    ask = ResultBackend._ask

    def counted(self: ResultBackend, question: Question) -> Any:
        asked.append(question.uuid)
        return ask(self, question)

    monkeypatch.setattr(ResultBackend, "_ask", counted)
    run(check)


def test_marks_are_dropped_with_their_tasks() -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        del scene.state.tasks["id"]
        await scene.inspect()
        assert (len(scene.ends._marks), scene.ends._unlisted, scene.ends.end_of("id")) == (0, {}, None)

    run(check)


def test_the_end_of_the_backend_counts_neither_as_an_event_nor_for_its_worker() -> None:
    async def check(scene: Scene) -> None:
        scene.event("task-started")
        before = dict(scene.state.counter[WORKER]), scene.state.event_count, scene.state.workers[WORKER].timestamp
        scene.store(1)
        await scene.inspect()
        await scene.inspect()
        await scene.answers()
        assert scene.end == ("SUCCESS", RESULT_BACKEND)
        counts, events, timestamp = before
        assert (scene.state.counter[WORKER], scene.state.event_count) == (counts, events)
        assert scene.state.workers[WORKER].timestamp == pytest.approx(timestamp, abs=1)

    run(check)


# The thread


def answers_of(capp: Celery, questions: Collection[Question]) -> list[Any]:
    """Ask a running backend, and return the answers."""
    answers: list[Any] = []
    backend = ResultBackend(
        capp, on_answer=lambda _, answer: answers.append(answer), rejections=Rejections("a reply", REASONS)
    )
    for question in questions:
        assert backend.put(question)
    backend.put(None)
    backend.start()
    backend.join()
    return answers


def question(uuid: str = "id", changed_at: float = STARTED_AT) -> Question:
    return Question(uuid, "tasks.add", WORKER, is_received=False, changed_at=changed_at)


def test_an_unavailable_backend_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with Celery(backend="redis://:secret@127.0.0.1:1/0") as capp:
        capp.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
        assert answers_of(capp, [question(), question()]) == [Unknown.FAILED] * 2
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("Failed to ask the result backend (")
    assert "secret" not in caplog.text.replace("redis://:secret", "")


@pytest.mark.parametrize(
    ("date_done", "expected"),
    [
        pytest.param(END, ENDED_AT, id="with-time-zone"),
        pytest.param(END.removesuffix("+00:00"), ENDED_AT, id="without-time-zone"),
        pytest.param("1999-01-01T00:00:00", STARTED_AT, id="before-the-start"),
        pytest.param("9999-01-01T00:00:00", pytest.approx(time.time(), abs=3600), id="in-the-future"),
        pytest.param(None, pytest.approx(time.time(), abs=3600), id="unknown"),
    ],
)
def test_time_of_the_end(date_done: str | None, expected: float) -> None:
    with Celery(backend="cache+memory://") as capp:
        meta = {"status": "SUCCESS", "result": 1, "task_id": "id", "date_done": date_done, "children": []}
        capp.backend.set(capp.backend.get_key_for_task("id"), capp.backend.encode(meta))
        (answer,) = answers_of(capp, [question()])
        assert answer["timestamp"] == expected


@pytest.mark.parametrize(
    "meta",
    [
        pytest.param({"status": "SUCCESS", "date_done": "yesterday"}, id="date"),
        pytest.param({"status": ["SUCCESS"]}, id="status"),
        pytest.param({"status": "FAILURE", "result": None, "traceback": [1]}, id="traceback"),
        pytest.param([], id="list"),
    ],
)
def test_malformed_results_end_neither_the_task_nor_the_thread(meta: Any) -> None:
    with Celery(backend="cache+memory://") as capp:
        capp.backend.set(capp.backend.get_key_for_task("id"), capp.backend.encode(meta))
        capp.backend.store_result("id2", 1, "SUCCESS")
        first, second = answers_of(capp, [question(), question("id2")])
        assert first in (Unknown.FAILED, Unknown.NO_RESULT) or isinstance(first["traceback"], str)
        assert second["result"] == "1"


def test_questions_are_bounded() -> None:
    with Celery(backend="disabled://") as capp:
        backend = ResultBackend(capp, on_answer=lambda *_: None, rejections=Rejections("a reply", REASONS))
        assert all(backend.put(question()) for _ in range(result_backend.MAX_QUESTIONS))
        assert not backend.put(question())
        backend.stop()
        backend.start()
        backend.join()
