"""Validation of saved states."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery.events.state import Task, Worker
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy._flower import EventsState
from flower_proxy.events.saved_state import TASK_FIELDS, WORKER_FIELDS
from flower_proxy.events.state import State
from tests.support.events import BASE, EVENTS, HOSTILE, values
from tests.support.states import restore

GOOD = "good@host"
# Celery cannot save tasks with arbitrary values of the excluded fields
FIELDS = sorted(set(Task._fields) - {"children", "parent_id", "root_id"})


def stock_state() -> EventsState:
    """Return a state of stock Flower with two workers, each with one task."""
    state = EventsState(max_tasks_in_memory=10)
    for number, name in enumerate((GOOD, "w1@host")):
        for event in (*EVENTS[:2], *EVENTS[3:7]):
            state.event({**event, "hostname": name, "local_received": 1.0, "uuid": f"id-{number}"})
    return state


def restored(state: EventsState) -> tuple[State, int]:
    after = State(max_tasks_in_memory=10)
    return after, restore(after, pickle.dumps(state), dict(state.counter)).invalid


def test_the_state_of_stock_flower_is_restored() -> None:
    before = stock_state()
    after, invalid = restored(before)
    assert invalid == 0
    assert list(after.workers) == [GOOD, "w1@host"]
    shown = {uuid: {**task.as_dict(), "worker": task.worker.hostname} for uuid, task in before.itertasks()}
    assert {
        uuid: {**task.as_dict(), "worker": task.worker and task.worker.hostname} for uuid, task in after.itertasks()
    } == shown
    fields = set(Worker._fields) - {"heartbeats"}
    for name, worker in before.workers.items():
        assert {field: getattr(after.workers[name], field) for field in fields} == {
            field: getattr(worker, field) for field in fields
        }
    assert after.counter == before.counter


def set_heartbeats(state: EventsState, value: Any) -> None:
    state.workers["w1@host"].heartbeats = value


def set_attribute(name: str) -> Callable[[EventsState, Any], None]:
    return lambda state, value: setattr(state.workers["w1@host"], name, value)


def set_field(name: str) -> Callable[[EventsState, Any], None]:
    return lambda state, value: setattr(state.tasks["id-1"], name, value)


@pytest.mark.parametrize("value", ["x", 5, {"a": 1}, [["x"]], float("nan"), "\ud800"], ids=repr)
@pytest.mark.parametrize(
    "change", [set_attribute("freq"), set_attribute("active"), set_attribute("clock"), set_heartbeats], ids=range(4)
)
def test_invalid_workers_are_skipped(change: Callable[[EventsState, Any], None], value: Any) -> None:
    state = stock_state()
    change(state, value)
    after, invalid = restored(state)
    if value == 5 and change is not set_heartbeats:
        assert invalid == 0
        return
    assert list(after.workers) == [GOOD]
    # The task of the invalid worker refers to it
    assert list(after.tasks) == ["id-0"]
    assert invalid == 2


@pytest.mark.parametrize("name", ["uuid", "name", "state", "received", "clock", "timestamp", "runtime", "worker"])
@pytest.mark.parametrize("value", [["x"], {"a": 1}, -(10**400), b"x"], ids=lambda value: f"{value!r:.9}")
def test_invalid_tasks_are_skipped(name: str, value: Any) -> None:
    state = stock_state()
    set_field(name)(state, value)
    after, invalid = restored(state)
    assert (list(after.tasks), list(after.workers), invalid) == (["id-0"], [GOOD, "w1@host"], 1)


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), values()),
    attributes=st.dictionaries(st.sampled_from(Worker._fields), values()),
)
def test_valid_workers_and_tasks_are_restored_next_to_any_values(
    fields: dict[str, Any], attributes: dict[str, Any]
) -> None:
    state = stock_state()
    for name, value in fields.items():
        set_field(name)(state, value)
    for name, value in attributes.items():
        set_attribute(name)(state, value)
    after, _ = restored(state)
    assert GOOD in after.workers
    assert "id-0" in after.tasks
    for worker in after.workers.values():
        assert worker.alive in (True, False)
    after.event({**BASE, **EVENTS[1], "local_received": 2.0})


@pytest.mark.parametrize("counter", [{GOOD: "x"}, {GOOD: {5: "x"}}, {5: {}}, {GOOD: {"worker-online": "x"}}], ids=repr)
def test_invalid_counts_are_skipped(counter: dict[Any, Any]) -> None:
    state = State(max_tasks_in_memory=10)
    restore(state, pickle.dumps(stock_state()), counter)
    assert state.counter[GOOD] == {}


@pytest.mark.parametrize("value", HOSTILE[:4], ids=repr)
def test_other_values_are_rejected(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a state, got "):
        restore(State(max_tasks_in_memory=10), pickle.dumps(value), {})


def test_the_fields_are_those_of_celery() -> None:
    assert Worker._fields == WORKER_FIELDS
    assert {*TASK_FIELDS, "worker", "children", "root", "parent"} == set(Task._fields)
