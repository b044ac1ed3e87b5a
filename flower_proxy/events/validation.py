"""Validation of events: types, ranges and sizes of the fields that state, metrics and pages read.

Fields follow Celery's events reference; any client of the broker can send others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

MAX_TEXT = 255
"""Maximum length of names, ids and other short strings in characters; events with longer ones are rejected."""

MAX_PAYLOAD = 65_536
"""Maximum size of arguments, results, exceptions and tracebacks in bytes of UTF-8; longer ones are truncated."""

MAX_UNKNOWN = 65_536
"""Maximum number of characters and values in all undocumented fields; events with more are rejected."""

UNDECODABLE = "undecodable"
NOT_AN_EVENT = "not_an_event"
MISSING_FIELD = "missing_field"
WRONG_TYPE = "wrong_type"
OUT_OF_RANGE = "out_of_range"
TOO_LONG = "too_long"
NOT_ENCODABLE = "not_encodable"
RESERVED_FIELD = "reserved_field"
REASONS = (
    UNDECODABLE,
    NOT_AN_EVENT,
    MISSING_FIELD,
    WRONG_TYPE,
    OUT_OF_RANGE,
    TOO_LONG,
    NOT_ENCODABLE,
    RESERVED_FIELD,
)
"""Reasons for rejecting an event."""

_ELLIPSIS = "…"
_MAX_DEPTH = 20
_MAX_NUMBER = 2**63 - 1
# One day before datetime's maximum, the end of the year 9999, as a margin for time zones
_MAX_TIMESTAMP = 253_402_214_400
_MAX_LOADS = 16

Check = Callable[[str, Any], Any]


class InvalidEventError(ValueError):
    """An event is rejected; the message is one line.

    :ivar reason: one of this module's constants.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def validate(message: object) -> dict[str, Any]:
    """Return the event in a decoded message, with its payload truncated to `MAX_PAYLOAD`.

    Undocumented fields and custom event types pass. The message is not changed.

    :param message: one event, not a list of events.
    :raises InvalidEventError: the message is not an event, or a field is invalid.
    """
    if type(message) is not dict:
        raise InvalidEventError(NOT_AN_EVENT, f"{type(message).__name__} is not an event")
    kind = message.get("type")
    rules = _rules_for(kind if type(kind) is str else _identifier("type", kind))
    for name in rules.required:
        if name not in message:
            raise InvalidEventError(MISSING_FIELD, f"{name} is missing")
    event, unknown = message.copy(), 0
    texts, numbers = rules.texts, rules.numbers
    for name, value in message.items():
        # Most fields are valid, so a hot path accepts these without a call
        kind = type(value)
        if kind is str:
            if name in texts and value.isascii() and 0 < len(value) <= MAX_TEXT:
                continue
        elif kind is float or kind is int:
            if name in numbers and 0 <= value <= _MAX_TIMESTAMP:
                continue
        elif value is None and name in rules.optional:
            continue
        check = rules.checks.get(name)
        if check is not None:
            event[name] = check(name, value)
            continue
        if type(name) is not str:
            raise InvalidEventError(WRONG_TYPE, f"{name!r:.99} is not a field name")
        if name in rules.reserved or (rules.reserved and name.startswith("_")):
            raise InvalidEventError(RESERVED_FIELD, f"{name:.99} is reserved")
        unknown += len(name) + _size(name, value)
        if unknown > MAX_UNKNOWN:
            raise InvalidEventError(TOO_LONG, f"{name:.99} and other undocumented fields are larger than {MAX_UNKNOWN}")
    return event


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules for a type of events.

    :ivar required: names of the required fields.
    :ivar checks: checks of the documented fields by name.
    :ivar reserved: names that undocumented fields must not have.
    :ivar texts: names of the fields whose ASCII strings of up to `MAX_TEXT` characters are valid, unless empty.
    :ivar numbers: names of the fields whose numbers from 0 to the last timestamp are valid.
    :ivar optional: names of the fields that may be None.
    """

    required: tuple[str, ...]
    checks: Mapping[str, Check]
    reserved: frozenset[str]
    texts: frozenset[str]
    numbers: frozenset[str]
    optional: frozenset[str]


def _rules(required: tuple[str, ...], checks: Mapping[str, Check], reserved: frozenset[str] = frozenset()) -> _Rules:
    def checked_by(kinds: Collection[Check]) -> frozenset[str]:
        return frozenset(name for name, check in checks.items() if check in kinds)

    return _Rules(required, checks, reserved, checked_by(_TEXTS), checked_by(_NUMBERS), checked_by(_OPTIONAL))


@lru_cache
def _rules_for(kind: str) -> _Rules:
    """Return the rules for a type of events."""
    group, _, subject = _identifier("type", kind).partition("-")
    if group not in ("task", "worker"):
        return _OTHER
    if not subject:
        raise InvalidEventError(WRONG_TYPE, f"type {kind!r} has no event name after the group")
    return _WORKER if group == "worker" else _TASK


# Checks of fields, which return the value


def _raise_wrong_type(name: str, value: Any, expected: str) -> NoReturn:
    raise InvalidEventError(WRONG_TYPE, f"{name} is of type {type(value).__name__}, not {expected}")


def _text(name: str, value: Any) -> Any:
    if value is None:
        return value
    if type(value) is not str:
        _raise_wrong_type(name, value, "a string")
    if len(value) > MAX_TEXT:
        raise InvalidEventError(TOO_LONG, f"{name} has {len(value)} characters, more than {MAX_TEXT}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidEventError(NOT_ENCODABLE, f"{name} cannot be encoded as UTF-8") from None
    return value


def _identifier(name: str, value: Any) -> Any:
    if not value or type(value) is not str:
        _raise_wrong_type(name, value, "a non-empty string")
    return _text(name, value)


def _payload(name: str, value: Any) -> Any:
    if value is None:
        return value
    if type(value) is not str:
        # Celery sends representations; repr fails for deeply nested values
        _size(name, value)
    encoded = (value if type(value) is str else repr(value)).encode(errors="replace")
    if len(encoded) > MAX_PAYLOAD:
        return encoded[: MAX_PAYLOAD - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS
    return encoded.decode()


def _number(name: str, value: Any) -> Any:
    return _number_in(0, _MAX_NUMBER, name, value)


def _timestamp(name: str, value: Any) -> Any:
    return _number_in(0, _MAX_TIMESTAMP, name, value)


def _offset(name: str, value: Any) -> Any:
    return _number_in(-_MAX_NUMBER, _MAX_NUMBER, name, value)


def _number_in(low: float, high: float, name: str, value: Any) -> Any:
    if type(value) is not float and type(value) is not int:
        _raise_wrong_type(name, value, "a number")
    # Also rejects NaN
    if not low <= value <= high:
        raise InvalidEventError(OUT_OF_RANGE, f"{name} is not from {low} to {high}")
    return value


def _optional_number(name: str, value: Any) -> Any:
    return None if value is None else _number(name, value)


def _optional_timestamp(name: str, value: Any) -> Any:
    return None if value is None else _timestamp(name, value)


def _optional_offset(name: str, value: Any) -> Any:
    return None if value is None else _offset(name, value)


def _loads(name: str, value: Any) -> Any:
    if value is None:
        return value
    if type(value) not in (list, tuple) or len(value) > _MAX_LOADS:
        _raise_wrong_type(name, value, "a short list of numbers")
    for load in value:
        _number(name, load)
    return value


def _size(name: str, value: Any, depth: int = 0) -> int:
    """Return the number of characters and values in a value."""
    if type(value) in (str, bytes):
        return len(value)
    if depth > _MAX_DEPTH:
        raise InvalidEventError(TOO_LONG, f"{name:.99} is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, Mapping):
        return 1 + sum(_size(name, part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return 1 + sum(_size(name, part, depth + 1) for part in value)
    return 1


_TEXTS: Collection[Check] = (_identifier, _text, _payload)
_NUMBERS: Collection[Check] = (
    *(_number, _optional_number, _timestamp, _optional_timestamp),
    *(_offset, _optional_offset),
)
_OPTIONAL: Collection[Check] = (_text, _payload, _optional_number, _optional_timestamp, _optional_offset, _loads)

_COMMON_FIELDS: dict[str, Check] = {
    "type": _identifier,
    "hostname": _identifier,
    "timestamp": _timestamp,
    "clock": _number,
    "utcoffset": _offset,
    "pid": _optional_number,
    # Overwritten on reception
    "local_received": _optional_offset,
}
_FIELDS_OF_WORKERS: dict[str, Check] = {
    **_COMMON_FIELDS,
    "freq": _number,
    "active": _optional_number,
    "processed": _optional_number,
    "loadavg": _loads,
    **dict.fromkeys(("sw_ident", "sw_ver", "sw_sys"), _text),
}
_FIELDS_OF_TASKS: dict[str, Check] = {
    **_COMMON_FIELDS,
    "uuid": _identifier,
    **dict.fromkeys(("args", "kwargs", "result", "exception", "traceback"), _payload),
    **dict.fromkeys(("name", "state", "client", "queue", "exchange", "routing_key"), _text),
    **dict.fromkeys(("eta", "expires", "root_id", "parent_id"), _text),
    **dict.fromkeys(("retries", "runtime"), _optional_number),
    **dict.fromkeys(
        ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"), _optional_timestamp
    ),
}
# Celery sets the fields of an event as attributes of the task, which uses these attributes itself
_RESERVED_OF_TASKS = frozenset(
    ("as_dict", "children", "cluster_state", "event", "info", "merge_rules", "parent", "root", "worker")
)

_REQUIRED = ("type", "hostname", "timestamp")
_OTHER = _rules(_REQUIRED, _COMMON_FIELDS)
_WORKER = _rules(_REQUIRED, _FIELDS_OF_WORKERS)
_TASK = _rules((*_REQUIRED, "uuid"), _FIELDS_OF_TASKS, _RESERVED_OF_TASKS)
