"""Robustness of pages, API and metrics against replies to inspections."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from flower_proxy.app import FlowerProxy
from flower_proxy.events.replies import InvalidReplyError, validate_reply
from tests.http.conftest import OPEN, Site
from tests.support.invalid_replies import INSPECTIONS

WORKER = "w1@host"
PAGES = [f"/worker/{WORKER}", "/workers", "/broker", "/metrics"]
API = ["/api/workers", f"/api/workers?workername={WORKER}", "/api/queues/length", "/workers?json=1"]

pytestmark = pytest.mark.parametrize("kind", ["kept"], indirect=True)


@pytest.fixture
def settings() -> dict[str, Any]:
    # No worker replies, so each inspection takes this long
    return {**OPEN, "inspect_timeout": 1.0}


anything = st.recursive(
    st.sampled_from([None, "x", "\ud800", float("nan"), float("inf"), -1, 10**400, 2**70, True, "<script>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[str, Any]:
    """A reply with one part removed or replaced by an arbitrary value, or an arbitrary value."""
    command = draw(st.sampled_from(list(INSPECTIONS)))
    reply = json.loads(json.dumps(INSPECTIONS[command]))
    parts: list[tuple[Any, Any]] = []
    _collect(reply, parts)
    if not parts or not draw(st.integers(0, 9)):
        return command, draw(anything)
    owner, key = draw(st.sampled_from(parts))
    if draw(st.booleans()):
        owner[key] = draw(anything)
    else:
        del owner[key]
    return command, reply


def _collect(value: Any, parts: list[tuple[Any, Any]]) -> None:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        parts.append((value, key))
        _collect(part, parts)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture
def polled(app: FlowerProxy) -> None:
    """Poll the broker until `app` is closed."""
    app.monitor.watch.start()


@pytest.mark.usefixtures("polled")
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replied=replies())
def test_accepted_replies_break_no_page(site: Site, event: Callable[..., None], replied: tuple[str, Any]) -> None:
    event("worker-heartbeat", hostname=WORKER, freq=60.0)
    command, reply = replied
    try:
        valid = validate_reply(command, reply)
    except InvalidReplyError:
        return
    update = site.app.inspector._on_update
    for method, usual in INSPECTIONS.items():
        update(WORKER, method, json.loads(json.dumps(usual)))
    update(WORKER, command, valid)
    for path in PAGES:
        assert site.fetch(path).code == 200, path
    for path in API:
        answer = site.fetch(path)
        assert answer.code == 200, path
        json.loads(answer.body.decode(), parse_constant=no_constant)


@pytest.mark.usefixtures("polled")
def test_number_of_queues_is_limited(site: Site) -> None:
    (queue,) = INSPECTIONS["active_queues"]
    for number in range(3):
        queues = [{**queue, "name": f"q{number}-{index}"} for index in range(500)]
        site.app.inspector._on_update(f"w{number}@host", "active_queues", queues)
    assert len(json.loads(site.page("/api/queues/length"))["active_queues"]) == 1000
