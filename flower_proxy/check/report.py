"""The launcher's report on a request and on the cluster, for ``flower-proxy check``."""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

PATH = "/-/check"
"""Path of the report below the prefix, distinct from Flower's pages; the report echoes it in `Report.path`."""

MAX_DEPTH = 64
"""Levels of arrays and objects that `parse_json` accepts."""

# Larger numbers are neither ports nor times, and floats do not represent them exactly
_MAX_NUMBER = 2.0**53
_JSON_TOKEN = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """The report on a worker that has sent events.

    :ivar alive: whether its heartbeats arrive in time.
    :ivar ahead: seconds by which its clock is ahead of Flower's; None if unknown.
    :ivar task_events: whether its task events are received; None until it has run a task.
    :ivar celery: its Celery version.
    """

    name: str
    alive: bool
    ahead: float | None
    task_events: bool | None
    celery: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The launcher's report. It contains no secrets.

    :ivar peer: address of the connection's other end: the reverse proxy or, without one, the client.
    :ivar peer_port: port of the connection's other end; None on a unix socket.
    :ivar headers: forwarded headers, as received.
    :ivar path: path of the request, below the prefix.
    :ivar trusted_proxies: entries of ``--trusted_proxies``.
    :ivar asks: whether authentication is enabled.
    :ivar user_header: value of ``--auth_header``; None without it.
    :ivar broker: the problem with the broker; None if it answers.
    :ivar connected: whether the event receiver is connected to the broker.
    :ivar time: seconds since the epoch.
    """

    peer: str
    peer_port: int | None
    trusted: bool
    headers: dict[str, str]
    client: str
    scheme: str
    host: str
    prefix: str | None
    path: str
    trusted_proxies: tuple[str, ...]
    asks: bool
    user_header: str | None
    enable_events: bool
    broker: str | None
    connected: bool
    workers: tuple[WorkerReport, ...]
    time: float
    flower_proxy: str
    flower: str
    celery: str


def parse_json(body: bytes) -> Any:
    """Parse untrusted JSON.

    :raises ValueError: it is not JSON in UTF-8, or has more than `MAX_DEPTH` levels.
    """
    depth, in_string = 0, False
    # Python's parser recurses, with a limit that depends on the version
    for match in _JSON_TOKEN.finditer(body):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif not in_string and len(token) == 1:
            depth += 1 if token in b"[{" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} levels")
    return json.loads(body.decode())


def validate_report(document: Any) -> Report:
    """Validate a report from parsed JSON: every field has its declared type, and numbers are finite.

    :raises TypeError: the document is not a report, or has the fields of another version.
    """
    report: Report = _validate(document, Report)
    return report


def _validate(value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _validate(value, arguments[0])
    if origin is tuple and isinstance(value, list):
        return tuple(_validate(item, arguments[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {_validate(name, arguments[0]): _validate(item, arguments[1]) for name, item in value.items()}
    if kind in (Report, WorkerReport) and isinstance(value, dict) and value.keys() == _types(kind).keys():
        return kind(**{name: _validate(value[name], type_) for name, type_ in _types(kind).items()})
    if kind is str and isinstance(value, str) and not re.search("[\ud800-\udfff]", value):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind in (int, float) and is_number and abs(value) <= _MAX_NUMBER:
        return value
    raise TypeError(f"expected {kind}")


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
