"""A record of tasks by their workers and producers, with which their events must agree."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from celery import signals

# The `worker` label of all processes that send tasks
PRODUCERS = f"gen@{socket.gethostname()}"


class Line(NamedTuple):
    """A state change of a task.

    :ivar event: type of the event that reports it.
    :ivar who: name of the worker, or `PRODUCERS`.
    :ivar pid: of the process that wrote the line.
    """

    event: str
    who: str
    name: str
    queue: str
    uuid: str
    pid: int


class Ledger:
    """A file with a line for each state change of a task, to which many processes append.

    :param path: of the file, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[Line]:
        text = self.path.read_text() if self.path.exists() else ""
        fields = (line.split("\t") for line in text.splitlines())
        return [Line(event, who, name, queue, uuid, int(pid)) for event, who, name, queue, uuid, pid in fields]

    def of(self, *uuids: str, event: str) -> list[Line]:
        """Return the lines of this event and these tasks."""
        return [line for line in self.lines() if line.event == event and line.uuid in uuids]

    def write(self, event: str, who: str, name: str, queue: str, uuid: str) -> None:
        line = "\t".join(map(str, Line(event, who, name, queue, uuid, os.getpid())))
        # A single write appends atomically
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    @contextmanager
    def of_producer(self) -> Iterator[None]:
        """Record the tasks that this process sends."""
        signals.after_task_publish.connect(self._sent, weak=False)
        try:
            yield
        finally:
            signals.after_task_publish.disconnect(self._sent)

    def _sent(self, routing_key: str, headers: dict[str, Any], **_: Any) -> None:
        self.write("task-sent", PRODUCERS, headers["task"], routing_key, headers["id"])


def keep(ledger: Ledger) -> None:
    """Record the tasks of this worker, in its main process and its pool processes."""
    worker = ""

    def write(event: str, request: Any) -> None:
        name = getattr(request, "name", None) or request.task
        ledger.write(event, worker, name, request.delivery_info["routing_key"], request.id)

    def connect(signal: Any, receive: Any) -> None:
        signal.connect(receive, weak=False)

    def begin(sender: str, **_: Any) -> None:
        nonlocal worker
        worker = sender

    connect(signals.celeryd_init, begin)
    connect(signals.after_task_publish, ledger._sent)
    connect(signals.task_received, lambda request, **_: write("task-received", request))
    connect(signals.task_prerun, lambda task, **_: write("task-started", task.request))
    connect(signals.task_success, lambda sender, **_: write("task-succeeded", sender.request))
    connect(signals.task_retry, lambda request, **_: write("task-retried", request))
    connect(signals.task_revoked, lambda request, **_: write("task-revoked", request))
    connect(signals.task_failure, lambda sender, **_: write("task-failed", sender.request))
