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
"""Why a reply is rejected: its message cannot be decoded; nobody asked this worker; it has too many bytes or levels;
the worker replied with an error; a part of it is missing or has another type."""

MAX_QUEUES = 1000
"""Maximum number of queues of one worker."""

_MAX_DEPTH = 50
_MAX_BITS = 4096
_MAX_COUNT = 2**63
# An AMQP short string
_MAX_QUEUE_NAME = 255  # bytes

# What Flower's worker page reads without a default
_OF_QUEUE = (
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
    """A reply that is rejected.

    :ivar reason: one of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_worker_name(name: str) -> bool:
    """Return whether a text can be the name of a worker."""
    return 0 < len(name) <= MAX_TEXT and _to_text(name) == name


def validate_reply(command: str, reply: Any) -> Any:
    """Return a reply as JSON data in the shape that pages, API and metrics read.

    What JSON cannot express becomes text: dates, numbers that are not finite, and the like in arguments of tasks.

    :param command: the inspection or control command, like ``stats`` or ``pool_grow``.
    :param reply: of one worker, decoded.
    :raises InvalidReplyError: the reply must not be used.
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


def _to_json(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return _to_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Python limits the digits of decimal numbers
        return value if value.bit_length() <= _MAX_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if not levels:
            raise InvalidReplyError(TOO_LARGE, f"the reply is nested in more than {_MAX_DEPTH} levels")
        if isinstance(value, dict):
            return {_to_text(str(key)): _to_json(item, levels - 1) for key, item in value.items()}
        return [_to_json(item, levels - 1) for item in value]
    # Kombu decodes dates, decimal numbers and UUIDs
    return _to_text(str(value))


def _to_text(text: str) -> str:
    # Lone surrogates cannot be encoded
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# Checks of the parts that are read


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidReplyError(INVALID, message)


def _expect_keys(item: Any, keys: Collection[str], what: str) -> None:
    _expect(isinstance(item, dict), f"{what} is not an object")
    for key in keys:
        _expect(key in item, f"{what} has no {key}")


def _expect_texts(item: dict[str, Any], keys: Collection[str], what: str) -> None:
    for key in keys:
        _expect(isinstance(item.get(key), str), f"{key} of {what} is not text")


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
    # On systems without resource usage it is a text
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
        _expect_keys(queue, _OF_QUEUE, "a queue")
        _expect_texts(queue, ["name"], "a queue")
        _expect(0 < len(queue["name"].encode()) <= _MAX_QUEUE_NAME, "the name of a queue is empty or too long")


def _check_tasks(reply: Any, keys: Collection[str]) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    for task in reply:
        _expect_keys(task, keys, "a task")
        _expect_texts(task, ["id", "name"], "a task")


def _check_active(reply: Any) -> None:
    _check_tasks(reply, ["acknowledged", "worker_pid"])


def _check_reserved(reply: Any) -> None:
    _check_tasks(reply, ["args", "kwargs"])


def _check_scheduled(reply: Any) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    for entry in reply:
        _expect_keys(entry, ["request"], "an entry")
    _check_reserved([entry["request"] for entry in reply])


def _check_texts(reply: Any) -> None:
    _expect(isinstance(reply, list), "the reply is not a list")
    _expect(all(isinstance(item, str) for item in reply), "the reply is not a list of texts")


def _check_conf(reply: Any) -> None:
    _expect(isinstance(reply, dict), "the reply is not an object")


_CHECKS = MappingProxyType[str, Callable[[Any], None]](
    {
        "active": _check_active,
        "active_queues": _check_active_queues,
        "conf": _check_conf,
        "registered": _check_texts,
        "reserved": _check_reserved,
        "revoked": _check_texts,
        "scheduled": _check_scheduled,
        "stats": _check_stats,
    }
)
