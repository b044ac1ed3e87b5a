"""Reception of events: persistence and reconnection."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from celery.events import EventReceiver
from kombu.mixins import ConsumerMixin
from kombu.pidbox import Mailbox
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

from flower_proxy._timer import Timer
from flower_proxy.events import broker
from flower_proxy.events.receiver import Receiver
from tests.support import programs
from tests.support.loops import running
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


def test_timers_do_not_depend_on_the_wall_clock(idle_loop: CountingLoop) -> None:
    assert type(new_receiver(idle_loop, enable_events=True).timer) is Timer


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
        first = receiver.dispatcher.last_event
        outage.stop()
        wait_until(lambda: not receiver.connected, what="the outage is noticed")
        outage.start()
        wait_until(lambda: receiver.connected, what="the receiver is connected again")
        send_heartbeat(capp, "after@test")
        wait_until(lambda: "after@test" in receiver.state.workers, what="the second event is processed")
        assert first is not None
        assert (receiver.dispatcher.last_event or 0) > first
        assert (receiver.dispatcher.received, receiver.dispatcher.dropped, receiver.reconnects) == (2, 0, 1)
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
    """The methods that `KombuSource` overrides are called."""
    assert issubclass(EventReceiver, ConsumerMixin)
    assert "with self.establish_connection() as conn" in inspect.getsource(ConsumerMixin.Consumer)
    assert "self.on_consume_ready(" in inspect.getsource(ConsumerMixin.consumer_context)
    assert "if self.should_stop" in inspect.getsource(ConsumerMixin.consume)
    assert "self.wakeup_workers(channel=channel)" in inspect.getsource(EventReceiver.on_consume_ready)
    assert "control.broadcast('heartbeat'" in inspect.getsource(EventReceiver.wakeup_workers)
    assert "with self.producer_pool.acquire() as producer" in inspect.getsource(Mailbox.producer_or_acquire)
