"""Benchmark of event throughput and event loop lag: ``python -m tests.bench.events``. It has no assertions.

Stock Flower and flower-proxy process decoded messages alternately, in one process. A thread passes events to them,
first at full speed and then at a constant rate, while the event loop runs a timer every 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from flower.events import Events
from kombu import Connection
from prometheus_client import Histogram
from tornado.ioloop import IOLoop

from flower_proxy.events.receiver import Receiver
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.process import EventDelay
from flower_proxy.metrics.recorder import Recorder
from tests.support.intake import Intake, intake_of

WORKERS, NAMES = 10, 50
INTERVAL = 0.010  # seconds
TASK_EVENTS = ("task-received", "task-started", "task-succeeded")


def stock_intake(receiver: Events) -> EventReceiver:
    """Return the consumer that passes decoded messages to the receiver."""
    return EventReceiver(Connection("memory://"), handlers={"*": receiver.on_event}, app=receiver.capp)


def ours(capp: Celery, **settings: Any) -> Receiver:
    """Return a receiver with the listeners of `flower_proxy.app`."""
    recorder = Recorder(Histogram.DEFAULT_BUCKETS)
    receiver = Receiver(capp, listeners=[recorder, EventDelay(), TaskEvents(5000)], **settings)
    recorder.begin(receiver.state)
    return receiver


KINDS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "stock": (Events, stock_intake),
    "ours": (ours, intake_of),
}


@dataclass
class Turn:
    """Results of one turn.

    :ivar rate: events per second.
    :ivar delays: lag of each run of the timer, in seconds.
    :ivar pauses: duration of each garbage collection, in seconds.
    """

    rate: float = 0.0
    delays: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=lambda: [0.0])

    @property
    def percentile(self) -> float:
        return sorted(self.delays)[int(len(self.delays) * 0.99)]


def events(count: int) -> Iterator[dict[str, Any]]:
    """Yield events of consecutive tasks, each of which is received, started and succeeds."""
    for number in range(count):
        task, step = divmod(number, len(TASK_EVENTS))
        now = time.time()
        yield {
            "type": TASK_EVENTS[step],
            "uuid": f"{task:036}",
            "name": f"tasks.name{task % NAMES}",
            "hostname": f"worker@host{task % WORKERS}",
            "args": "(1, 2)",
            "kwargs": "{}",
            "runtime": 0.1,
            "result": "'done'",
            "clock": number,
            "pid": 1,
            "utcoffset": 0,
            "timestamp": now,
        }


@contextlib.contextmanager
def recorded_collections(pauses: list[float]) -> Iterator[None]:
    begin = 0.0

    def record(phase: str, _: dict[str, int]) -> None:
        nonlocal begin
        if phase == "start":
            begin = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - begin)

    gc.callbacks.append(record)
    try:
        yield
    finally:
        gc.callbacks.remove(record)


def send(intake: EventReceiver | Intake, count: int, rate: float | None) -> None:
    begin = time.perf_counter()
    # In blocks of 10 ms, since shorter sleeps are inaccurate
    block = max(1, int(rate * INTERVAL)) if rate else count
    for number, event in enumerate(events(count)):
        if rate and number % block == 0:
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        intake._receive(event, None)


async def measure(kind: str, count: int, rate: float | None) -> Turn:
    """Send events at this rate per second; at full speed if it is None."""
    turn = Turn()
    capp = Celery(broker="memory://")
    make, intake = KINDS[kind]
    receiver = make(capp, io_loop=IOLoop.current(), enable_events=False, max_tasks_in_memory=10_000)
    thread = threading.Thread(target=send, args=(intake(receiver), count, rate))
    begin = due = time.perf_counter()
    thread.start()
    with recorded_collections(turn.pauses):
        while receiver.state.event_count < count:
            due = max(due + INTERVAL, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            turn.delays.append(time.perf_counter() - due)
    turn.rate = count / (time.perf_counter() - begin)
    thread.join()
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of measurements of each kind")
    parser.add_argument("--events", type=int, default=30_000, help="events per turn")
    parser.add_argument("--rate", type=float, default=5000.0, help="constant rate in events per second")
    arguments = parser.parse_args()
    count = arguments.events
    for name, target in (("full speed", None), (f"{arguments.rate:.0f} per second", arguments.rate)):
        turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
        for number in range(arguments.turns + 1):
            for kind, results in turns.items():
                result = asyncio.run(measure(kind, count, target))
                # The first turn is a warm-up
                if number:
                    results.append(result)
        print(f"{count} events, {name}")
        for kind, results in turns.items():
            rate = median(turn.rate for turn in results)
            worst = max(max(turn.delays) for turn in results) * 1000
            usual = median(turn.percentile for turn in results) * 1000
            pause = max(max(turn.pauses) for turn in results) * 1000
            print(
                f"  {kind:5}  {rate:8.0f} events/s   event loop lag: p99 {usual:7.1f} ms, worst {worst:7.1f} ms"
                f"   longest garbage collection {pause:7.1f} ms"
            )
        ratios = [ours.rate / stock.rate for stock, ours in zip(turns["stock"], turns["ours"], strict=True)]
        print(f"  ratio of rates, ours to stock: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
