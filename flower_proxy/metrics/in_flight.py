"""The tasks that workers have at this moment, as far as events have told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass

from flower_proxy._bounded import BoundedDict


@dataclass(slots=True)
class InFlightTask:
    """A task that a worker has; the times are the worker's, except `seen`, which is ours.

    :ivar seen: when the first event of it was processed, by the recorder's clock.
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


class InFlight(BoundedDict[str, InFlightTask]):
    """The tasks that workers have, by id. Delivered again, a task is not where it was before."""

    def drop_where(self, is_gone: Callable[[str, InFlightTask], bool]) -> None:
        for uuid in [uuid for uuid, task in self.items() if is_gone(uuid, task)]:
            del self[uuid]

    def waiting(self, workers: Container[str]) -> dict[tuple[str, str], int]:
        """Return, by worker and name, how many tasks wait at these workers for nothing but their turn."""
        numbers: dict[tuple[str, str], int] = defaultdict(int)
        for task in self.values():
            if task.started is None and not task.eta and task.worker in workers:
                numbers[task.worker, task.name] += 1
        return numbers

    def last_started(self, workers: Container[str]) -> dict[tuple[str, str], InFlightTask]:
        """Return, by worker and name, which of the tasks that these workers run was started last."""
        running = [task for task in self.values() if task.started is not None and task.worker in workers]
        return {(task.worker, task.name): task for task in sorted(running, key=lambda task: task.started or 0)}
