"""Robustness of pages, metrics and the saved state against invalid events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tornado.ioloop import IOLoop

from flower_proxy.app import FlowerProxy
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.state import State
from tests.http.conftest import Site
from tests.support.events import ATTRIBUTES, BASE, EVENTS, HOSTILE, messages
from tests.support.intake import intake_of
from tests.support.states import pickled, restore

PAGES = (
    "/",
    "/workers",
    "/workers?json=1",
    "/tasks",
    "/broker",
    "/metrics",
    "/ready",
    "/healthcheck",
    "/-/check",
    "/api/workers",
    "/api/tasks",
    "/api/tasks?state=SUCCESS&workername=w1@host",
    "/api/task/types",
    "/api/queues/length",
    *(f"/api/tasks?sort_by={key}" for key in ("name", "-state", "received", "-started")),
    *(f"/api/tasks?search={word}" for word in ("tasks", "kwargs:a=1", "state:FAILURE", "result:3")),
)
DATA = "/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&order[0][dir]=asc&columns[0][data]="
COLUMNS = ("name", "uuid", "state", "args", "kwargs", "result", "received", "started", "runtime", "worker", "retries")
GOOD = {**BASE, "type": "worker-heartbeat", "hostname": "good@host", "freq": 2.0, "active": 0, "processed": 1}


class Sender:
    """A sender of messages to an application, in place of its connection to the broker."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._stream = intake_of(receiver)

    def send(self, body: Any) -> None:
        self._stream._receive(json.loads(json.dumps(body)))
        self.receiver.dispatcher.process()


@pytest.fixture
def sender(app: FlowerProxy, io_loop: IOLoop) -> Sender:
    return Sender(app.monitor.receiver)


@pytest.fixture
def kind() -> str:
    return "kept"


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def paths_of(app: FlowerProxy) -> Iterator[str]:
    """Yield the paths of all pages that show events, including the pages of the tasks in memory."""
    yield from PAGES
    yield from (DATA + column for column in COLUMNS)
    for uuid in list(app.events.state.tasks):
        yield f"/task/{quote(uuid, safe='')}"
        yield f"/api/task/info/{quote(uuid, safe='')}"


def statuses(site: Site) -> dict[str, int]:
    responses = {path: site.fetch(path) for path in paths_of(site.app)}
    for path, response in responses.items():
        if "json" in response.headers.get("Content-Type", ""):
            json.loads(response.body, parse_constant=no_constant)
        if path == "/metrics":
            list(parse_text(response.body.decode()))
    return {path: response.code for path, response in responses.items()}


def heartbeats_of(sender: Sender) -> int:
    return int(sender.receiver.state.counter["good@host"]["worker-heartbeat"])


def assert_unharmed(site: Site, sender: Sender, before: dict[str, int]) -> None:
    after = statuses(site)
    assert {path: after[path] for path in before} == before
    assert {code for path, code in after.items() if path not in before} <= {200}
    assert sender.receiver.dispatcher.rejections.counts["processing_failed"] == 0
    state = sender.receiver.state
    after = State(max_tasks_in_memory=100_000)
    assert restore(after, pickled(state), dict(state.counter)).invalid == 0
    assert (len(after.workers), len(after.tasks)) == (len(state.workers), len(state.tasks))
    counted = heartbeats_of(sender)
    sender.send(GOOD)
    assert heartbeats_of(sender) == counted + 1


def test_valid_events_are_accepted(site: Site, sender: Sender) -> None:
    before = statuses(site)
    for event in EVENTS:
        sender.send(event)
    assert sum(sender.receiver.dispatcher.rejections.counts.values()) == 0
    assert sender.receiver.dispatcher.received == len(EVENTS)
    assert_unharmed(site, sender, before)


@pytest.mark.parametrize("type_", [event["type"] for event in EVENTS])
def test_hostile_field_values_break_nothing(site: Site, sender: Sender, type_: str) -> None:
    """Each field of Celery's events, and each attribute of its state, gets each hostile value."""
    before = statuses(site)
    (event,) = (event for event in EVENTS if event["type"] == type_)
    for number, name in enumerate(dict.fromkeys((*event, *ATTRIBUTES))):
        for value in HOSTILE:
            sender.send({**event, **({"uuid": f"id-{number}"} if "uuid" in event else {}), name: value})
        sender.send({key: event[key] for key in event if key != name})
    assert_unharmed(site, sender, before)


def test_generated_messages_break_nothing(site: Site, sender: Sender) -> None:
    before = statuses(site)

    @settings(max_examples=settings().max_examples // 5, suppress_health_check=list(HealthCheck))
    @given(bodies=st.lists(messages(), min_size=1, max_size=30))
    def check(bodies: list[Any]) -> None:
        for body in bodies:
            sender.send(body)
        assert_unharmed(site, sender, before)

    check()
