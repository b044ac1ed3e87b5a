from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any, TypeVar

import pytest
from flower.utils.search import TaskSearchEngine
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy._flower import SearchPage
from flower_proxy._slices import in_slices
from flower_proxy.events.search import PendingSearchError, SearchResults, TaskQuery
from flower_proxy.events.state import State
from flower_proxy.events.task import Task
from flower_proxy.events.worker import Worker

T = TypeVar("T")

WORDS = ["add", "Add", "tasks", "STRASSE", "straße", "w1@host", "success", "77", "None", "x501", "a'b", "a\\b", "ß\n"]
VALUES = st.sampled_from(WORDS) | st.integers(0, 99) | st.floats(0, 9) | st.none() | st.lists(st.sampled_from(WORDS))
KWARGS = (
    st.dictionaries(st.sampled_from(["user", "User", "order id", "1"]) | st.integers(0, 2), VALUES, max_size=3).map(
        repr
    )
    | st.sampled_from(["", "{}", "{'user': 77, ...", "{[]: 1}", "user=77", "-" * 60_000 + "1"])
    | st.none()
)
TEXTS = st.none() | st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
TIMES = st.none() | st.integers(0, 5).map(float)


@st.composite
def tasks(draw: st.DrawFn) -> list[Task]:
    workers = [Worker("w1@host"), Worker("W2@host")]
    found = []
    for number in range(draw(st.integers(0, 12))):
        task = Task(draw(st.sampled_from(["id", "ID", "add"])) + str(number))
        task.worker = draw(st.sampled_from([None, *workers]))
        for name in ("name", "args", "result", "exchange"):
            setattr(task, name, draw(TEXTS))
        for name in ("received", "started", "timestamp", "runtime"):
            setattr(task, name, draw(TIMES))
        task.kwargs, task.state = draw(KWARGS), draw(st.sampled_from(["SUCCESS", "STARTED", "Mine"]))
        found.append(task)
    return found


def terms() -> st.SearchStrategy[str]:
    fields = st.sampled_from(["", "name:", "state:", "worker:", "args:", "kwargs:", "result:", "Kwargs:user="])
    words = st.sampled_from(
        [*WORDS, "SUCCESS", "mine", "host", "id1", "user=77", "order id=None", "1=add", "a\0b", "=5"]
    )
    return st.builds(lambda field, word: f'"{field}{word}"'.replace("\\", "\\\\"), fields, words)


def queries() -> st.SearchStrategy[str]:
    return st.just("") | st.recursive(
        terms(),
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["", "AND", "OR"]), inner),
        max_leaves=5,
    )


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "task_type": st.sampled_from(["add", "ADD", "none"]),
        "worker": st.sampled_from(["w1@host", "w2@host"]),
        "state": st.sampled_from(["SUCCESS", "started"]),
        "received_start": TIMES,
        "received_end": TIMES,
        "sort_by": st.sampled_from(
            [None, "", "name", "state", "received", "started", "runtime", "uuid", "worker", "exchange", "nonsense"]
        ),
        "descending": st.booleans(),
        "offset": st.integers(-1, 5),
        "limit": st.none() | st.integers(-1, 5),
    },
)


def finished(work: Generator[None, None, T]) -> T:
    return asyncio.run(in_slices(work))


class Engine(TaskSearchEngine):
    """Stock Flower's engine, which fails for arguments that cannot be parsed."""

    def _index(self, task_id: str, task: Any) -> None:
        with contextlib.suppress(TypeError, MemoryError, RecursionError):
            super()._index(task_id, task)
            return
        copy = Task(task_id)
        for field in ("name", "state", "worker", "args", "result"):
            setattr(copy, field, getattr(task, field))
        # Searched as text
        copy.kwargs = task.kwargs.encode()
        super()._index(task_id, copy)


@given(tasks(), queries(), CONDITIONS)
def test_the_results_are_those_of_flower(tasks: list[Task], query: str, conditions: dict[str, Any]) -> None:
    engine, by_id = Engine(), {task.uuid: task for task in tasks}
    engine.rebuild(by_id.items())
    try:
        expected = engine.search(by_id, query, **conditions)
    except ValueError as error:
        with pytest.raises(type(error), match=str(error)[:10]):
            TaskQuery(query, **conditions)
        return
    assert finished(TaskQuery(query, **conditions).search(tasks)) == expected


@pytest.mark.parametrize("limit", [None, 10, 5000, 20_000])
@pytest.mark.parametrize("sort_by", [None, "name", "received"])
@pytest.mark.parametrize("descending", [False, True])
def test_many_tasks_are_sorted(limit: int | None, sort_by: str | None, descending: bool) -> None:
    tasks = []
    for number in range(12_345):
        task = Task(f"{number:05}")
        task.name, task.received, task.timestamp = f"name{number * 7 % 100}", number * 31 % 1000, number * 17 % 500
        tasks.append(task)
    conditions: dict[str, Any] = {"sort_by": sort_by, "descending": descending, "offset": 3, "limit": limit}
    engine, by_id = TaskSearchEngine(), {task.uuid: task for task in tasks}
    engine.rebuild(by_id.items())
    expected = engine.search(by_id, "name7", **conditions)
    assert expected.filtered_count > 1000
    assert finished(TaskQuery("name7", **conditions).search(tasks)) == expected


@pytest.mark.parametrize("kwargs", ["{[]: 1}", "-" * 60_000 + "1", "{'a': " + "+".join("1" * 30_000) + "}"])
def test_arguments_that_cannot_be_parsed_are_searched_as_text(kwargs: str) -> None:
    task = Task("1")
    task.kwargs = kwargs
    assert finished(TaskQuery(f'kwargs:"{kwargs[:20]}"').search([task])).task_ids == ["1"]
    assert finished(TaskQuery(f'kwargs:"{kwargs[:5]}=1"').search([task])).task_ids == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ended:100..200", ["2", "3"]),
        ("ended:100..200 state:FAILURE", ["3"]),
        ("ENDED:101..101", ["2"]),
        ("ended:201..300", []),
        # As text
        ("ended:100..", []),
        ("ended:1e2..200", []),
    ],
)
def test_tasks_that_ended_between_two_times(query: str, found: list[str]) -> None:
    """In links of the Monitor page."""
    ends = [
        ("1", "STARTED", 150),
        ("2", "SUCCESS", 101),
        ("3", "FAILURE", 200),
        ("4", "REVOKED", 99),
        ("5", "RETRY", None),
    ]
    tasks = [Task(uuid, state=state, timestamp=timestamp) for uuid, state, timestamp in ends]
    assert sorted(finished(TaskQuery(query).search(tasks)).task_ids) == found


def test_no_index_is_kept() -> None:
    state = State()
    event = {"type": "task-received", "uuid": "1", "name": "tasks.add", "hostname": "w1@host", "clock": 1}
    state.event({**event, "timestamp": 1.0, "local_received": 1.0})
    assert set(vars(state.search_engine)) == {"page", "lock"}
    assert (state.tasks_by_type, state.tasks_by_worker, state._taskheap) == ({}, {}, [])


def test_a_search_is_pending_until_its_result_is_known() -> None:
    results = SearchResults()
    with pytest.raises(PendingSearchError) as pending:
        results.search({}, "tasks.add", state="SUCCESS", limit=3)
    assert pending.value.query == TaskQuery("tasks.add", state="SUCCESS", limit=3)
    results.page = SearchPage(["1"], 1, 1)
    assert results.search({}, "tasks.add") is results.page
    with pytest.raises(ValueError, match="Unterminated"):
        results.search({}, '"')
