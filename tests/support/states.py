"""Saved states of the cluster."""

from __future__ import annotations

import pickle
from pathlib import Path

from flower_proxy._flower import EventsState
from flower_proxy.events.saved_state import SavedState
from flower_proxy.events.state import State


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


def restored(state: EventsState, **limits: int) -> State:
    """Return the state after a restart."""
    after = State(**{"max_tasks_in_memory": 10, **limits})
    after.restore(SavedState(pickle.dumps(state), dict(state.counter)))
    return after
