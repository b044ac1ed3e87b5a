"""The state in parts, while events arrive."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flower_proxy._flower import EventsState
from flower_proxy.events.snapshot import snapshot
from flower_proxy.events.state import State
from tests.support.events import EVENTS
from tests.support.states import restored, state_with

STATES = ["RECEIVED", "STARTED", "SUCCESS"]


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {**next(event for event in EVENTS if event["type"] == kind), "local_received": 1.0, **fields}


def values(parts: list[tuple[bytes, bool]]) -> list[Any]:
    """Return the values in parts of their pickles."""
    found, value = [], b""
    for part, is_last in parts:
        value += part
        if is_last:
            found.append(pickle.loads(value))
            value = b""
    assert value == b""
    return found


def test_the_values_are_those_of_stock_flower() -> None:
    state = state_with("1", "2")
    events, counter = values(list(snapshot(state)))
    assert type(events) is EventsState
    assert (events.tasks.limit, events.workers.limit) == (10_000, 10)
    assert [task.args for task in events.tasks.values()] == ["1", "2"]
    worker = events.workers["w1@test"]
    assert all(task.worker is worker or task.worker == worker for task in events.tasks.values())
    assert counter == {"w1@test": Counter({"task-received": 2})}
    # Stock Flower continues with it
    events.event(event("task-started", uuid="2"))
    assert events.tasks["2"].state == "STARTED"


def test_an_empty_state() -> None:
    events, counter = values(list(snapshot(State())))
    assert (list(events.tasks), list(events.workers), counter) == ([], [], {})


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 299), st.sampled_from(EVENTS)), max_size=20))
def test_the_state_may_change_between_parts(changes: list[tuple[int, dict[str, Any]]]) -> None:
    state = State(max_tasks_in_memory=200, max_workers_in_memory=10)
    for number in range(200):
        state.event(event("task-received", uuid=f"id-{number}", hostname=f"w{number % 10}"))
    parts, before = [], list(state.tasks)
    for part in snapshot(state):
        parts.append(part)
        if changes:
            number, change = changes.pop()
            # Also evicts tasks and workers
            state.event({**change, "local_received": 2.0, "uuid": f"id-{number}", "hostname": f"w{number}"})
    assert len(parts) > 10
    assert all(part for part, _ in parts)
    events, _ = values(parts)
    assert list(events.tasks) == before
    assert {task.uuid for task in events.tasks.values()} == set(before)
    assert restored(events, max_tasks_in_memory=200).tasks.keys() == events.tasks.keys()
