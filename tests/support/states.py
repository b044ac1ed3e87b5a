"""Saved states of the cluster."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower_proxy._flower import EventsState
from flower_proxy.events import shelf
from flower_proxy.events.saved_state import Part, SavedState
from flower_proxy.events.snapshot import snapshot
from flower_proxy.events.state import State
from flower_proxy.events.state_file import StateFile


def state_with(*uuids: str, size: int = 0) -> State:
    """Return a state with these tasks.

    :param size: of the arguments of each task, in characters.
    """
    state = State(max_tasks_in_memory=10_000, max_workers_in_memory=10)
    for uuid in uuids:
        # Distinct arguments, since pickle writes the same object only once
        event = {"type": "task-received", "uuid": uuid, "name": "tasks.add", "args": uuid.ljust(size)}
        sender = {"hostname": "w1@test", "pid": 1, "utcoffset": 0, "clock": 1}
        state.event({**event, **sender, "timestamp": 1.0, "local_received": 1.0})
    return state


def private(path: Path) -> bool:
    """Return whether only the owner can read a file, by its own mode or that of its folder."""
    return any(one.stat().st_mode & 0o077 == 0 for one in (path, path.parent))


def messages(state: State) -> bytes:
    """Return the messages with which a state is sent to the process that writes it."""
    ends = {False: b"", True: shelf.header(0)}
    return b"".join(shelf.header(len(part)) + part + ends[is_last] for part, is_last in snapshot(state))


def pickled(state: EventsState) -> bytes:
    """Return a state as flower-proxy or stock Flower saves it."""
    if not isinstance(state, State):
        return pickle.dumps(state)
    parts = list(snapshot(state))
    return b"".join(part for part, _ in parts[: 1 + [is_last for _, is_last in parts].index(True)])


def save(file: StateFile, state: State) -> None:
    """Save a state in this process."""
    shelf.write(file.begin(), io.BytesIO(messages(state)))
    file.commit()


def saved_tasks(file: StateFile) -> list[str]:
    """Return the ids of the tasks in a saved state."""
    restored = State(max_tasks_in_memory=100_000)
    if file.find():
        target = io.BytesIO()
        shelf.read(file.path, target)
        for part in parts_in(target.getvalue()):
            restored.restore(part)
    return list(restored.tasks)


def parts_in(data: bytes) -> Iterator[Part]:
    """Yield the parts in the messages of the process that reads a state."""
    source = io.BytesIO(data)
    while head := source.read(shelf.LENGTH):
        yield pickle.loads(source.read(int.from_bytes(head, "big")))


def restore(state: State, saved: bytes, counter: Any) -> SavedState:
    """Restore a pickled state."""
    reader = SavedState(saved, counter, state.restore)
    reader.read()
    return reader


def restored(state: EventsState, **limits: int) -> State:
    """Return the state after a restart."""
    after = State(**{"max_tasks_in_memory": 10, **limits})
    restore(after, pickled(state), dict(state.counter))
    return after
