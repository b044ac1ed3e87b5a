"""Loading and validation of saved states."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from celery.events import state

from flower_proxy.events.validation import WRONG_TYPE, InvalidEventError, validate

T = TypeVar("T")

_LINKS = frozenset(("worker", "children", "root", "parent"))


class _Pickled:
    """Constructor arguments of a pickled object, whose class is not instantiated."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


# By module and name. The original constructors sort and index, and fail if a single task or worker is invalid
_REPLACEMENTS = {
    ("flower.events", "EventsState"): _Pickled,
    ("celery.events.state", "Worker"): _Pickled,
    ("celery.events.state", "_depickle_task"): lambda kind, fields: fields,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _REPLACEMENTS.get((module, name)) or super().find_class(module, name)


class SavedWorker(NamedTuple):
    """Valid worker.

    :ivar fields: arguments of Celery's worker, by name.
    :ivar last_event: time of its last event, in seconds since the epoch; None if unknown.
    :ivar stopped: whether it has shut down.
    """

    fields: dict[str, Any]
    last_event: float | None
    stopped: bool


class SavedTask(NamedTuple):
    """Valid task.

    :ivar fields: fields of Celery's task, by name, without references to other objects.
    :ivar worker: None if no worker has received the task.
    """

    fields: dict[str, Any]
    worker: SavedWorker | None


class SavedState:
    """State saved by `flower_proxy.events.state_file.StateFile` or by stock Flower.

    :param events: pickled state.
    :param counter: numbers of events by sender and type.
    :raises Exception: the data is not a state.
    :ivar invalid: one line for each worker and task that was skipped, with the reason.
    """

    def __init__(self, events: bytes, counter: Mapping[Any, Any]) -> None:
        saved = _Unpickler(io.BytesIO(events)).load()
        if not isinstance(saved, _Pickled):
            raise TypeError(f"expected a state, got {type(saved).__name__}")
        _, workers, tasks, *_ = saved.arguments
        self._workers, self._tasks = dict(workers.items()), dict(tasks.items())
        self._counter = counter
        self._checked: dict[_Pickled, SavedWorker] = {}
        self.invalid: list[str] = []

    def workers(self) -> Iterator[tuple[str, SavedWorker]]:
        """Yield the valid workers by name, least recent first."""
        return self._valid("a worker", self._workers, self._worker)

    def tasks(self) -> Iterator[tuple[str, SavedTask]]:
        """Yield the valid tasks by id, least recent first."""
        return self._valid("a task", self._tasks, self._task)

    def _valid(self, kind: str, saved: Mapping[Any, Any], check: Callable[[Any, Any], T]) -> Iterator[tuple[str, T]]:
        for key, value in saved.items():
            try:
                yield key, check(key, value)
            except InvalidEventError as error:
                self.invalid.append(f"{kind}: {error}")

    def _worker(self, name: Any, pickled: Any) -> SavedWorker:
        worker = self._checked_worker(pickled)
        if worker.fields["hostname"] != name:
            raise InvalidEventError(WRONG_TYPE, f"hostname is {worker.fields['hostname']!r:.99}, not {name!r:.99}")
        return worker

    def _task(self, uuid: Any, fields: Any) -> SavedTask:
        if type(fields) is not dict or fields.get("uuid") != uuid:
            raise InvalidEventError(WRONG_TYPE, f"{type(fields).__name__} is not a task with this id")
        worker = None if fields.get("worker") is None else self._checked_worker(fields["worker"])
        known = {name: value for name, value in fields.items() if name in state.Task._fields and name not in _LINKS}
        return SavedTask(_validate("task-saved", "saved", fields.get("timestamp"), known), worker)

    def _checked_worker(self, pickled: Any) -> SavedWorker:
        if not isinstance(pickled, _Pickled):
            raise InvalidEventError(WRONG_TYPE, f"{type(pickled).__name__} is not a worker")
        # Tasks share the object of their worker
        if pickled not in self._checked:
            self._checked[pickled] = _worker(pickled)
        return self._checked[pickled]

    def counts(self, worker: str) -> dict[str, int]:
        """Return the numbers of a worker's events, by type."""
        counts = self._counter.get(worker)
        if not isinstance(counts, Mapping):
            return {}
        return {kind: n for kind, n in counts.items() if type(kind) is str and type(n) is int and n > 0}


def _validate(kind: str, hostname: Any, timestamp: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    valid = validate({**given, "type": kind, "hostname": hostname, "timestamp": 0 if timestamp is None else timestamp})
    return {name: valid[name] for name in given}


def _worker(pickled: _Pickled) -> SavedWorker:
    fields = dict(zip(state.Worker._fields, pickled.arguments, strict=False))
    heartbeats, timestamp = fields.pop("heartbeats", None) or [], getattr(pickled, "timestamp", None)
    if type(heartbeats) is not list:
        raise InvalidEventError(WRONG_TYPE, f"heartbeats is of type {type(heartbeats).__name__}, not a list")
    hostname = fields.get("hostname")
    for heartbeat in heartbeats:
        _validate("worker-saved", hostname, heartbeat, {})
    valid = _validate("worker-saved", hostname, timestamp, fields)
    return SavedWorker(valid, max(heartbeats, default=timestamp), stopped=not heartbeats)
