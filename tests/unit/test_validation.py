"""Validation of events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.events.state import Task, Worker
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy.events.validation import (
    MAX_PAYLOAD,
    MAX_TEXT,
    MAX_UNKNOWN,
    REASONS,
    InvalidEventError,
    _rules_for,
    validate,
)
from tests.support.events import BASE, EVENTS, NESTED, hostile_events, values

HEARTBEAT, RECEIVED = (
    next(event for event in EVENTS if event["type"] == type_) for type_ in ("worker-heartbeat", "task-received")
)
LAST_SECOND = 253_402_214_400


def reason_of(message: object) -> str:
    with pytest.raises(InvalidEventError) as caught:
        validate(message)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["type"])
def test_valid_events_pass_unchanged(event: dict[str, Any]) -> None:
    assert validate(event) == event


@pytest.mark.parametrize(
    "change",
    [
        {"active": None, "processed": None, "loadavg": None, "sw_ident": None, "pid": None},
        {"timestamp": 0},
        {"timestamp": LAST_SECOND},
        {"utcoffset": -9},
        {"utcoffset": 5.5},
        {"freq": 0.5},
        {"hostname": "wörker@höst"},
        {"hostname": "w" * MAX_TEXT},
        {"rack": "7b", "tags": {"a": [1, None, True]}, "share": float("nan")},
        {"note": "x" * (MAX_UNKNOWN - len("note"))},
        {"type": "worker-my-own-event"},
        {"heartbeats": "x", "expire_window": "x", "__class__": "x"},
    ],
    ids=str,
)
def test_unusual_valid_events_pass_unchanged(change: dict[str, Any]) -> None:
    event = {**HEARTBEAT, **change}
    assert repr(validate(event)) == repr(event)


@pytest.mark.parametrize("missing", ["hostname", "timestamp", "uuid"])
def test_events_without_a_required_field_are_rejected(missing: str) -> None:
    assert reason_of({name: value for name, value in RECEIVED.items() if name != missing}) == "missing_field"


@pytest.mark.parametrize("message", [None, True, 0, 1.5, "worker-heartbeat", [], [HEARTBEAT], b"{}"], ids=repr)
def test_messages_other_than_objects_are_rejected(message: object) -> None:
    assert reason_of(message) == "not_an_event"


@pytest.mark.parametrize(
    ("event", "change", "reason"),
    [
        (HEARTBEAT, {"type": 5}, "wrong_type"),
        (HEARTBEAT, {"type": None}, "wrong_type"),
        (HEARTBEAT, {"type": ""}, "wrong_type"),
        (HEARTBEAT, {"type": "worker"}, "wrong_type"),
        (RECEIVED, {"type": "task-"}, "wrong_type"),
        (HEARTBEAT, {"type": "x" * (MAX_TEXT + 1)}, "too_long"),
        (HEARTBEAT, {"hostname": None}, "wrong_type"),
        (HEARTBEAT, {"hostname": 5}, "wrong_type"),
        (HEARTBEAT, {"hostname": ""}, "wrong_type"),
        (HEARTBEAT, {"hostname": "\ud800"}, "not_encodable"),
        (HEARTBEAT, {"hostname": "w" * (MAX_TEXT + 1)}, "too_long"),
        (HEARTBEAT, {"freq": "x"}, "wrong_type"),
        (HEARTBEAT, {"freq": None}, "wrong_type"),
        (HEARTBEAT, {"freq": True}, "wrong_type"),
        (HEARTBEAT, {"freq": -1}, "out_of_range"),
        (HEARTBEAT, {"active": "x"}, "wrong_type"),
        (HEARTBEAT, {"active": float("nan")}, "out_of_range"),
        (HEARTBEAT, {"processed": float("inf")}, "out_of_range"),
        (HEARTBEAT, {"clock": "7"}, "wrong_type"),
        (HEARTBEAT, {"clock": 10**400}, "out_of_range"),
        (HEARTBEAT, {"timestamp": LAST_SECOND + 1}, "out_of_range"),
        (HEARTBEAT, {"loadavg": [0.1, "x"]}, "wrong_type"),
        (HEARTBEAT, {"loadavg": [0.1] * 17}, "wrong_type"),
        (RECEIVED, {"__class__": "x"}, "reserved_field"),
        (HEARTBEAT, {"note": "x" * MAX_UNKNOWN}, "too_long"),
        (HEARTBEAT, {"note": NESTED}, "too_long"),
        (HEARTBEAT, {5: "x"}, "wrong_type"),
        (RECEIVED, {"uuid": 5}, "wrong_type"),
        (RECEIVED, {"name": 5}, "wrong_type"),
        (RECEIVED, {"name": "\udfff"}, "not_encodable"),
        (RECEIVED, {"children": "x"}, "reserved_field"),
        (RECEIVED, {"event": "x"}, "reserved_field"),
        (RECEIVED, {"merge_rules": None}, "reserved_field"),
        (RECEIVED, {"eta": 5}, "wrong_type"),
        (RECEIVED, {"retries": "2"}, "wrong_type"),
        (RECEIVED, {"started": "now"}, "wrong_type"),
        (RECEIVED, {"args": NESTED}, "too_long"),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_invalid_fields_are_rejected(event: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    assert reason_of({**event, **change}) == reason
    assert reason in REASONS


def test_attributes_that_celery_needs_are_reserved() -> None:
    """An event with ``merge_rules`` made each late event of its task fail."""
    for name in {name for name in dir(Task) if not name.startswith("_")}.difference(Task._fields):
        if not isinstance(getattr(Task, name), property):
            assert reason_of({**RECEIVED, name: None}) == "reserved_field"


@pytest.mark.parametrize("field", ["args", "kwargs", "result", "exception", "traceback"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("x" * MAX_PAYLOAD, "x" * MAX_PAYLOAD, id="maximum length"),
        pytest.param("x" * (MAX_PAYLOAD + 1), "x" * (MAX_PAYLOAD - 3) + "…", id="ascii"),
        pytest.param("é" * MAX_PAYLOAD, "é" * (MAX_PAYLOAD // 2 - 2) + "…", id="two-byte characters"),
        pytest.param("a\ud800", "a?", id="surrogate"),
        pytest.param(None, None, id="none"),
        pytest.param([1, {"a": None}], "[1, {'a': None}]", id="not a string"),
    ],
)
def test_payloads_are_truncated(field: str, value: Any, expected: str | None) -> None:
    truncated = validate({**RECEIVED, field: value})[field]
    assert truncated == expected
    assert truncated is None or len(truncated.encode()) <= MAX_PAYLOAD


def test_custom_event_types_pass_unchanged() -> None:
    """Only their common fields are read."""
    event = {**BASE, "type": "deploy-finished", "freq": "x", "children": "x", "_private": 1}
    assert validate(event) == event


def validated(message: Any) -> dict[str, Any] | None:
    """Return the event; None if it is rejected, for one of the known reasons."""
    before = repr(message)
    try:
        return validate(message)
    except InvalidEventError as error:
        reason = error.reason
    finally:
        assert repr(message) == before
    assert reason in REASONS
    return None


@given(event=hostile_events())
def test_displayed_fields_of_valid_events_are_serializable(event: dict[str, Any]) -> None:
    valid = validated(event)
    if valid is None:
        return
    shown = {"task": Task._fields, "worker": Worker._fields}.get(valid["type"].partition("-")[0], ())
    # The state ignores a field of this name
    shown = {*shown, *BASE, "type"} - {"heartbeats"}
    fields = {name: value for name, value in valid.items() if name in shown}
    json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()


@given(value=values())
def test_any_value_is_accepted_or_rejected(value: Any) -> None:
    validated(value)


@given(kind=st.sampled_from(["task-sent", "worker-online", "other"]), data=st.data())
def test_a_field_is_checked_the_same_in_the_hot_path(kind: str, data: st.DataObject) -> None:
    name, check = data.draw(
        st.sampled_from(sorted(_rules_for(kind).checks.items())).filter(lambda field: field[0] != "type")
    )
    strings = [size * letter for size in (0, MAX_TEXT, MAX_TEXT + 1, MAX_PAYLOAD, MAX_PAYLOAD + 1) for letter in "xé"]
    numbers = [-(2**63), -1, -0.5, LAST_SECOND, LAST_SECOND + 1, 2**63 - 1, 2**63, float("inf")]
    value = data.draw(st.sampled_from([*strings, *numbers]) | values())
    try:
        checked = repr(check(name, value))
    except InvalidEventError as error:
        checked = error.reason
    event = {**BASE, "uuid": "id-1", "type": kind}
    try:
        validated = repr(validate({**event, name: value})[name])
    except InvalidEventError as error:
        validated = error.reason
    assert validated == checked
