"""Valid and malformed events."""

from __future__ import annotations

import json
from typing import Any

from celery.events.state import Task
from hypothesis import strategies as st

from flower_proxy.events.state import State

BASE = {"hostname": "w1@host", "timestamp": 1_790_000_000.5, "utcoffset": 0, "pid": 7, "clock": 3}
SOFTWARE = {"freq": 2.0, "sw_ident": "py-celery", "sw_ver": "5.7.0", "sw_sys": "Linux"}
IDS = {"uuid": "id-1", "root_id": "id-1", "parent_id": None}
EVENTS: tuple[dict[str, Any], ...] = (
    {**BASE, **SOFTWARE, "type": "worker-online"},
    {**BASE, **SOFTWARE, "type": "worker-heartbeat", "active": 1, "processed": 5, "loadavg": [0.1, 0.2, 0.3]},
    {**BASE, **SOFTWARE, "type": "worker-offline"},
    {
        **BASE,
        **IDS,
        "type": "task-sent",
        "hostname": "gen9@host",
        "name": "tasks.add",
        "args": "(1, 2)",
        "kwargs": "{'a': 1}",
        "retries": 0,
        "eta": None,
        "expires": None,
        "queue": "celery",
        "exchange": "",
        "routing_key": "celery",
    },
    {
        **BASE,
        **IDS,
        "type": "task-received",
        "name": "tasks.add",
        "args": "(1, 2)",
        "kwargs": "{'a': 1}",
        "retries": 0,
        "eta": "2026-11-26T12:00:00+00:00",
        "expires": None,
    },
    {**BASE, **IDS, "type": "task-started"},
    {**BASE, **IDS, "type": "task-succeeded", "result": "3", "runtime": 0.25},
    {**BASE, **IDS, "type": "task-failed", "exception": "ValueError('x')", "traceback": "Traceback ..."},
    {**BASE, **IDS, "type": "task-retried", "exception": "ValueError('x')", "traceback": "Traceback ..."},
    {**BASE, **IDS, "type": "task-revoked", "terminated": True, "signum": "SIGTERM", "expired": False},
    {**BASE, **IDS, "type": "task-rejected", "requeue": False},
    {**BASE, **IDS, "type": "task-progress", "done": 3, "of": 7},
    {**BASE, "type": "deploy-finished", "version": "1.2"},
)
"""A valid event of each of Celery's types, and two of custom types."""

FIELDS = sorted({name for event in EVENTS for name in event} | {*Task._fields, *State.Worker._fields})
ATTRIBUTES = sorted({*dir(Task), *vars(Task()), *dir(State.Worker), *dir(State.Worker("w@h")), "expire_window"})

NESTED: Any = "x"
for _ in range(200):
    NESTED = [NESTED]
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "\ud800",
    "\x00\n\r",
    "ä" * 300,
    "x" * 200_000,
    "</script>{{ 1 }}",
    "-" * 60_000 + "1",
    "+".join("1" * 30_000),
    "{[]: 1}",
    [],
    ["x"],
    [None, float("nan")],
    ["\ud800"],
    {},
    {"a": {"b": None}},
    {"\ud800": "\ud800"},
    NESTED,
)
"""Values that break a consumer of events without validation."""


def values() -> st.SearchStrategy[Any]:
    """Generate values that JSON can represent."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
    return st.sampled_from(HOSTILE) | st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


@st.composite
def hostile_events(draw: st.DrawFn) -> dict[str, Any]:
    """Generate a valid event with missing, invalid or unknown fields."""
    event = dict(draw(st.sampled_from(EVENTS)))
    for name in draw(st.lists(st.sampled_from(list(event)), max_size=2)):
        event.pop(name, None)
    names = st.sampled_from(list(event) or ["type"]) | st.sampled_from(FIELDS) | st.sampled_from(ATTRIBUTES)
    event.update(draw(st.dictionaries(names | st.text(st.characters(), max_size=8), values(), max_size=3)))
    return event


def messages() -> st.SearchStrategy[Any]:
    """Generate decoded messages: events, lists of events, and arbitrary values."""
    return hostile_events() | st.lists(hostile_events() | values(), max_size=4) | values()


def as_json(value: Any) -> str:
    """Encode any value as JSON, with Python's NaN and surrogates."""
    return json.dumps(value)
