"""Pickling of the state in parts, so that the event loop runs in between."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from kombu.utils.functional import LRUCache

from flower_proxy._flower import EventsState
from flower_proxy.events.state import State

_PART = 200  # tasks or workers: one to two milliseconds
# Its memo has explicit indexes, so that a later pickle in the stream overwrites the entries of an earlier one
_PROTOCOL = 3
_HEAD = b"\x80\x03}q\x00"
"""A pickle up to the items of a dictionary: the protocol, and an empty dictionary as entry 0 of the memo."""


def snapshot(state: State) -> Iterator[tuple[bytes, bool]]:
    """Yield the values that stock Flower's ``--db`` has, the state and the counts of events, as parts of their pickles.

    The state may change between two parts: each task has the fields of one moment, and no task occurs twice.

    :returns: non-empty parts, and for each whether it is the last one of its value.
    """
    workers, tasks = list(state.workers.data.values()), list(state.tasks.data.values())
    # Stock Flower's own class and Celery's arguments of it
    yield pickle.PROTO + bytes([_PROTOCOL]) + _global(EventsState) + pickle.MARK + _bare(None), False
    yield from _cache(state.max_workers_in_memory, ((worker.hostname, worker) for worker in workers))
    yield from _cache(state.max_tasks_in_memory, ((task.uuid, task) for task in tasks))
    rest: tuple[Any, ...] = (None, state.max_workers_in_memory, state.max_tasks_in_memory, None, None, {}, {})
    yield b"".join(map(_bare, rest)) + pickle.TUPLE + pickle.REDUCE + pickle.STOP, True
    yield _HEAD, False
    yield from _items((name, state.counter[name].copy()) for name in list(state.counter) if name in state.counter)
    yield pickle.STOP, True


def _items(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[bytes, bool]]:
    """Yield operations that add the pairs to the mapping on top of the stack."""
    batch = {}
    for key, value in pairs:
        batch[key] = value
        if len(batch) == _PART:
            yield _added(batch), False
            batch = {}
    if batch:
        yield _added(batch), False


def _added(batch: dict[Any, Any]) -> bytes:
    return pickle.dumps(batch, _PROTOCOL)[len(_HEAD) : -len(pickle.STOP)]


def _cache(limit: int, pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[bytes, bool]]:
    """Yield kombu's cache with these pairs, as it pickles itself."""
    cache = _global(LRUCache) + _bare((limit,)) + pickle.REDUCE
    attributes = pickle.EMPTY_DICT + _bare("limit") + _bare(limit) + pickle.SETITEM + _bare("data")
    yield cache + attributes + _global(OrderedDict) + _bare(()) + pickle.REDUCE, False
    yield from _items(pairs)
    yield pickle.SETITEM + pickle.BUILD, False


def _global(kind: type) -> bytes:
    return pickle.GLOBAL + f"{kind.__module__}\n{kind.__qualname__}\n".encode()


def _bare(value: object) -> bytes:
    """Return the operations that put a value on the stack."""
    return pickle.dumps(value, _PROTOCOL)[2 : -len(pickle.STOP)]
