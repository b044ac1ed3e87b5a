"""Tasks that workers have received and not finished, according to events."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class InFlightTask:
    """Task at a worker; times are in seconds by the worker's clock, except `seen` and `unlisted`.

    A worker may send the task-received event of the next run before the task-started or task-retried event of this
    one, and the broker redelivers tasks that exceed its visibility timeout. So earlier runs may still be pending.

    :ivar seen: when its first event was processed, by the recorder's clock.
    :ivar eta: an ISO 8601 string.
    :ivar retries: the number of retries before this run.
    :ivar unstarted: retries and eta of earlier runs that were received, without a task-started event yet.
    :ivar unended: start times of earlier runs whose end has not been reported yet.
    :ivar unlisted: when an inspection of its worker did not list it, by the recorder's clock; None if the latest did.
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
    unlisted: float | None = None

    @property
    def waited(self) -> float:
        """Seconds between received and started; 0 if unknown, or if the task has an eta."""
        if self.eta or self.received is None or self.started is None:
            return 0
        return max(0, self.started - self.received)

    @property
    def to_start(self) -> tuple[tuple[int, str | None], ...]:
        """Retries and eta of the runs that were received and not started, in order."""
        return (*self.unstarted, (self.retries, self.eta)) if self.started is None else self.unstarted

    @property
    def running_since(self) -> tuple[float, ...]:
        """Start times of the runs that have not ended, in order."""
        return self.unended if self.started is None else (*self.unended, self.started)


class InFlight:
    """Tasks at workers by id; a redelivered task belongs to its new worker only.

    :param limit: maximum number of tasks; the oldest are dropped first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: OrderedDict[str, InFlightTask] = OrderedDict()
        # By worker, so that dropping a worker's tasks does not scan all tasks
        self._uuids: dict[str, set[str]] = {}

    def get(self, uuid: str) -> InFlightTask | None:
        """Return a task, or None."""
        return self._tasks.get(uuid)

    def put(self, uuid: str, task: InFlightTask) -> None:
        """Add or replace a task, as the newest one."""
        if uuid in self._tasks:
            self.drop([uuid])
        self._tasks[uuid] = task
        of_worker = self._uuids.get(task.worker)
        if of_worker is None:
            self._uuids[task.worker] = {uuid}
        else:
            of_worker.add(uuid)
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
        """Return the number of prefetched tasks without an eta at these workers, by worker and name."""
        numbers: dict[tuple[str, str], int] = defaultdict(int)
        for task in self._tasks.values():
            if task.started is None and not task.eta and task.worker in workers:
                numbers[task.worker, task.name] += 1
        return numbers

    def last_started(self, workers: Container[str]) -> dict[tuple[str, str], InFlightTask]:
        """Return the running task of these workers that was started last, by worker and name."""
        running = [task for task in self._tasks.values() if task.started is not None and task.worker in workers]
        return {(task.worker, task.name): task for task in sorted(running, key=lambda task: task.started or 0)}
