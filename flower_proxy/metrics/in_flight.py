"""The tasks that workers have at this moment, as far as events have told."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Newest(OrderedDict[K, V]):
    """Keeps no more than `most` entries; those that were put first are forgotten first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


@dataclass(slots=True)
class Held:
    """A task that a worker has; the times are the worker's, but that we heard of it, `seen`, is ours.

    :ivar eta: as Celery writes it.
    :ivar retries: which run it is, counted from 0.
    :ivar unended: when its runs before this one were started whose end has not been told yet. The next run may be
        received before the end of this one is told; and what takes longer than the broker waits is delivered again.
    """

    worker: str
    name: str
    seen: float
    received: float | None = None
    eta: str | None = None
    retries: int = 0
    started: float | None = None
    unended: tuple[float, ...] = ()

    @property
    def waited(self) -> float:
        """Seconds between received and started, where that tells anything; else 0."""
        if self.eta or self.received is None or self.started is None:
            return 0
        return max(0, self.started - self.received)

    @property
    def begun(self) -> tuple[float, ...]:
        """When its runs were started that have not ended, the first one first."""
        return self.unended if self.started is None else (*self.unended, self.started)


class InFlight(Newest[str, Held]):
    """The tasks that workers have, by id. Delivered again, a task is not where it was before."""

    def drop_where(self, is_gone: Callable[[str, Held], bool]) -> None:
        for uuid in [uuid for uuid, held in self.items() if is_gone(uuid, held)]:
            del self[uuid]

    def waiting(self, workers: Container[str]) -> dict[tuple[str, str], int]:
        """Return, by worker and name, how many tasks wait at these workers for nothing but their turn."""
        numbers: dict[tuple[str, str], int] = defaultdict(int)
        for held in self.values():
            if held.started is None and not held.eta and held.worker in workers:
                numbers[held.worker, held.name] += 1
        return numbers

    def last_started(self, workers: Container[str]) -> dict[tuple[str, str], Held]:
        """Return, by worker and name, which of the tasks that these workers run was started last."""
        running = [held for held in self.values() if held.started is not None and held.worker in workers]
        return {(held.worker, held.name): held for held in sorted(running, key=lambda held: held.started or 0)}
