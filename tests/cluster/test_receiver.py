"""Reception of events: queue, listeners, persistence and reconnection."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events import EventReceiver
from kombu.mixins import ConsumerMixin
from kombu.pidbox import Mailbox
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

from flower_proxy._flower import Events, EventsState
from flower_proxy._timer import Timer
from flower_proxy.events import broker
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.state import State
from flower_proxy.metrics.process import EventDelay
from tests.support import programs
from tests.support.outage import Interruptible, interruptible, leaves_a_deaf_broker, network_to
from tests.support.processes import wait_until

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

WORKER = "w9@test"
HEARTBEAT = {"type": "worker-heartbeat", "hostname": WORKER, "freq": 60.0, "active": 0, "processed": 0}


class CountingLoop(AsyncIOLoop):
    """An event loop that counts its callbacks."""

    callbacks = 0

    def add_callback(self, *args: Any, **kwargs: Any) -> None:
        self.callbacks += 1
        super().add_callback(*args, **kwargs)


@pytest.fixture
def idle_loop() -> Iterator[CountingLoop]:
    """An event loop that is not running."""
    loop = CountingLoop(make_current=False)
    yield loop
    loop.close(all_fds=True)


@pytest.fixture
def loop(idle_loop: CountingLoop) -> Iterator[IOLoop]:
    """An event loop that runs in a thread."""
    with running(idle_loop):
        yield idle_loop


@contextmanager
def running(loop: IOLoop) -> Iterator[None]:
    thread = threading.Thread(target=loop.start)
    thread.start()
    try:
        yield
    finally:
        loop.add_callback(loop.stop)
        thread.join()


def new_receiver(
    loop: IOLoop, capp: Celery | None = None, kind: type[Receiver] = Receiver, **settings: Any
) -> Receiver:
    settings = {"max_tasks_in_memory": 100_000, "enable_events": False, **settings}
    return kind(capp or Celery(broker="memory://"), io_loop=loop, **settings)


@contextmanager
def receiving(loop: IOLoop, capp: Celery, kind: type[Receiver] = Receiver, **settings: Any) -> Iterator[Receiver]:
    receiver = new_receiver(loop, capp, kind, **settings)
    receiver.start()
    try:
        wait_until(lambda: receiver.connected, what="the receiver is connected")
        yield receiver
    finally:
        receiver.stop()
        receiver.join()


def heartbeat(number: int = 0, *, age: float = 0.0) -> dict[str, Any]:
    now = time.time()
    return {**HEARTBEAT, "clock": number, "timestamp": now - age, "local_received": now, "utcoffset": 0}


def task_received(number: int) -> dict[str, Any]:
    return {**heartbeat(number), "type": "task-received", "uuid": f"id-{number}", "name": "tasks.add"}


def send_from_a_thread(receiver: Receiver, events: list[dict[str, Any]]) -> None:
    """Pass events to the receiver as its thread does."""

    def send() -> None:
        for event in events:
            receiver.on_event(event)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()


# Queue for the event loop


def test_events_beyond_the_limit_are_dropped_and_counted(idle_loop: CountingLoop) -> None:
    """A blocked event loop must not fill the memory."""
    receiver = new_receiver(idle_loop, max_waiting=10)
    send_from_a_thread(receiver, [task_received(number) for number in range(15)])
    assert (receiver.received, receiver.dropped) == (15, 5)
    with running(idle_loop):
        wait_until(lambda: receiver.state.event_count == 10, what="the waiting events are processed")
        send_from_a_thread(receiver, [task_received(20)])
        wait_until(lambda: "id-20" in receiver.state.tasks, what="further events are processed")
    assert (receiver.received, receiver.dropped) == (16, 5)
    assert list(receiver.state.tasks) == [f"id-{number}" for number in [*range(10), 20]]


def test_many_events_need_one_callback(idle_loop: CountingLoop) -> None:
    """Stock Flower schedules a callback for each event (mher/flower#759)."""
    receiver = new_receiver(idle_loop)
    send_from_a_thread(receiver, [heartbeat(number) for number in range(1000)])
    assert idle_loop.callbacks == 1


def test_events_do_not_block_the_event_loop(idle_loop: CountingLoop) -> None:
    receiver = new_receiver(idle_loop)
    events = 10_000
    send_from_a_thread(receiver, [task_received(number) for number in range(events)])
    counts: list[int] = []

    def observe() -> None:
        counts.append(receiver.state.event_count)
        if counts[-1] < events:
            idle_loop.add_callback(observe)

    idle_loop.add_callback(observe)
    with running(idle_loop):
        wait_until(lambda: counts and counts[-1] == events, what="all events are processed")
    assert len({count for count in counts if 0 < count < events}) > 3


def test_events_received_during_processing_are_processed(loop: IOLoop) -> None:
    receiver = new_receiver(loop)
    for number in range(5000):
        receiver.on_event(heartbeat(number))
    wait_until(lambda: receiver.state.event_count == 5000, what="all events are processed")


class FailingListener:
    """Records the types of events, and raises an error for task events."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        for event in batch:
            self.types.append(event["type"])
            if event["type"].startswith("task-"):
                raise ValueError(event["type"])


def test_processing_continues_after_an_error_of_the_state(loop: IOLoop, caplog: pytest.LogCaptureFixture) -> None:
    listener = FailingListener()
    receiver = new_receiver(loop, listeners=[listener])
    send_from_a_thread(receiver, [{"type": "task-received"}, {}, heartbeat()])
    wait_until(lambda: listener.types, what="the third event is processed")
    assert listener.types == ["worker-heartbeat"]
    assert WORKER in receiver.state.workers
    assert receiver.rejections.counts["processing_failed"] == 2
    assert ["processing_failed" in record.message for record in caplog.records] == [True]


def test_errors_of_a_listener_do_not_affect_other_listeners(
    idle_loop: CountingLoop, caplog: pytest.LogCaptureFixture
) -> None:
    listeners = [FailingListener(), FailingListener()]
    receiver = new_receiver(idle_loop, listeners=listeners)
    for event in (task_received(1), heartbeat(2)):
        receiver.process(event)
    assert [listener.types for listener in listeners] == [["task-received", "worker-heartbeat"]] * 2
    assert receiver.rejections.counts["processing_failed"] == 2
    assert ["processing_failed" in record.message for record in caplog.records] == [True]


class StateListener:
    """Records the state of the task of each event."""

    receiver: Receiver

    def __init__(self) -> None:
        self.states: list[str] = []

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        self.states += [self.receiver.state.tasks.data[event["uuid"]].state for event in batch]


def test_listeners_see_the_state_right_after_each_event(idle_loop: CountingLoop) -> None:
    listener = StateListener()
    receiver = new_receiver(idle_loop, listeners=[listener])
    listener.receiver = receiver
    send_from_a_thread(receiver, [task_received(1), {**task_received(1), "type": "task-started", "clock": 2}])
    with running(idle_loop):
        wait_until(lambda: len(listener.states) == 2, what="both events are processed")
    assert listener.states == ["RECEIVED", "STARTED"]


@pytest.mark.parametrize(
    ("age", "least", "most"),
    [
        pytest.param(100.0, 100.0, 160.0, id="delayed"),
        pytest.param(-100.0, 0.0, 0.0, id="clock-ahead"),
    ],
)
def test_the_delay_of_events_is_observed(age: float, least: float, most: float, idle_loop: CountingLoop) -> None:
    delay = EventDelay()
    new_receiver(idle_loop, listeners=[delay]).process(heartbeat(age=age))
    (metric,) = delay.histogram.collect()
    observed = {sample.name.rpartition("_")[2]: sample.value for sample in metric.samples}
    assert observed["count"] == 1
    assert least <= observed["sum"] <= most


# Persistence


@pytest.mark.parametrize("writer", [Receiver, Events])
@pytest.mark.parametrize("reader", [Receiver, Events])
def test_stock_flower_and_flower_proxy_load_states_of_each_other(
    writer: type[Events], reader: type[Events], idle_loop: CountingLoop, tmp_path: Path
) -> None:
    settings = {"db": str(tmp_path / "flower"), "persistent": True, "max_tasks_in_memory": 100}
    capp = Celery(broker="memory://")
    before = writer(capp, io_loop=idle_loop, enable_events=False, **settings)
    for event in (heartbeat(1), task_received(2)):
        before.state.event(event)
    before.stop()
    after = reader(capp, io_loop=idle_loop, enable_events=False, **settings)
    assert type(after.state) is (State if reader is Receiver else EventsState)
    assert after.state.tasks["id-2"].name == "tasks.add"
    assert after.state.counter[WORKER] == {"worker-heartbeat": 1, "task-received": 1}


def test_timers_do_not_depend_on_the_wall_clock(idle_loop: CountingLoop, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"db": str(tmp_path / "flower"), "persistent": True, "state_save_interval": 60_000}
    receiver = new_receiver(idle_loop, **settings, enable_events=True)
    assert [type(timer) for timer in (receiver.timer, receiver.state_save_timer)] == [Timer, Timer]


# Connection to the broker


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def outage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interruptible]:
    """A Redis server, or the network to a RabbitMQ server, which takes seconds to restart."""
    folder = tmp_path_factory.mktemp(request.param)
    with interruptible(request.param, folder) as server:
        if request.param == "redis":
            yield server
            return
        network = network_to(server.broker, folder)
        network.start()
        yield network
        network.stop()


def send_heartbeat(capp: Celery, worker: str) -> None:
    with capp.connection_for_write() as connection, capp.events.Dispatcher(connection, hostname=worker) as dispatcher:
        dispatcher.send("worker-heartbeat", freq=60.0)


def test_the_receiver_reconnects_after_an_outage(
    loop: IOLoop, outage: Interruptible, caplog: pytest.LogCaptureFixture
) -> None:
    """Stock Flower waits longer after a longer outage (mher/flower#321)."""
    capp = Celery(broker=outage.broker.url)
    reconnected: list[bool] = []
    with receiving(loop, capp, on_reconnect=lambda: reconnected.append(True)) as receiver:
        send_heartbeat(capp, "before@test")
        wait_until(lambda: "before@test" in receiver.state.workers, what="the first event is processed")
        first = receiver.last_event
        outage.stop()
        wait_until(lambda: not receiver.connected, what="the outage is noticed")
        outage.start()
        wait_until(lambda: receiver.connected, what="the receiver is connected again")
        send_heartbeat(capp, "after@test")
        wait_until(lambda: "after@test" in receiver.state.workers, what="the second event is processed")
        assert first is not None
        assert receiver.last_event is not None
        assert receiver.last_event > first
        assert (receiver.received, receiver.dropped, receiver.reconnects) == (2, 0, 1)
        assert len(reconnected) == 1
    assert not receiver.connected
    messages = [record.message for record in caplog.records if record.name == "flower_proxy.events.receiver"]
    assert messages == ["Lost the broker connection (the broker cannot be reached); reconnecting"]


class SendsWhenReady(Receiver):
    def on_ready(self) -> None:
        super().on_ready()
        send_heartbeat(self.capp, WORKER)


def test_events_are_received_as_soon_as_it_is_connected(loop: IOLoop, outage: Interruptible) -> None:
    """Workers answer the request for heartbeats immediately."""
    with receiving(loop, Celery(broker=outage.broker.url), SendsWhenReady) as receiver:
        wait_until(lambda: WORKER in receiver.state.workers, what="the event is processed")


def test_the_receiver_connects_when_the_broker_starts_later(loop: IOLoop, outage: Interruptible) -> None:
    outage.stop()
    receiver = new_receiver(loop, Celery(broker=outage.broker.url))
    receiver.start()
    try:
        outage.start()
        wait_until(lambda: receiver.connected, what="the receiver is connected")
        assert receiver.reconnects == 0
    finally:
        receiver.stop()
        receiver.join()


def test_a_hanging_broker_does_not_delay_the_end(
    loop: IOLoop, outage: Interruptible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(broker._TIMEOUTS["py-amqp"], "read_timeout", 1.0)
    with receiving(loop, Celery(broker=outage.broker.url)) as receiver, outage.frozen():
        receiver.stop()
        wait_until(lambda: not receiver.connected, what="it has disconnected")


def test_events_of_real_workers_are_received(loop: IOLoop, worker: programs.Broker) -> None:
    with receiving(loop, Celery(broker=worker.url)) as receiver:
        ids = worker.run_tasks()
        wait_until(lambda: all(receiver.state.tasks.get(uuid) is not None for uuid in ids), what="the tasks are known")
        wait_until(lambda: [name for name, w in receiver.state.workers.items() if w.alive], what="the worker is online")


SCRIPT = """
import asyncio, sys
from celery import Celery
from tornado.ioloop import IOLoop
from flower_proxy.events import broker
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.state import State

async def main():
    receiver = Receiver(Celery(broker=sys.argv[1]), io_loop=IOLoop.current(), max_tasks_in_memory=10)
    receiver.start()
    await asyncio.to_thread(sys.stdin.readline)
    receiver.stop()

asyncio.run(main())
print("left")
"""


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_hanging_broker_does_not_delay_the_end_of_the_process(scheme: str) -> None:
    """Stock Flower hangs for minutes after SIGTERM (mher/flower#771)."""
    assert leaves_a_deaf_broker(SCRIPT, scheme) == ("left\n", 0)


# Assumptions about Celery and kombu


def test_celery_and_kombu_internals() -> None:
    """The methods that `Stream` overrides are called."""
    assert issubclass(EventReceiver, ConsumerMixin)
    assert "with self.establish_connection() as conn" in inspect.getsource(ConsumerMixin.Consumer)
    assert "self.on_consume_ready(" in inspect.getsource(ConsumerMixin.consumer_context)
    assert "if self.should_stop" in inspect.getsource(ConsumerMixin.consume)
    assert "self.wakeup_workers(channel=channel)" in inspect.getsource(EventReceiver.on_consume_ready)
    assert "control.broadcast('heartbeat'" in inspect.getsource(EventReceiver.wakeup_workers)
    assert "with self.producer_pool.acquire() as producer" in inspect.getsource(Mailbox.producer_or_acquire)
