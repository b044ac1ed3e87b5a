from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from celery.events import state as celery_state
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy.events.state import State
from flower_proxy.events.task import Task
from tests.support.events import EVENTS
from tests.support.states import state_with

UUIDS = [f"id-{number}" for number in range(6)]
# Each task has one parent, whatever the order of its events
PARENTS = {"id-1": "id-0", "id-2": "id-0", "id-3": "id-1", "id-5": "id-4"}
WORKER_FIELDS = ("hostname", "pid", "freq", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")
TIMES = st.integers(1, 20).map(float)
EXTRA = {
    "name": st.sampled_from(["add", "mul", None]),
    "state": st.sampled_from(["SUCCESS", "MINE"]),
    "args": st.sampled_from(["(1,)", "x" * 200]),
    "kwargs": st.just("{'a': 1}"),
    "retries": st.integers(0, 2),
    "result": st.just("3"),
    "exception": st.just("ValueError()"),
    "runtime": TIMES,
    "received": TIMES,
    "queue": st.just("celery"),
    "undocumented": st.just(1),
}


@st.composite
def task_events(draw: st.DrawFn) -> dict[str, Any]:
    event = dict(draw(st.sampled_from([event for event in EVENTS if event["type"].startswith("task-")])))
    uuid = draw(st.sampled_from(UUIDS))
    event.update(draw(st.fixed_dictionaries({}, optional=EXTRA)))
    return {
        **event,
        "uuid": uuid,
        "root_id": draw(st.sampled_from([uuid, UUIDS[0]])),
        "parent_id": PARENTS.get(uuid),
        "hostname": draw(st.sampled_from(["w1@host", "w2@host"])),
    }


def worker_events() -> st.SearchStrategy[dict[str, Any]]:
    events = st.sampled_from([event for event in EVENTS if event["type"].startswith("worker-")])
    numbers = st.fixed_dictionaries({"hostname": st.sampled_from(["w1@host", "w2@host"]), "processed": TIMES})
    return st.builds(lambda event, changed: {**event, **changed}, events, numbers)


def sequences() -> st.SearchStrategy[list[dict[str, Any]]]:
    event = st.builds(
        lambda event, timestamp, clock: {**event, "timestamp": timestamp, "local_received": timestamp, "clock": clock},
        task_events() | worker_events(),
        TIMES,
        st.integers(0, 5),
    )
    return st.lists(event, max_size=40)


def replayed(state: Any, events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for event in events:
        # Celery's state changes the event
        state.event(dict(event))
    tasks = {}
    for uuid, task in state.tasks.items():
        fields = tasks[uuid] = task.as_dict()
        fields["worker"] = task.worker and task.worker.hostname
        fields["children"] = sorted(fields["children"])
        fields["queue"] = getattr(task, "queue", None)
    return tasks


@given(sequences())
def test_tasks_and_workers_are_those_of_celery(events: list[dict[str, Any]]) -> None:
    ours, celerys = State(), celery_state.State()
    assert replayed(ours, events) == replayed(celerys, events)
    assert (ours.event_count, ours.task_count) == (celerys.event_count, celerys.task_count)
    assert set(ours.task_types()) == set(celerys.task_types())
    for name, worker in celerys.workers.items():
        for field in WORKER_FIELDS:
            assert getattr(ours.workers[name], field) == getattr(worker, field)
        assert ours.workers[name]._stopped == (not worker.heartbeats)
    assert set(ours.workers) == set(celerys.workers)


@given(sequences(), st.integers(1, 4))
def test_the_same_tasks_are_evicted_as_by_celery(events: list[dict[str, Any]], limit: int) -> None:
    ours, celerys = (replayed(kind(max_tasks_in_memory=limit), events) for kind in (State, celery_state.State))
    # Celery forgets which tasks an evicted task had started, until their next events
    for fields in (*ours.values(), *celerys.values()):
        del fields["children"]
    assert list(ours.items()) == list(celerys.items())


def test_links_to_other_tasks() -> None:
    state = State()
    child = {**EVENTS[4], "uuid": "child", "parent_id": "id-1", "root_id": "id-1", "local_received": 1.0}
    state.event(child)
    task = state.tasks["child"]
    assert (task.parent, task.root) == (None, None)
    state.event({**EVENTS[4], "local_received": 1.0})
    parent = state.tasks["id-1"]
    assert (task.parent, task.root, parent.children) == (parent, parent, [task])


def test_ids_of_evicted_children_are_dropped() -> None:
    state = State(max_tasks_in_memory=5)
    for number in range(100):
        event = {**EVENTS[4], "uuid": f"child-{number}", "parent_id": "id-1", "local_received": 1.0}
        state.event(event)
        state.event({**EVENTS[4], "local_received": 1.0})
        state.event(event)
        children = state.tasks["id-1"].child_ids
        assert children is not None
        assert len(children) <= 10
    assert sorted(child.uuid for child in state.tasks["id-1"].children) == [
        f"child-{number}" for number in range(96, 100)
    ]


def test_children_without_parent_are_bounded() -> None:
    state = State(max_tasks_in_memory=5)
    for number in range(100):
        state.event({**EVENTS[4], "uuid": f"a-{number}", "parent_id": "absent", "local_received": 1.0})
        state.event({**EVENTS[4], "uuid": f"b-{number}", "parent_id": f"absent-{number}", "local_received": 1.0})
    assert len(state._orphans) == 5
    assert all(len(children) <= 10 for children in state._orphans.values())


def test_undocumented_fields_are_not_kept() -> None:
    state = State()
    state.event({**EVENTS[4], "local_received": 1.0, "undocumented": "x" * 1000})
    assert not hasattr(state.tasks["id-1"], "undocumented")
    assert not hasattr(state.tasks["id-1"], "__dict__")


def test_equal_values_are_stored_once() -> None:
    state = State()
    for uuid in ("id-1", "id-2"):
        name, args, uuid = "".join(("tasks.", "add")), "".join(("(", ")")), "".join(("id-", uuid))
        state.event(
            {**EVENTS[4], "uuid": uuid, "root_id": str(uuid), "name": name, "args": args, "local_received": 1.0}
        )
    one, other = state.tasks.values()
    assert one.name is other.name
    assert one.args is other.args
    assert one.root_id is one.uuid


def test_a_copy_for_format_task_can_be_changed() -> None:
    task = state_with("id-1").tasks["id-1"]
    changed = copy.copy(task)
    changed.args, changed.anything = "hidden", 1
    assert task.args == "id-1"
    assert changed.as_dict() == {**task.as_dict(), "args": "hidden"}


def test_a_task_is_pickled_as_that_of_celery() -> None:
    task = state_with("id-1").tasks["id-1"]
    loaded = pickle.loads(pickle.dumps(task))
    assert type(loaded) is celery_state.Task
    assert loaded.as_dict() == task.as_dict()


def test_tasks_by_time() -> None:
    state = state_with("1", "2", "3")
    state.tasks["2"].timestamp = 5.0
    state.tasks["3"].timestamp = 2.0
    assert [uuid for uuid, _ in state.tasks_by_timestamp()] == ["2", "3", "1"]
    assert [uuid for uuid, _ in state.tasks_by_timestamp(limit=2, reverse=False)] == ["1", "3"]
    assert [uuid for uuid, _ in state.itertasks(limit=2)] == ["1", "2"]


@pytest.mark.parametrize("name", ["name", "worker", "queue", "traceback", "rejected", "children"])
def test_missing_fields_are_none_or_empty(name: str) -> None:
    assert not getattr(Task("id-1"), name)
