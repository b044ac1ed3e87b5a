"""Validation of workers' replies to inspections and control commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any

from flower_proxy.events.validation import MAX_TEXT

MALFORMED = "malformed"
UNKNOWN_WORKER = "unknown_worker"
TOO_LARGE = "too_large"
ERROR = "error"
INVALID = "invalid"

REASONS = (MALFORMED, UNKNOWN_WORKER, TOO_LARGE, ERROR, INVALID)
"""Reasons for rejecting a reply, in this order: the message cannot be decoded; the command was not sent to this worker;
the size or nesting exceeds a limit; the worker replied with an error; a field is missing or has the wrong type."""

MAX_QUEUES = 1000
"""Maximum number of queues of one worker."""

_MAX_DEPTH = 50
_MAX_BITS = 4096
_MAX_COUNT = 2**63
# Limit of AMQP's short strings
_MAX_QUEUE_NAME = 255  # bytes

# Required by Flower's worker page
_QUEUE_FIELDS = (
    "name",
    "exclusive",
    "exchange",
    "durable",
    "routing_key",
    "no_ack",
    "alias",
    "queue_arguments",
    "binding_arguments",
    "auto_delete",
)


class InvalidReplyError(ValueError):
    """A reply is rejected.

    :ivar reason: one of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_worker_name(name: str) -> bool:
    """Return whether a string is a valid worker name."""
    return 0 < len(name) <= MAX_TEXT and _to_text(name) == name


def validate_reply(command: str, reply: Any) -> Any:
    """Return a reply as JSON data of the structure that pages, API and metrics read.

    Values that JSON cannot express, such as dates and non-finite numbers, become strings.

    :param command: the inspection or control command, like ``stats`` or ``pool_grow``.
    :param reply: decoded reply of one worker.
    :raises InvalidReplyError: the reply is invalid, or contains an error.
    """
    valid = _to_json(reply, _MAX_DEPTH)
    check = _CHECKS.get(command)
    if check is None:
        _expect(isinstance(valid, dict), "the reply is not an object")
        return valid
    if isinstance(valid, dict) and "error" in valid:
        raise InvalidReplyError(ERROR, str(valid["error"]))
    check(valid)
    return valid


def _to_json(value: Any, max_depth: int) -> Any:
    if isinstance(value, str):
        return _to_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Python limits the digits of integers in decimal notation
        return value if value.bit_length() <= _MAX_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if not max_depth:
            raise InvalidReplyError(TOO_LARGE, f"the reply has more than {_MAX_DEPTH} levels of nesting")
        if isinstance(value, dict):
            return {_to_text(str(key)): _to_json(item, max_depth - 1) for key, item in value.items()}
        return [_to_json(item, max_depth - 1) for item in value]
    # Kombu decodes dates, decimals and UUIDs
    return _to_text(str(value))


def _to_text(text: str) -> str:
    # Lone surrogates cannot be encoded
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# Checks of the fields that are read


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidReplyError(INVALID, message)


def _expect_keys(item: Any, keys: Collection[str], subject: str) -> None:
    _expect(isinstance(item, dict), f"{subject} is not an object")
    for key in keys:
        _expect(key in item, f"{subject} has no {key}")


def _expect_strings(item: dict[str, Any], keys: Collection[str], subject: str) -> None:
    for key in keys:
        _expect(isinstance(item.get(key), str), f"{key} of {subject} is not a string")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _check_stats(reply: Any) -> None:
    _expect_keys(reply, ["total"], "the reply")
    consumer = reply.get("consumer") or reply
    _expect_keys(consumer, ["broker"], "consumer")
    pool = reply.get("pool", {})
    objects = {"broker": consumer["broker"], "total": reply["total"], "pool": pool}
    objects["autoscaler"] = reply.get("autoscaler") or {}
    for name, value in objects.items():
        _expect(isinstance(value, dict), f"{name} is not an object")
    for name, count in reply["total"].items():
        _expect(_is_number(count), f"total of {name} is not a number")
    processes = pool.get("processes")
    _expect(processes is None or isinstance(processes, list) or _is_number(processes), "processes is not a list")
    rusage = reply.get("rusage")
    # A string on systems without resource usage
    usage = rusage if isinstance(rusage, dict) else {}
    numbers = {"uptime": reply.get("uptime"), "max-concurrency": pool.get("max-concurrency")}
    numbers |= {name: usage.get(name) for name in ("utime", "stime")}
    for name, number in numbers.items():
        _expect(number is None or _is_number(number), f"{name} is not a number")


def _check_active_queues(reply: Any) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    if len(reply) > MAX_QUEUES:
        raise InvalidReplyError(TOO_LARGE, f"the reply has more than {MAX_QUEUES} queues")
    for queue in reply:
        _expect_keys(queue, _QUEUE_FIELDS, "a queue")
        _expect_strings(queue, ["name"], "a queue")
        _expect(0 < len(queue["name"].encode()) <= _MAX_QUEUE_NAME, "the name of a queue is empty or too long")


def _check_tasks(reply: Any, keys: Collection[str]) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    for task in reply:
        _expect_keys(task, keys, "a task")
        _expect_strings(task, ["id", "name"], "a task")


def _check_active(reply: Any) -> None:
    _check_tasks(reply, ["acknowledged", "worker_pid"])


def _check_reserved(reply: Any) -> None:
    _check_tasks(reply, ["args", "kwargs"])


def _check_scheduled(reply: Any) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    for entry in reply:
        _expect_keys(entry, ["request"], "an entry")
    _check_reserved([entry["request"] for entry in reply])


def _check_strings(reply: Any) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    _expect(all(isinstance(item, str) for item in reply), "the reply is not a list of strings")


def _check_conf(reply: Any) -> None:
    _expect(isinstance(reply, dict), "the reply is not an object")


_CHECKS = MappingProxyType[str, Callable[[Any], None]](
    {
        "active": _check_active,
        "active_queues": _check_active_queues,
        "conf": _check_conf,
        "registered": _check_strings,
        "reserved": _check_reserved,
        "revoked": _check_strings,
        "scheduled": _check_scheduled,
        "stats": _check_stats,
    }
)
