"""Time that tasks wait in queues, from their task-sent and task-started events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone

from celery.utils.time import maybe_iso8601

from flower_proxy._bounded import BoundedDict

MAX_RUNS = 10
"""Maximum number of earlier runs of a task that are pending."""

# Clients without task_send_sent_event never send the missing event
_MAX_UNSENT = 5000


@dataclass(slots=True)
class Start:
    """Start of a run.

    :ivar at: seconds since the epoch.
    :ivar eta: an ISO 8601 string.
    """

    worker: str
    name: str
    at: float
    eta: str | None

    def wait(self, sent: float) -> float:
        """Return the time in the queue, in seconds.

        :param sent: seconds since the epoch.
        """
        due = _timestamp(self.eta) if self.eta else 0.0
        return max(0.0, self.at - max(sent, due))


class QueueWaits:
    """Runs that were sent but not started, and those that were started but not sent; either event may come first.

    :param limit: maximum number of the former; the oldest are dropped first.
    """

    def __init__(self, limit: int) -> None:
        # By task and retries
        self._sent: BoundedDict[tuple[str, int], float] = BoundedDict(limit)
        self._unsent: BoundedDict[tuple[str, int], Start] = BoundedDict(_MAX_UNSENT)

    def on_sent(self, run: tuple[str, int], at: float) -> Start | None:
        """Record a task-sent event.

        :returns: the start of the run, if its event came first.
        """
        start = self._unsent.pop(run, None)
        if start is None:
            self._sent.put(run, at)
        return start

    def on_start(self, run: tuple[str, int], start: Start) -> float | None:
        """Record a task-started event.

        :returns: the time at which the run was sent, if its event came first.
        """
        sent = self._sent.pop(run, None)
        if sent is None:
            self._unsent.put(run, start)
        return sent

    def started_run(self, uuid: str, retries: int) -> int:
        """Return the run that a task-started event belongs to; the next run may have been sent before that event."""
        return next((run for run in range(max(0, retries - MAX_RUNS), retries) if (uuid, run) in self._sent), retries)


def _timestamp(eta: str) -> float:
    """Return an eta in seconds since the epoch; 0.0 if it is malformed.

    Like workers, it reads an eta without a time zone as UTC.
    """
    try:
        due = maybe_iso8601(eta)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    if due is None:
        return 0.0
    return float((due if due.tzinfo else due.replace(tzinfo=timezone.utc)).timestamp())
