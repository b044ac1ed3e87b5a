"""Online status and last event of workers, which depend on the local monotonic clock only."""

from __future__ import annotations

import inspect
import pickle
import time
from dataclasses import dataclass
from typing import Any

import pytest
from celery.events import state as celery_state

from flower_proxy._flower import EventsState
from flower_proxy.events.state import State
from flower_proxy.events.worker import Worker
from tests.support.states import pickled, restore, restored

NAME, HOUR = "w1@host", 3600
FREQUENCY = 2.0  # seconds; a worker without events for twice as long is offline


@dataclass
class Clocks:
    """Local clocks, in place of the module `time`."""

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
def test_a_step_of_the_local_clock_does_not_change_the_status(step: float, state: State, clocks: Clocks) -> None:
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
def test_a_clock_step_while_an_event_waits_does_not_change_the_status(
    step: float, state: State, clocks: Clocks
) -> None:
    worker = send(state, clocks)
    received = clocks.wall
    clocks.pass_(1)
    clocks.wall += step
    send(state, clocks, local_received=received)
    assert worker.alive


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
@pytest.mark.parametrize("kind", ["worker-heartbeat", "task-received"])
def test_the_clock_of_the_worker_is_ignored(ahead: float, kind: str, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    clocks.pass_(3)
    send(state, clocks, kind, uuid="1", name="add", ahead=ahead)
    clocks.pass_(3)
    assert worker.alive
    assert worker.heartbeats == [clocks.wall - 3]
    clocks.pass_(3)
    assert not worker.alive


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_shutdown_is_the_last_event(ahead: float, state: State, clocks: Clocks) -> None:
    worker = send(state, clocks)
    send(state, clocks, "worker-offline", ahead=ahead)
    assert not worker.alive
    assert worker.heartbeats == []
    clocks.pass_(5)
    assert worker.timestamp == clocks.wall - 5
    send(state, clocks, "worker-online")
    assert worker.alive


def test_the_time_of_reception_counts_when_processing_is_delayed(state: State, clocks: Clocks) -> None:
    worker = send(state, clocks, local_received=clocks.wall - 60)
    assert not worker.alive
    assert worker.heartbeats == [clocks.wall - 60]


def test_a_worker_without_events_is_offline() -> None:
    worker = Worker(NAME)
    assert (worker.alive, worker.heartbeats, worker.timestamp) == (False, [], None)


def test_clock_skew_is_measured_by_worker_events(state: State, clocks: Clocks) -> None:
    worker = send(state, clocks, "task-received", uuid="1", name="add", ahead=50)
    # Workers buffer task events
    assert worker.ahead is None
    assert send(state, clocks, ahead=-7.5).ahead == -7.5


def test_events_set_only_documented_fields(state: State, clocks: Clocks) -> None:
    attributes: dict[str, Any] = dict.fromkeys(
        ("heartbeats", "expire_window", "alive", "event", "id", "_last_event"), "x"
    )
    worker = send(state, clocks, active=3, processed=7, sw_ver="5.7.0", loadavg=[1, 2, 3], pid=17, **attributes)
    assert (worker.active, worker.processed, worker.sw_ver) == (3, 7, "5.7.0")
    assert (worker.loadavg, worker.pid, worker.freq) == ([1, 2, 3], 17, FREQUENCY)
    assert worker.alive
    assert worker.heartbeats == [clocks.wall]
    assert send(state, clocks).alive


# Persistence


@pytest.mark.parametrize("last", ["worker-heartbeat", "worker-offline"])
def test_workers_are_saved_as_celery_workers_and_restored(last: str, state: State, clocks: Clocks) -> None:
    send(state, clocks, "task-received", uuid="1", name="add")
    send(state, clocks, last, active=3)
    last_event = clocks.wall
    before = pickled(state)
    saved = pickle.loads(before)
    assert type(saved) is EventsState
    assert type(saved.workers[NAME]) is celery_state.Worker
    assert saved.workers[NAME].timestamp == last_event
    # The machine restarts
    clocks.pass_(60)
    clocks.uptime = 10
    after = State(max_tasks_in_memory=10)
    restore(after, before, {})
    worker = after.workers[NAME]
    assert type(worker) is Worker
    assert (worker.active, worker.freq, worker.alive) == (3, FREQUENCY, False)
    assert (worker.timestamp, worker.heartbeats) == (last_event, [] if last == "worker-offline" else [last_event])
    # The task refers to the same object
    assert after.tasks["1"].worker is worker


def test_tasks_keep_their_evicted_worker(state: State, clocks: Clocks) -> None:
    for uuid in "12":
        send(state, clocks, "task-received", uuid=uuid, name="add")
    state.workers.pop(NAME)
    after = restored(state)
    assert NAME not in after.workers
    assert type(after.tasks["1"].worker) is Worker
    assert after.tasks["1"].worker is after.tasks["2"].worker


def test_workers_saved_by_celery_are_restored(clocks: Clocks) -> None:
    """Celery does not save the timestamp."""
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


# Assumptions about Celery


def test_celery_internals() -> None:
    """Celery constructs, updates and pickles workers as `Worker` expects."""
    source = inspect.getsource(celery_state)
    assert "worker = workers[hostname] = Worker(hostname)" in source
    assert "worker.event(subject, timestamp, local_received, event)" in source
    assert "worker.event(None, local_received, timestamp)" in source
    assert "self.event = self._create_event_handler()" in inspect.getsource(celery_state.Worker.__init__)
    parameters = list(inspect.signature(celery_state.Worker).parameters)
    values = {name: [] if name == "heartbeats" else name for name in parameters}
    assert celery_state.Worker(**values).__reduce__() == (celery_state.Worker, tuple(values.values()))
    assert tuple(parameters) == celery_state.Worker._fields
