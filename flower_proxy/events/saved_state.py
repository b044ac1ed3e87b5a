"""Reading and validation of saved states."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from flower_proxy.events.validation import WRONG_TYPE, InvalidEventError, validate

# Importing Celery takes longer than reading a small state
WORKER_FIELDS = (
    "hostname",
    "pid",
    "freq",
    "heartbeats",
    "clock",
    "active",
    "processed",
    "loadavg",
    "sw_ident",
    "sw_ver",
    "sw_sys",
)
"""Fields of Celery's worker, in order of its arguments."""

TASK_FIELDS = frozenset(
    (
        *("uuid", "name", "state", "received", "sent", "started", "rejected", "succeeded", "failed", "retried"),
        *("revoked", "args", "kwargs", "eta", "expires", "retries", "result", "exception", "timestamp", "runtime"),
        *("traceback", "exchange", "routing_key", "clock", "client", "root_id", "parent_id"),
    )
)
"""Fields of Celery's task, without references to other objects."""

_PART = 100  # tasks or workers: one to three milliseconds


class SavedWorker(NamedTuple):
    """Valid worker.

    :ivar fields: arguments of Celery's worker, by name.
    :ivar last_event: time of its last event, in seconds since the epoch; None if unknown.
    :ivar stopped: whether it has shut down.
    :ivar counts: numbers of its events, by type.
    """

    fields: dict[str, Any]
    last_event: float | None
    stopped: bool
    counts: dict[str, int]

    @property
    def hostname(self) -> str:
        """The name of the worker."""
        return str(self.fields["hostname"])


class SavedTask(NamedTuple):
    """Valid task.

    :ivar fields: fields of Celery's task, by name, without references to other objects.
    :ivar worker: None if no worker has received the task.
    """

    fields: dict[str, Any]
    worker: str | None


class Part(NamedTuple):
    """Some workers and tasks of a saved state, least recent first; all workers precede the tasks.

    :ivar workers: workers in the state.
    :ivar tasks: tasks in the state.
    :ivar workers_of_tasks: the workers of these tasks, which the state may have evicted, by name.
    """

    workers: list[SavedWorker]
    tasks: list[SavedTask]
    workers_of_tasks: dict[str, SavedWorker]


class _Pickled:
    """Constructor arguments of a pickled object, whose class is not instantiated."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


class _PickledState(_Pickled):
    pass


class SavedState(pickle.Unpickler):
    """State saved by flower-proxy or stock Flower. Its objects are validated while they are unpickled.

    :param events: pickled state.
    :param counter: numbers of events by sender and type.
    :param on_part: called with each part.
    :ivar invalid: number of workers and tasks that were skipped.
    :ivar first_invalid: the first of them with the reason, in one line.
    """

    def __init__(self, events: bytes, counter: Mapping[Any, Any], on_part: Callable[[Part], object]) -> None:
        super().__init__(io.BufferedReader(io.BytesIO(events)))

        class Cache(_Pickled):
            def __setstate__(_, items: object) -> None:  # noqa: N805
                self._pass_workers()

        self._replacements: dict[tuple[str, str], Any] = {
            ("flower.events", "EventsState"): _PickledState,
            ("celery.events.state", "Task"): _Pickled,
            ("celery.events.state", "Worker"): self._on_worker,
            ("celery.events.state", "_depickle_task"): self._on_task,
            ("kombu.utils.functional", "LRUCache"): Cache,
        }
        self._counter, self._on_part = counter, on_part
        # The cache of workers is complete before the first task; later ones are workers of tasks
        self._workers: list[_Pickled] | None = []
        self._tasks: list[SavedTask] = []
        self._checked: dict[_Pickled, SavedWorker] = {}
        self.invalid, self.first_invalid = 0, ""

    def read(self) -> None:
        """Read the whole state.

        :raises Exception: the data is not a state.
        """
        saved = self.load()
        if not isinstance(saved, _PickledState):
            raise TypeError(f"expected a state, got {type(saved).__name__}")
        self._pass_workers()
        self._pass_tasks()

    def find_class(self, module: str, name: str) -> Any:
        """Return a class or function; those of Celery and Flower sort, index, and fail if one object is invalid."""
        return self._replacements.get((module, name)) or super().find_class(module, name)

    def _on_worker(self, *arguments: Any) -> _Pickled:
        worker = _Pickled(*arguments)
        if self._workers is not None:
            self._workers.append(worker)
        return worker

    def _on_task(self, _: object, fields: Any) -> None:
        try:
            self._tasks.append(self._task(fields))
        except InvalidEventError as error:
            self._skip(f"a task: {error}")
        if len(self._tasks) >= _PART:
            self._pass_tasks()

    def _pass_workers(self) -> None:
        workers, self._workers = list(self._valid_workers()), None
        for start in range(0, len(workers), _PART):
            self._on_part(Part(workers[start : start + _PART], [], {}))

    def _valid_workers(self) -> Iterator[SavedWorker]:
        for worker in self._workers or ():
            try:
                yield self._worker(worker)
            except InvalidEventError as error:
                self._skip(f"a worker: {error}")

    def _pass_tasks(self) -> None:
        if self._tasks:
            self._on_part(Part([], self._tasks, {worker.hostname: worker for worker in self._checked.values()}))
        self._tasks, self._checked = [], {}

    def _skip(self, reason: str) -> None:
        self.invalid += 1
        self.first_invalid = self.first_invalid or reason

    def _task(self, fields: Any) -> SavedTask:
        if type(fields) is not dict:
            raise InvalidEventError(WRONG_TYPE, f"{type(fields).__name__} is not a task")
        worker = None if fields.get("worker") is None else self._worker(fields["worker"]).hostname
        known = {name: value for name, value in fields.items() if name in TASK_FIELDS}
        return SavedTask(_validate("task-saved", "saved", fields.get("timestamp"), known), worker)

    def _worker(self, pickled: Any) -> SavedWorker:
        if not isinstance(pickled, _Pickled):
            raise InvalidEventError(WRONG_TYPE, f"{type(pickled).__name__} is not a worker")
        # Tasks share the object of their worker
        if pickled not in self._checked:
            self._checked[pickled] = _worker(pickled, self._counter)
        return self._checked[pickled]


def _validate(kind: str, hostname: Any, timestamp: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    valid = validate({**given, "type": kind, "hostname": hostname, "timestamp": 0 if timestamp is None else timestamp})
    return {name: valid[name] for name in given}


def _worker(pickled: _Pickled, counter: Mapping[Any, Any]) -> SavedWorker:
    fields = dict(zip(WORKER_FIELDS, pickled.arguments, strict=False))
    heartbeats, timestamp = fields.pop("heartbeats", None) or [], getattr(pickled, "timestamp", None)
    if type(heartbeats) is not list:
        raise InvalidEventError(WRONG_TYPE, f"heartbeats is of type {type(heartbeats).__name__}, not a list")
    hostname = fields.get("hostname")
    for heartbeat in heartbeats:
        _validate("worker-saved", hostname, heartbeat, {})
    valid = _validate("worker-saved", hostname, timestamp, fields)
    counts = counter.get(hostname)
    if not isinstance(counts, Mapping):
        counts = {}
    counts = {kind: n for kind, n in counts.items() if type(kind) is str and type(n) is int and n > 0}
    return SavedWorker(valid, max(heartbeats, default=timestamp), stopped=not heartbeats, counts=counts)
