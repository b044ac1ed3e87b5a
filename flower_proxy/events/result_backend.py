"""Thread that asks the result backend for the ends of tasks."""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import timezone
from typing import Any, NamedTuple

from celery import Celery
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.result import AsyncResult
from celery.utils.saferepr import saferepr

from flower_proxy.events.broker import connected, mailbox_of
from flower_proxy.events.control import ask
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.validation import validate

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 1000
"""Maximum number of questions that wait."""

_INTERVAL = 0.1  # seconds between two questions
_PAUSE = 30.0  # seconds after a failure of the backend
_INSPECT_TIMEOUT = 1.0  # seconds
_LIMITS_TTL = 60.0  # seconds for which the rate limits of a worker are kept
_MAX_REPR = 1024  # characters, as in the events of workers
# The result of another client's task is not readable with rpc://
_WITHOUT_RESULTS = (DisabledBackend, RPCBackend)


class Unknown(enum.Enum):
    """Reasons why the end of a task is unknown.

    :cvar NO_RESULT: the backend has no end of the task.
    :cvar WAITING: the task may wait for a rate limit; inspections of its worker do not list it meanwhile.
    :cvar FAILED: the backend does not answer.
    """

    NO_RESULT = enum.auto()
    WAITING = enum.auto()
    FAILED = enum.auto()


Answer = Mapping[str, Any] | Unknown
"""A valid event, or the reason why there is none."""


class Question(NamedTuple):
    """Task whose end is unknown.

    :ivar is_received: whether it has not started, according to its events.
    :ivar changed_at: the time of its latest event, in seconds since the epoch.
    """

    uuid: str
    name: str | None
    worker: str
    is_received: bool
    changed_at: float


class ResultBackend(threading.Thread):
    """Asks for one task at a time, at most ten a second; an unresponsive backend blocks only this thread.

    :param capp: the Celery application.
    :param on_answer: called in this thread with a question and the answer.
    :param rejections: counts rejected replies of workers.
    """

    def __init__(self, capp: Celery, *, on_answer: Callable[[Question, Answer], None], rejections: Rejections) -> None:
        super().__init__(name="result-backend", daemon=True)
        self._capp, self._on_answer, self._rejections = capp, on_answer, rejections
        self._questions: queue.Queue[Question | None] = queue.Queue(MAX_QUESTIONS)
        self._stopping = threading.Event()
        # By worker: when they expire, and the names of tasks with a rate limit; None if the worker did not reply
        self._limits: dict[str, tuple[float, Collection[str] | None]] = {}
        self._has_failed = False

    def put(self, question: Question | None) -> bool:
        """Queue a question.

        :param question: None ends the thread.
        :returns: whether there was room for it.
        """
        try:
            self._questions.put_nowait(question)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stopping.set()
        # A full queue wakes the thread, too
        self.put(None)

    def run(self) -> None:
        """Answer questions until `stop`."""
        while (question := self._questions.get()) is not None and not self._stopping.is_set():
            answer = self._answer(question)
            if not self._stopping.is_set():
                self._on_answer(question, answer)
            self._stopping.wait(_PAUSE if answer is Unknown.FAILED else _INTERVAL)

    def _answer(self, question: Question) -> Answer:
        try:
            if question.is_received and self._may_wait(question):
                return Unknown.WAITING
            answer = self._ask(question)
        except Exception as error:
            if not self._has_failed:
                # The message of the error may contain a password
                logger.warning(
                    "Failed to ask the result backend (%s); asking again in %g s", type(error).__name__, _PAUSE
                )
            self._has_failed = True
            logger.debug("Failed to ask the result backend", exc_info=True)
            return Unknown.FAILED
        self._has_failed = False
        return answer

    def _ask(self, question: Question) -> Answer:
        if isinstance(self._capp.backend, _WITHOUT_RESULTS):
            return Unknown.NO_RESULT
        result = AsyncResult(question.uuid, app=self._capp)
        state = result.state
        read = _FIELDS.get(state)
        if read is None:
            return Unknown.NO_RESULT
        event = {"type": _TYPES[state], "uuid": question.uuid, "hostname": question.worker, **read(result)}
        return validate({**event, "timestamp": _ended_at(result, question.changed_at)})

    def _may_wait(self, question: Question) -> bool:
        now = time.monotonic()
        expires, limited = self._limits.get(question.worker, (0.0, None))
        if expires < now:
            limited = self._inspect(question.worker)
            self._limits = {name: known for name, known in self._limits.items() if known[0] >= now}
            self._limits[question.worker] = now + _LIMITS_TTL, limited
        return limited is None or question.name is None or question.name in limited

    def _inspect(self, worker: str) -> Collection[str] | None:
        with connected(self._capp) as connection:
            replies = ask(
                mailbox_of(self._capp, connection),
                "registered",
                {"taskinfoitems": ["rate_limit"]},
                destination=[worker],
                timeout=_INSPECT_TIMEOUT,
                rejections=self._rejections,
            )
        registered = replies.get(worker)
        if registered is None:
            return None
        return {name for name, _, limit in (entry.partition(" [rate_limit=") for entry in registered) if limit}


def _ended_at(result: AsyncResult, changed_at: float) -> float:
    """Return the time of the end in seconds since the epoch, at least `changed_at`; now if it is unknown."""
    now, done = time.time(), result.date_done
    if done is None:
        return max(now, changed_at)
    # Older releases of Celery store UTC without a time zone
    at = (done if done.tzinfo else done.replace(tzinfo=timezone.utc)).timestamp()
    return float(max(min(at, now), changed_at))


def _failure(result: AsyncResult) -> dict[str, Any]:
    return {"exception": saferepr(result.result, _MAX_REPR), "traceback": result.traceback}


_TYPES = {
    "SUCCESS": "task-succeeded",
    "FAILURE": "task-failed",
    "RETRY": "task-retried",
    "REVOKED": "task-revoked",
}
_FIELDS: dict[str, Callable[[AsyncResult], dict[str, Any]]] = {
    "SUCCESS": lambda result: {"result": saferepr(result.result, _MAX_REPR)},
    "FAILURE": _failure,
    "RETRY": _failure,
    "REVOKED": lambda result: {},
}
