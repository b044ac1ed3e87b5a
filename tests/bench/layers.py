"""Benchmark of the layers that process an event, each alone, in CPU time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from celery.events.state import State as StockState
from prometheus_client import Histogram

from flower_proxy.events.decoding import decode_with_json, decode_with_orjson
from flower_proxy.events.state import State
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.events.validation import validate
from flower_proxy.metrics.process import EventDelay
from flower_proxy.metrics.recorder import Recorder
from tests.bench.figures import Row
from tests.bench.generator import Flood

EVENTS, BLOCK = 30_000, 100
RECORDER_BAR = 3.9
DECODERS = {"json": decode_with_json, **({"orjson": decode_with_orjson} if find_spec("orjson") else {})}

Event = dict[str, Any]


def measure(turns: int, scale: float) -> Iterator[Row]:
    """Yield the microseconds of each layer."""
    flood = Flood(0, EVENTS).scaled(scale)
    events = [{**event, "local_received": event["timestamp"]} for (event,) in flood.messages()]
    messages = [json.dumps(event).encode() for event in events]
    figures: dict[str, list[float]] = {}
    stock: list[float] = []
    for _ in range(turns):
        for name, decode in DECODERS.items():
            figures.setdefault(f"decoding, {name}", []).append(cost(map(decode, messages), len(messages)))
        figures.setdefault("validation", []).append(cost(map(validate, events), len(events)))
        stock.append(cost(map(StockState(max_tasks_in_memory=10_000).event, events), len(events)))
        figures.setdefault("state", []).append(cost(map(new_state().event, events), len(events)))
        for name, spent in listeners(events).items():
            figures.setdefault(name, []).append(spent)
    for name, values in figures.items():
        yield Row(
            f"layer: {name}, us",
            ours=values,
            stock=stock if name == "state" else [],
            bar=RECORDER_BAR if name == "recorder" else None,
            is_ratio=False,
            summary=min,
        )


def new_state() -> State:
    return State(max_tasks_in_memory=10_000, max_workers_in_memory=5000)


def cost(work: Iterable[object], number: int) -> float:
    """Return the microseconds per event of an iterator that processes one at each step."""
    begin = time.process_time()
    for _ in work:
        pass
    return (time.process_time() - begin) / number * 1e6


def listeners(events: list[Event]) -> dict[str, float]:
    """Return the microseconds per event of the listeners, which read the state after each event."""
    state, recorder = new_state(), Recorder(Histogram.DEFAULT_BUCKETS)
    recorder.begin(state)
    processes: dict[str, Callable[[Event], None]] = {
        "recorder": recorder.on_event,
        "delay": EventDelay().on_event,
        "task events": TaskEvents(5000).on_event,
    }
    spent = dict.fromkeys(processes, 0.0)
    for event in events:
        state.event(event)
        moments = [time.process_time()]
        for process in processes.values():
            process(event)
            moments.append(time.process_time())
        for name, before, after in zip(processes, moments, moments[1:], strict=False):
            spent[name] += after - before
    overhead = cost((time.process_time() for _ in events), len(events))
    return {name: seconds / len(events) * 1e6 - overhead for name, seconds in spent.items()}
