"""The launcher's report on a request and on its cluster, requested by ``flower-proxy check``."""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

PATH = "/-/check"
"""Path of the report, below the prefix and apart from all pages of Flower; `Seen.path` returns what follows it."""

MAX_DEPTH = 64
"""Levels of arrays and objects that `parse_json` accepts."""

# Larger numbers are neither ports nor times, and not exact as floats
_MAX_NUMBER = 2.0**53
_JSON_TOKEN = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class SeenWorker:
    """A worker whose events have been received.

    :ivar alive: whether its heartbeats arrive in time.
    :ivar ahead: seconds by which its clock is ahead of Flower's; None if unknown.
    :ivar task_events: whether its task events are received; None until it has run a task.
    :ivar celery: its version of Celery.
    """

    name: str
    alive: bool
    ahead: float | None
    task_events: bool | None
    celery: str | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The launcher's report. It contains no secrets.

    :ivar peer_port: of the connection, the client's own port without a proxy; None on a unix socket.
    :ivar headers: the forwarded ones, as received.
    :ivar path: of the request, below the prefix.
    :ivar trusted_proxies: the option.
    :ivar asks: whether authentication is enabled.
    :ivar user_header: the header in which a trusted proxy names the user; None without ``--auth_header``.
    :ivar broker: the problem with the broker; None if it answers.
    :ivar connected: whether the receiver of events is connected to the broker.
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
    workers: tuple[SeenWorker, ...]
    time: float
    flower_proxy: str
    flower: str
    celery: str


def parse_json(body: bytes) -> Any:
    """Parse a document of unknown origin.

    :raises ValueError: it is not JSON in UTF-8, or has more than `MAX_DEPTH` levels.
    """
    depth, in_string = 0, False
    # Python's parser recurses, and its limit depends on the version
    for match in _JSON_TOKEN.finditer(body):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif not in_string and len(token) == 1:
            depth += 1 if token in b"[{" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} levels")
    return json.loads(body.decode())


def read_seen(document: Any) -> Seen:
    """Validate a report from parsed JSON: every field has its declared type, and numbers are finite.

    :raises TypeError: the document is not a report, or one of another version.
    """
    seen: Seen = _accept(document, Seen)
    return seen


def _accept(value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _accept(value, arguments[0])
    if origin is tuple and isinstance(value, list):
        return tuple(_accept(item, arguments[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {_accept(name, arguments[0]): _accept(item, arguments[1]) for name, item in value.items()}
    if kind in (Seen, SeenWorker) and isinstance(value, dict) and value.keys() == _types(kind).keys():
        return kind(**{name: _accept(value[name], type_) for name, type_ in _types(kind).items()})
    if kind is str and isinstance(value, str) and not re.search("[\ud800-\udfff]", value):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind in (int, float) and is_number and abs(value) <= _MAX_NUMBER:
        return value
    raise TypeError(f"{kind} was expected")


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
