"""A worker is online, and was last heard, by our monotonic clock: no wall clock has a say, neither its own nor ours."""

from __future__ import annotations

import inspect
import pickle
import time
from dataclasses import dataclass
from typing import Any

import pytest
from celery.events import state as celery_state

from flower_proxy._flower import EventsState
from flower_proxy.events.saved_state import SavedState
from flower_proxy.events.state import State
from flower_proxy.events.worker import Worker
from tests.support.states import restored

NAME, HOUR = "w1@host", 3600
FREQUENCY = 2.0  # seconds; a worker that is silent for twice as long is offline


@dataclass
class Clocks:
    """Ours, as `time`."""

    wall: float = 1_000_000.0
    uptime: float = 500.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.uptime

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr("flower_proxy.events.worker.time", clocks)
    return clocks


@pytest.fixture
def state() -> State:
    return State(max_tasks_in_memory=10)


def send(state: State, clocks: Clocks, kind: str = "worker-heartbeat", *, ahead: float = 0, **fields: Any) -> Worker:
    """Process an event of the worker, whose clock may be ahead, and return the worker."""
    times = {"timestamp": clocks.wall + ahead, "local_received": clocks.wall}
    state.event({"type": kind, "hostname": NAME, "clock": 1, "freq": FREQUENCY, **times, **fields})
    worker: Worker = state.workers[NAME]
    return worker


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_of_our_clock_changes_nothing(step: float, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    clocks.pass_(1)
    clocks.wall += step
    assert worker.alive
    assert worker.heartbeats == [clocks.wall - 1]
    clocks.pass_(10)
    assert not worker.alive
    assert (worker.heartbeats, worker.timestamp) == ([clocks.wall - 11], clocks.wall - 11)
    send(state, clocks)
    assert worker.alive
    assert worker.heartbeats == [clocks.wall]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_while_an_event_waits_changes_nothing(step: float, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    received = clocks.wall
    clocks.pass_(1)
    clocks.wall += step
    send(state, clocks, local_received=received)
    assert worker.alive


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
@pytest.mark.parametrize("kind", ["worker-heartbeat", "task-received"])
def test_the_clock_of_the_worker_does_not_count(ahead: float, kind: str, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    clocks.pass_(3)
    send(state, clocks, kind, uuid="1", name="add", ahead=ahead)
    clocks.pass_(3)
    assert worker.alive
    assert worker.heartbeats == [clocks.wall - 3]
    clocks.pass_(3)
    assert not worker.alive


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_worker_that_stops_was_heard_then(ahead: float, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    send(state, clocks, "worker-offline", ahead=ahead)
    assert not worker.alive
    assert worker.heartbeats == []
    clocks.pass_(5)
    assert worker.timestamp == clocks.wall - 5
    send(state, clocks, "worker-online")
    assert worker.alive


def test_an_event_that_is_handled_late_was_received_before(state: State, clocks: Clocks) -> None:
    worker = send(state, clocks, local_received=clocks.wall - 60)
    assert not worker.alive
    assert worker.heartbeats == [clocks.wall - 60]


def test_a_worker_that_was_never_heard_is_offline() -> None:
    worker = Worker(NAME)
    assert (worker.alive, worker.heartbeats, worker.timestamp) == (False, [], None)


def test_how_far_its_clock_is_ahead(state: State, clocks: Clocks) -> None:
    worker = send(state, clocks, "task-received", uuid="1", name="add", ahead=50)
    # Workers keep events of tasks back for a moment
    assert worker.ahead is None
    assert send(state, clocks, ahead=-7.5).ahead == -7.5


def test_an_event_sets_what_it_is_meant_to_and_nothing_else(state: State, clocks: Clocks) -> None:
    attributes: dict[str, Any] = dict.fromkeys(("heartbeats", "expire_window", "alive", "event", "id", "_heard"), "x")
    worker = send(state, clocks, active=3, processed=7, sw_ver="5.7.0", loadavg=[1, 2, 3], pid=17, **attributes)
    assert (worker.active, worker.processed, worker.sw_ver) == (3, 7, "5.7.0")
    assert (worker.loadavg, worker.pid, worker.freq) == ([1, 2, 3], 17, FREQUENCY)
    assert worker.alive
    assert worker.heartbeats == [clocks.wall]
    assert send(state, clocks).alive


# What is saved


@pytest.mark.parametrize("last", ["worker-heartbeat", "worker-offline"])
def test_a_worker_is_saved_as_celerys_and_restored(last: str, state: State, clocks: Clocks) -> None:
    send(state, clocks, "task-received", uuid="1", name="add")
    send(state, clocks, last, active=3)
    heard = clocks.wall
    pickled = pickle.dumps(state)
    saved = pickle.loads(pickled)
    assert type(saved) is EventsState
    assert type(saved.workers[NAME]) is celery_state.Worker
    assert saved.workers[NAME].timestamp == heard
    # The process ends, and the machine is started anew
    clocks.pass_(60)
    clocks.uptime = 10
    after = State(max_tasks_in_memory=10)
    after.restore(SavedState(pickled, {}))
    worker = after.workers[NAME]
    assert type(worker) is Worker
    assert (worker.active, worker.freq, worker.alive) == (3, FREQUENCY, False)
    assert (worker.timestamp, worker.heartbeats) == (heard, [] if last == "worker-offline" else [heard])
    # So that the page of a task tells of the same one
    assert after.tasks["1"].worker is worker


def test_a_task_keeps_its_worker_though_that_is_forgotten(state: State, clocks: Clocks) -> None:
    for uuid in "12":
        send(state, clocks, "task-received", uuid=uuid, name="add")
    state.workers.pop(NAME)
    after = restored(state)
    assert NAME not in after.workers
    assert type(after.tasks["1"].worker) is Worker
    assert after.tasks["1"].worker is after.tasks["2"].worker


def test_a_worker_that_celery_has_saved_is_restored(clocks: Clocks) -> None:
    """Without a timestamp, which Celery does not save."""
    saved = EventsState(max_tasks_in_memory=10)
    now = time.time()
    for name, kind in {"lives": "worker-heartbeat", "stopped": "worker-offline"}.items():
        for each in ("worker-online", kind):
            saved.event({"type": each, "hostname": name, "clock": 1, "timestamp": now, "local_received": now})
    clocks.wall = now + 1
    assert {name: (worker.alive, worker.timestamp) for name, worker in restored(saved).workers.items()} == {
        "lives": (True, now),
        "stopped": (False, None),
    }


# What is leaned on


def test_of_celery() -> None:
    """How a worker is made, what it is told, in which order, and what is saved of it."""
    source = inspect.getsource(celery_state)
    assert "worker = workers[hostname] = Worker(hostname)" in source
    assert "worker.event(subject, timestamp, local_received, event)" in source
    assert "worker.event(None, local_received, timestamp)" in source
    assert "self.event = self._create_event_handler()" in inspect.getsource(celery_state.Worker.__init__)
    parameters = list(inspect.signature(celery_state.Worker).parameters)
    values = {name: [] if name == "heartbeats" else name for name in parameters}
    assert celery_state.Worker(**values).__reduce__() == (celery_state.Worker, tuple(values.values()))
    assert tuple(parameters) == celery_state.Worker._fields
