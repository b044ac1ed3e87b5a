"""Task in the state of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from celery import states
from celery.events import state as celery_state

from flower_proxy.events.worker import Worker

_LINKS = ("root", "parent", "children")
_STORED = tuple(name for name in celery_state.Task._fields if name not in _LINKS)
_SETTABLE = frozenset((*_STORED, "queue")) - {"worker", "uuid"}
# Many tasks have the same values in these fields, and in others "None", "()" or "{}"
_NAMES = frozenset(("name", "exchange", "routing_key", "queue"))
_MAX_COMMON = 4  # characters

_KEPT_OF_LATE = {name: frozenset(kept) for name, kept in celery_state.Task.merge_rules.items()}
# By state: with a state of higher precedence, an event changes the state of the task
_PRECEDENCE = {name: states.precedence(name) for name in (*states.PRECEDENCE, "")}
_CUSTOM = states.precedence("")


@lru_cache(maxsize=4096)
def shared(text: str) -> str:
    """Return an equal string that is stored only once while it is in use. Unlike interned ones, they are bounded."""
    return text


class Task:
    """Celery's task, in a quarter of the memory: without its index, weak references and undocumented fields.

    It has the fields of Celery's task, and the field ``queue`` of task-sent events. Missing ones are None.

    :param uuid: the id.
    :param tasks: the tasks of the state, by id; None for a task of its own.
    :param fields: other fields by name.
    :ivar child_ids: the ids of the tasks that this one has started, as the keys of a dictionary; None for none.
    """

    uuid: str
    name: str | None
    state: str
    args: str | None
    kwargs: str | None
    result: str | None
    timestamp: float | None
    sent: float | None
    received: float | None
    started: float | None
    client: str | None
    worker: Worker | None
    queue: str | None
    eta: str | None
    retries: int | None
    clock: int
    root_id: str | None
    parent_id: str | None
    child_ids: dict[str, None] | None

    __slots__ = (*_STORED, "_tasks", "child_ids", "queue")
    _fields = celery_state.Task._fields

    def __init__(self, uuid: str, tasks: Mapping[str, Task] | None = None, **fields: Any) -> None:
        # One by one, since a loop takes several times as long
        self.name = self.args = self.kwargs = self.result = self.exception = self.traceback = None
        self.timestamp = self.sent = self.received = self.started = self.succeeded = self.failed = None
        self.retried = self.revoked = self.rejected = self.eta = self.expires = self.runtime = self.retries = None
        self.worker = self.client = self.queue = self.exchange = self.routing_key = None
        self.root_id = self.parent_id = self.child_ids = None
        self.uuid, self._tasks = uuid, {} if tasks is None else tasks
        self.state, self.clock = states.PENDING, 0
        for name, value in fields.items():
            setattr(self, name, value)

    def on_event(self, subject: str, event: Mapping[str, Any]) -> None:
        """Apply an event, which may be older than previous ones.

        Events of the same task need not arrive in order: an older event changes neither the state nor what a newer one
        has set, as in Celery's task.

        :param subject: type of the event, without ``task-``.
        """
        timestamp = event["timestamp"]
        new = celery_state.TASK_EVENT_TO_STATE.get(subject)
        if new is None:
            new = subject.upper()
        else:
            setattr(self, subject, timestamp)
        old = self.state
        late = (
            new != states.RETRY
            and old != states.RETRY
            and _PRECEDENCE.get(new, _CUSTOM) > _PRECEDENCE.get(old, _CUSTOM)
        )
        settable = _SETTABLE
        if late and new in _KEPT_OF_LATE:
            settable = _KEPT_OF_LATE[new]
        uuid = self.uuid
        for name, value in event.items():
            if name in settable:
                if type(value) is str:
                    if value == uuid:
                        # The root of most tasks is the task itself
                        value = uuid
                    elif len(value) <= _MAX_COMMON or name in _NAMES:
                        value = shared(value)
                setattr(self, name, value)
        if not late:
            self.state = new

    @property
    def children(self) -> list[Task]:
        """The tasks in the state that this one has started."""
        return [self._tasks[uuid] for uuid in self.child_ids or () if uuid in self._tasks]

    @property
    def parent(self) -> Task | None:
        """The task that has started this one, if it is in the state."""
        return self._tasks.get(self.parent_id or "")

    @property
    def root(self) -> Task | None:
        """The first task of the workflow, if it is in the state."""
        return self._tasks.get(self.root_id or "")

    @property
    def id(self) -> str:
        """The id, by the name that Flower's pages use."""
        return self.uuid

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of Celery's task by name, with the ids of other tasks."""
        fields = {name: getattr(self, name) for name in _STORED}
        # In the order of Celery's fields
        links = {"root": self.root_id, "parent": self.parent_id, "children": [child.uuid for child in self.children]}
        return {name: links[name] if name in links else fields[name] for name in self._fields}

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"

    def __copy__(self) -> celery_state.Task:
        # The functions of users for --format_task may set any attribute
        return celery_state.Task(**self.as_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as Celery's own class, so that stock Flower can load it; there, missing fields are None
        fields = {name: value for name in _STORED if (value := getattr(self, name)) is not None}
        if self.root_id:
            fields["root"] = self.root_id
        if self.parent_id:
            fields["parent"] = self.parent_id
        return celery_state._depickle_task, (celery_state.Task, fields)
