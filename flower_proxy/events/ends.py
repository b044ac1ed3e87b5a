"""Tasks whose end was not received, because its event was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from celery import Celery

from flower_proxy._bounded import BoundedDict
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.result_backend import Answer, Question, ResultBackend, Unknown
from flower_proxy.events.state import State
from flower_proxy.events.task import Task

RESULT_BACKEND = "result_backend"
"""The state of the task is that of the result backend."""

NOT_SEEN = "not_seen"
"""The worker no longer has the task, and the result backend has no result."""

_SLICE = 2000  # tasks
_ASK_AGAIN = 600.0  # seconds, for a task that may wait for a rate limit


class _Version(NamedTuple):
    """Fields of a task of which each event changes at least one."""

    state: str
    timestamp: float | None
    received: float | None
    worker: str


@dataclass(slots=True)
class _Mark:
    """Answer to the question for a task's end.

    :ivar version: the task then; the mark is void after another event.
    :ivar end: `RESULT_BACKEND`, `NOT_SEEN`, or None if the task may still wait.
    :ivar ask_at: when to ask again, by the clock; None for never.
    """

    version: _Version
    end: str | None
    ask_at: float | None = None


class Ends:
    """Finds tasks that have ended without an event, and takes their ends from the result backend.

    Such a task is received or started according to its events, but two consecutive inspections of its worker do not
    list it, of which the second began after its latest event was processed. See mher/flower#869, #1428 and #322.

    Used in the event loop, except the thread of the result backend, which starts with the first question.

    :param state: the state; read at each scan.
    :param run: called in a thread with a function and its arguments, to call that in the event loop.
    :param clock: returns monotonic seconds.
    """

    def __init__(
        self,
        capp: Celery,
        state: Callable[[], State],
        *,
        rejections: Rejections,
        run: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = ResultBackend(
            capp, on_answer=lambda *answer: run(self._on_answer, *answer), rejections=rejections
        )
        self._state, self._clock = state, clock
        # By worker: the ids of its tasks, and when its inspection began
        self._inspected: dict[str, tuple[Collection[str], float]] = {}
        # By id: tasks that the latest inspection did not list, and when
        self._unlisted: dict[str, tuple[_Version, float]] = {}
        self._asked: dict[str, _Version] = {}
        self._marks: BoundedDict[str, _Mark] = BoundedDict(state().max_tasks_in_memory)
        self._scan: asyncio.Task[None] | None = None

    def end_of(self, uuid: str) -> str | None:
        """Return how the end of a task is known: `RESULT_BACKEND` or `NOT_SEEN`; None for events or no end."""
        mark, task = self._marks.get(uuid), self._state().tasks.data.get(uuid)
        return mark.end if mark and task and mark.version == _version(task) else None

    def stop(self) -> None:
        """Stop scanning and asking, without waiting."""
        self._inspected.clear()
        if self._scan is not None:
            self._scan.cancel()
        self.backend.stop()

    def join(self) -> None:
        """Wait for the thread that `stop` has told to stop."""
        if self.backend.ident is not None:
            self.backend.join()

    def on_inspection(self, worker: str, ids: Collection[str], inspected_at: float) -> None:
        """Compare the tasks of the state with those of a worker, soon.

        :param ids: the ids of its active, reserved and scheduled tasks.
        :param inspected_at: when the inspection began, by `clock`.
        """
        self._inspected[worker] = ids, inspected_at
        if self._scan is None or self._scan.done():
            self._scan = asyncio.ensure_future(self.scan())

    async def scan(self) -> None:
        """Ask for the end of each task that has ended, in slices."""
        inspected, self._inspected = self._inspected, {}
        tasks, before = list(self._state().tasks.data.values()), self._unlisted
        self._unlisted = {uuid: one for uuid, one in before.items() if one[0].worker not in inspected}
        for start in range(0, len(tasks), _SLICE):
            for task in tasks[start : start + _SLICE]:
                if task.state in ("STARTED", "RECEIVED") and task.worker is not None:
                    found = inspected.get(task.worker.hostname)
                    if found is not None and task.uuid not in found[0]:
                        self._on_unlisted(task, found[1], before.get(task.uuid))
            await asyncio.sleep(0)
        known = self._state().tasks.data
        for uuids in (self._marks, self._unlisted):
            for uuid in [uuid for uuid in uuids if uuid not in known]:
                del uuids[uuid]

    def _on_unlisted(self, task: Task, inspected_at: float, before: tuple[_Version, float] | None) -> None:
        version = _version(task)
        since = before[1] if before and before[0] == version else self._clock()
        self._unlisted[task.uuid] = version, since
        mark = self._marks.get(task.uuid)
        is_answered = mark and mark.version == version and (mark.ask_at is None or self._clock() < mark.ask_at)
        if since >= inspected_at or is_answered or self._asked.get(task.uuid) == version:
            return
        question = Question(task.uuid, task.name, version.worker, task.state == "RECEIVED", task.timestamp or 0)
        if self.backend.put(question):
            self._asked[task.uuid] = version
            if self.backend.ident is None:
                self.backend.start()

    def _on_answer(self, question: Question, answer: Answer) -> None:
        uuid = question.uuid
        version, task = self._asked.pop(uuid), self._state().tasks.data.get(uuid)
        if task is None or _version(task) != version:
            return
        if answer is Unknown.WAITING:
            self._marks.put(uuid, _Mark(version, None, self._clock() + _ASK_AGAIN))
        elif answer is Unknown.FAILED:
            # The thread pauses before its next question
            self._marks.put(uuid, _Mark(version, NOT_SEEN, self._clock()))
        elif answer is Unknown.NO_RESULT:
            self._marks.put(uuid, _Mark(version, NOT_SEEN))
        else:
            self._state().end(answer)
            self._marks.put(uuid, _Mark(_version(task), RESULT_BACKEND))


def _version(task: Task) -> _Version:
    worker = task.worker.hostname if task.worker else ""
    return _Version(task.state, task.timestamp, task.received, worker)
