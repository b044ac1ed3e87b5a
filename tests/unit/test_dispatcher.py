"""Processing of events in the event loop: buffer, slices, errors at each step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from secrets import token_hex
from typing import Any

import pytest
from celery import Celery
from celery.events import EventReceiver
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection, Message
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

from flower_proxy.events import dispatcher as module
from flower_proxy.events.buffer import EventBuffer
from flower_proxy.events.dispatcher import Dispatcher
from flower_proxy.events.listener import Listener
from flower_proxy.events.state import State
from flower_proxy.events.validation import validate
from flower_proxy.metrics.process import EventDelay
from tests.support.events import EVENTS
from tests.support.loops import running
from tests.support.processes import wait_until

WORKER = "w9@test"


class Loop(AsyncIOLoop):
    """An event loop that counts its callbacks, and fails to take the first of them if `fails` is set."""

    callbacks = 0
    fails = False

    def add_callback(self, *args: Any, **kwargs: Any) -> None:
        if self.fails:
            self.fails = False
            raise ValueError("the callback is refused")
        self.callbacks += 1
        super().add_callback(*args, **kwargs)


@pytest.fixture
def idle_loop() -> Iterator[Loop]:
    """An event loop that is not running."""
    loop = Loop(make_current=False)
    yield loop
    loop.close(all_fds=True)


@pytest.fixture
def loop(idle_loop: Loop) -> Iterator[Loop]:
    """An event loop that runs in a thread."""
    with running(idle_loop):
        yield idle_loop


def new_dispatcher(loop: IOLoop, *, listeners: Sequence[Listener] = (), max_size: int = 10**8) -> Dispatcher:
    state = State(max_tasks_in_memory=100_000, max_workers_in_memory=100)
    return Dispatcher(Celery(broker="memory://"), loop, state, listeners=listeners, max_size=max_size)


def heartbeat(number: int = 0, *, age: float = 0.0) -> dict[str, Any]:
    event = {"type": "worker-heartbeat", "hostname": WORKER, "freq": 60.0, "active": 0, "processed": 0}
    return {**event, "clock": number, "timestamp": time.time() - age, "utcoffset": 0}


def task_received(number: int) -> dict[str, Any]:
    return {**heartbeat(number), "type": "task-received", "uuid": f"id-{number}", "name": "tasks.add"}


def put(dispatcher: Dispatcher, *bodies: Any) -> None:
    """Pass messages to the dispatcher from another thread, as sources do."""
    messages = [json.dumps(body) for body in bodies]
    thread = threading.Thread(target=dispatcher.put, args=(json.loads, messages))
    thread.start()
    thread.join()


class Types:
    """Records the types of events, and raises an error for those of tasks if `fails` is set."""

    def __init__(self, *, fails: bool = False) -> None:
        self.types: list[str] = []
        self._fails = fails

    def on_event(self, event: Mapping[str, Any]) -> None:
        self.types.append(event["type"])
        if self._fails and event["type"].startswith("task-"):
            raise ValueError(event["type"])


# The buffer


def test_messages_beyond_the_limit_are_dropped_and_their_events_counted(idle_loop: Loop) -> None:
    """A blocked event loop must not fill the memory."""
    dispatcher = new_dispatcher(idle_loop, max_size=10_000)
    lists = [[task_received(number), task_received(number + 1)] for number in range(0, 100, 2)]
    put(dispatcher, *lists)
    dropped = dispatcher.dropped
    assert 0 < dropped < 100
    assert (dispatcher.received, dropped % 2) == (dropped, 0)
    # No event in these
    put(dispatcher, [], *[token_hex(10_000)] * 2)
    assert dispatcher.dropped == dropped + 2
    with running(idle_loop):
        wait_until(lambda: dispatcher.received == 102, what="the waiting events are processed")
        put(dispatcher, task_received(200))
        wait_until(lambda: dispatcher.received == 103, what="further events are processed")
    assert dispatcher.dropped == dropped + 2


def test_waiting_messages_are_compressed(idle_loop: Loop) -> None:
    dispatcher = new_dispatcher(idle_loop, max_size=100_000)
    events = [task_received(number) for number in range(3000)]
    assert len(json.dumps(events)) > 400_000
    for begin in range(0, len(events), 100):
        put(dispatcher, *events[begin : begin + 100])
    while dispatcher.received < len(events):
        dispatcher.process()
    assert dispatcher.dropped == 0
    assert list(dispatcher._state.tasks) == [event["uuid"] for event in events]


def test_the_buffer_counts_dropped_messages_that_cannot_be_decoded_as_no_event() -> None:
    buffer = EventBuffer(0)
    buffer.put(json.loads, ["{", "{}", "[{}, {}]"])
    assert buffer.dropped == 3
    assert buffer.pop() is None


def test_the_buffer_returns_the_space_of_messages(idle_loop: Loop) -> None:
    buffer = EventBuffer(2000)
    for _ in range(10):
        buffer.put(json.loads, [b"1" * 1000, "[]", Message(body=b"{}")])
        batch = buffer.pop()
        assert batch is not None
        assert batch.messages[:2] == [b"1" * 1000, "[]"]
    assert buffer.dropped == 0


def test_many_messages_need_one_callback(idle_loop: Loop) -> None:
    """Stock Flower schedules a callback for each event (mher/flower#759)."""
    dispatcher = new_dispatcher(idle_loop)
    for number in range(100):
        put(dispatcher, heartbeat(number))
    assert idle_loop.callbacks == 1


def test_messages_received_during_processing_are_processed(loop: Loop) -> None:
    dispatcher = new_dispatcher(loop)
    for number in range(3000):
        dispatcher.put(json.loads, [json.dumps(heartbeat(number))])
    wait_until(lambda: dispatcher.received == 3000, what="all events are processed")


def test_invalid_messages_do_not_block_the_event_loop(idle_loop: Loop) -> None:
    dispatcher = new_dispatcher(idle_loop)
    dispatcher.put(json.loads, ["{"] * 20_000)
    dispatcher.process()
    assert 0 < dispatcher.rejections.counts["undecodable"] < 20_000
    assert idle_loop.callbacks == 2


@pytest.mark.parametrize("size", [1, 10_000], ids=["messages", "one-list"])
def test_events_do_not_block_the_event_loop(idle_loop: Loop, size: int) -> None:
    dispatcher, events = new_dispatcher(idle_loop), [task_received(number) for number in range(10_000)]
    put(dispatcher, *(events[begin : begin + size] for begin in range(0, len(events), size)))
    counts: list[int] = []

    def observe() -> None:
        counts.append(dispatcher.received)
        if counts[-1] < len(events):
            idle_loop.add_callback(observe)

    idle_loop.add_callback(observe)
    with running(idle_loop):
        wait_until(lambda: counts and counts[-1] == len(events), what="all events are processed")
    assert len({count for count in counts if 0 < count < len(events)}) > 3


def test_messages_wait_while_the_saved_state_is_loaded(loop: Loop) -> None:
    dispatcher = new_dispatcher(loop)
    dispatcher.is_paused = True
    put(dispatcher, task_received(1))
    passed = threading.Event()
    # After the callback that would process it
    loop.add_callback(passed.set)
    assert passed.wait(30)
    assert dispatcher.received == 0
    loop.add_callback(dispatcher.resume)
    put(dispatcher, task_received(2))
    wait_until(lambda: dispatcher.received == 2, what="the events are processed")


# Errors at each step


def fail_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises an error in its first call."""
    remaining = [ValueError("the first call")]

    def failing(*args: Any) -> Any:
        if remaining:
            raise remaining.pop()
        return function(*args)

    return failing


def fail_put(dispatcher: Dispatcher, _: Loop, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatcher._buffer, "put", fail_once(dispatcher._buffer.put))


def fail_wake_up(_: Dispatcher, loop: Loop, patch: pytest.MonkeyPatch) -> None:
    loop.fails = True


def fail_pop(dispatcher: Dispatcher, _: Loop, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatcher._buffer, "pop", fail_once(dispatcher._buffer.pop))


def fail_validation(_: Dispatcher, loop: Loop, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "validate", fail_once(validate))


def fail_state(dispatcher: Dispatcher, _: Loop, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatcher._state, "event", fail_once(dispatcher._state.event))


def fail_clock(dispatcher: Dispatcher, _: Loop, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatcher._clock, "adjust", fail_once(dispatcher._clock.adjust))


@pytest.mark.parametrize("fail", [fail_put, fail_wake_up, fail_pop, fail_validation, fail_clock, fail_state])
def test_an_error_at_any_step_stops_no_further_events(
    fail: Callable[..., None], loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial lost 128,100 of 150,000 events after one error."""
    listener = Types()
    dispatcher = new_dispatcher(loop, listeners=[listener])
    fail(dispatcher, loop, monkeypatch)
    put(dispatcher, task_received(1))
    for number in range(2, 12):
        put(dispatcher, heartbeat(number))
    wait_until(lambda: listener.types.count("worker-heartbeat") >= 10, what="the events after the error are processed")
    assert "first call" in caplog.text or "refused" in caplog.text


def test_messages_that_cannot_be_decoded_are_rejected(loop: Loop) -> None:
    listener = Types()
    dispatcher = new_dispatcher(loop, listeners=[listener])
    dispatcher.put(json.loads, ["{", "[" * 100_000, json.dumps(heartbeat())])
    wait_until(lambda: listener.types, what="the third message is processed")
    assert dispatcher.rejections.counts["undecodable"] == 2
    assert dispatcher.received == 1


def test_an_event_that_the_state_cannot_process_reaches_no_listener(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Types()
    dispatcher = new_dispatcher(loop, listeners=[listener])
    monkeypatch.setattr(dispatcher._state, "event", fail_once(fail_once(dispatcher._state.event)))
    put(dispatcher, [task_received(1), task_received(2), heartbeat()])
    wait_until(lambda: listener.types, what="the third event is processed")
    assert listener.types == ["worker-heartbeat"]
    assert dispatcher.rejections.counts["processing_failed"] == 2
    assert ["processing_failed" in record.message for record in caplog.records] == [True]


def test_errors_of_a_listener_do_not_affect_other_listeners(idle_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    listeners = [Types(fails=True), Types(fails=True)]
    dispatcher = new_dispatcher(idle_loop, listeners=listeners)
    put(dispatcher, task_received(1), heartbeat(2))
    dispatcher.process()
    assert [listener.types for listener in listeners] == [["task-received", "worker-heartbeat"]] * 2
    assert dispatcher.rejections.counts["processing_failed"] == 2
    assert ["processing_failed" in record.message for record in caplog.records] == [True]


# Events


class StateListener:
    """Records the state of the task of each event."""

    state: State

    def __init__(self) -> None:
        self.states: list[str] = []

    def on_event(self, event: Mapping[str, Any]) -> None:
        self.states.append(self.state.tasks.data[event["uuid"]].state)


def test_listeners_see_the_state_right_after_each_event(idle_loop: Loop) -> None:
    listener = StateListener()
    dispatcher = new_dispatcher(idle_loop, listeners=[listener])
    listener.state = dispatcher._state
    put(dispatcher, [task_received(1), {**task_received(1), "type": "task-started", "clock": 2}])
    dispatcher.process()
    assert listener.states == ["RECEIVED", "STARTED"]


@pytest.mark.parametrize(
    ("age", "least", "most"),
    [
        pytest.param(100.0, 100.0, 160.0, id="delayed"),
        pytest.param(-100.0, 0.0, 0.0, id="clock-ahead"),
    ],
)
def test_the_delay_of_events_is_observed(age: float, least: float, most: float, idle_loop: Loop) -> None:
    delay = EventDelay()
    dispatcher = new_dispatcher(idle_loop, listeners=[delay])
    put(dispatcher, heartbeat(age=age))
    dispatcher.process()
    (metric,) = delay.collect()
    observed = {sample.name.rpartition("_")[2]: sample.value for sample in metric.samples}
    assert observed["count"] == 1
    assert least <= observed["sum"] <= most


class Kept:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def on_event(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))


@settings(max_examples=settings().max_examples // 5)
@given(bodies=st.lists(st.sampled_from(EVENTS).flatmap(lambda event: st.just(event) | st.just(without_clock(event)))))
def test_logical_times_are_those_of_celery(bodies: list[dict[str, Any]]) -> None:
    """Workers order events by logical time, of which clients and old workers have none."""
    loop = Loop(make_current=False)
    kept = Kept()
    dispatcher = new_dispatcher(loop, listeners=[kept])
    theirs = EventReceiver(Connection("memory://"), app=Celery(broker="memory://"))
    put(dispatcher, *bodies)
    while len(kept.events) < len(bodies):
        dispatcher.process()
    loop.close(all_fds=True)
    expected = [theirs.event_from_message(deepcopy(body), localize=False)[1] for body in bodies]
    for event in (*kept.events, *expected):
        assert time.time() - event.pop("local_received") < 60
    assert kept.events == expected
    assert dispatcher._clock.value == theirs.clock.value


def without_clock(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "clock"}
