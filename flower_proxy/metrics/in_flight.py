"""The tasks that workers have at this moment, as far as events have told."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class InFlightTask:
    """A task that a worker has; the times are the worker's, except `seen`, which is ours.

    :ivar seen: when the first event of it was processed, by the recorder's clock.
    :ivar eta: as Celery writes it.
    :ivar retries: which run it is, counted from 0.
    :ivar unstarted: retries and eta of its runs before this one that have been received but whose start has not been
        told yet. A worker may receive the next run before it learns that this one was started.
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
    unstarted: tuple[tuple[int, str | None], ...] = ()
    unended: tuple[float, ...] = ()

    @property
    def waited(self) -> float:
        """Seconds between received and started, where that tells anything; else 0."""
        if self.eta or self.received is None or self.started is None:
            return 0
        return max(0, self.started - self.received)

    @property
    def to_start(self) -> tuple[tuple[int, str | None], ...]:
        """Retries and eta of its runs that have been received and not been started, the first one first."""
        return (*self.unstarted, (self.retries, self.eta)) if self.started is None else self.unstarted

    @property
    def begun(self) -> tuple[float, ...]:
        """When its runs were started that have not ended, the first one first."""
        return self.unended if self.started is None else (*self.unended, self.started)


class InFlight:
    """The tasks that workers have, by id. Delivered again, a task is not where it was before.

    :param limit: maximum number of tasks; the oldest are dropped first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: OrderedDict[str, InFlightTask] = OrderedDict()
        # By worker, since a worker that starts must not cost a scan of all tasks
        self._uuids: dict[str, set[str]] = {}

    def get(self, uuid: str) -> InFlightTask | None:
        return self._tasks.get(uuid)

    def put(self, uuid: str, task: InFlightTask) -> None:
        """Set a task and make it the newest one."""
        self.drop([uuid])
        self._tasks[uuid] = task
        self._uuids.setdefault(task.worker, set()).add(uuid)
        if len(self._tasks) > self._limit:
            self.drop([next(iter(self._tasks))])

    def drop(self, uuids: Iterable[str]) -> None:
        """Drop tasks, if they exist."""
        for uuid in uuids:
            task = self._tasks.pop(uuid, None)
            if task is not None:
                of_worker = self._uuids[task.worker]
                of_worker.remove(uuid)
                if not of_worker:
                    del self._uuids[task.worker]

    def of(self, worker: str) -> dict[str, InFlightTask]:
        """Return the tasks of a worker by id."""
        return {uuid: self._tasks[uuid] for uuid in self._uuids.get(worker, ())}

    def waiting(self, workers: Container[str]) -> dict[tuple[str, str], int]:
        """Return, by worker and name, how many tasks wait at these workers for nothing but their turn."""
        numbers: dict[tuple[str, str], int] = defaultdict(int)
        for task in self._tasks.values():
            if task.started is None and not task.eta and task.worker in workers:
                numbers[task.worker, task.name] += 1
        return numbers

    def last_started(self, workers: Container[str]) -> dict[tuple[str, str], InFlightTask]:
        """Return, by worker and name, which of the tasks that these workers run was started last."""
        running = [task for task in self._tasks.values() if task.started is not None and task.worker in workers]
        return {(task.worker, task.name): task for task in sorted(running, key=lambda task: task.started or 0)}
