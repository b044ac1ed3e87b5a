"""How many events a second the state takes in, and how late others are meanwhile: ``python -m tests.bench.events``.

Stock Flower's way from decoded messages to its state and ours, by turns in one process. A thread hands the events over,
as fast as it can and then at a steady pace, while the event loop is to serve a ping every 10 ms. It asserts nothing.
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

from flower_proxy.events.receiver import MAX_WAITING, Receiver
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.metrics.process import EventDelay
from flower_proxy.metrics.recorder import Recorder
from tests.support.intake import intake_of

WORKERS, NAMES = 10, 50
PING = 0.010  # seconds
TASK_EVENTS = ("task-received", "task-started", "task-succeeded")


def stock_intake(receiver: Events) -> EventReceiver:
    """Return what decoded messages go through before the receiver gets them."""
    return EventReceiver(Connection("memory://"), handlers={"*": receiver.on_event}, app=receiver.capp)


def ours(capp: Celery, **settings: Any) -> Receiver:
    """Return a receiver with the listeners that `flower_proxy.app` gives it."""
    recorder = Recorder(Histogram.DEFAULT_BUCKETS)
    receiver = Receiver(capp, listeners=[recorder, EventDelay(), TaskEvents(5000)], **settings)
    recorder.begin(receiver.state)
    return receiver


KINDS: dict[str, tuple[Callable[..., Any], Callable[[Any], EventReceiver]]] = {
    "stock": (Events, stock_intake),
    "ours": (ours, intake_of),
}


@dataclass
class Turn:
    """What one turn has shown.

    :ivar rate: events taken in a second.
    :ivar delays: by how many seconds each ping was late.
    :ivar pauses: the seconds of each run of Python's garbage collector, during which nothing else runs.
    """

    rate: float = 0.0
    delays: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=lambda: [0.0])

    @property
    def percentile(self) -> float:
        return sorted(self.delays)[int(len(self.delays) * 0.99)]


def events(count: int) -> Iterator[dict[str, Any]]:
    """The events of tasks one after the other, each received, started and succeeded."""
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
def collections_noted(pauses: list[float]) -> Iterator[None]:
    begin = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal begin
        if phase == "start":
            begin = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - begin)

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)


def hand_over(intake: EventReceiver, count: int, pace: float | None) -> None:
    begin = time.perf_counter()
    # In blocks of 10 ms, as to sleep for less is not exact
    block = max(1, int(pace * PING)) if pace else count
    for number, event in enumerate(events(count)):
        if pace and number % block == 0:
            time.sleep(max(0.0, begin + number / pace - time.perf_counter()))
        intake._receive(event, None)


async def measure(kind: str, count: int, pace: float | None) -> Turn:
    """Hand over that many events, at this pace a second or, if None, as fast as it goes."""
    turn = Turn()
    capp = Celery(broker="memory://")
    make, intake = KINDS[kind]
    receiver = make(capp, io_loop=IOLoop.current(), enable_events=False, max_tasks_in_memory=10_000)
    thread = threading.Thread(target=hand_over, args=(intake(receiver), count, pace))
    begin = due = time.perf_counter()
    thread.start()
    with collections_noted(turn.pauses):
        while receiver.state.event_count < count:
            due = max(due + PING, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            turn.delays.append(time.perf_counter() - due)
    turn.rate = count / (time.perf_counter() - begin)
    thread.join()
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--events", type=int, default=30_000, help=f"in each turn, at most {MAX_WAITING}")
    parser.add_argument("--pace", type=float, default=5000.0, help="events a second when they come steadily")
    arguments = parser.parse_args()
    count = min(arguments.events, MAX_WAITING)
    for name, pace in (("as fast as it goes", None), (f"{arguments.pace:.0f} a second", arguments.pace)):
        turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
        for number in range(arguments.turns + 1):
            for kind, results in turns.items():
                result = asyncio.run(measure(kind, count, pace))
                # The first one warms up
                if number:
                    results.append(result)
        print(f"{count} events, {name}")
        for kind, results in turns.items():
            rate = median(turn.rate for turn in results)
            worst = max(max(turn.delays) for turn in results) * 1000
            usual = median(turn.percentile for turn in results) * 1000
            pause = max(max(turn.pauses) for turn in results) * 1000
            print(
                f"  {kind:5}  {rate:8.0f} events/s   ping late: p99 {usual:7.1f} ms, worst {worst:7.1f} ms"
                f"   longest collection of garbage {pause:7.1f} ms"
            )
        ratios = [ours.rate / stock.rate for stock, ours in zip(turns["stock"], turns["ours"], strict=True)]
        print(f"  ratio of rates, ours to stock: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
