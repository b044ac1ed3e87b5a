"""Questions to workers, whose replies are validated and bounded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from celery import Celery
from celery.app.control import Control, Inspect
from kombu import Connection, Consumer, Message, uuid
from kombu.pidbox import Mailbox

from flower_proxy.events.broker import problem_of
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import (
    MALFORMED,
    TOO_LARGE,
    UNKNOWN_WORKER,
    InvalidReplyError,
    is_worker_name,
    validate_reply,
)

logger = logging.getLogger(__name__)

MAX_REPLY = 16 * 2**20
"""Maximum size of a worker's reply in bytes; 10,000 reserved tasks take about 6 MB."""

MAX_REPLIES = 8 * MAX_REPLY
"""Maximum size of all replies to one question, in bytes."""

# However many workers reply one after the other
_MAX_TIMEOUTS = 10


class _Replies:
    """Collects the valid replies to one question.

    :ivar valid: the latest valid reply of each worker, by its name.
    """

    def __init__(self, command: str, ticket: str, accepts: Callable[[str, int], bool], rejections: Rejections) -> None:
        self.valid: dict[str, Any] = {}
        self._command, self._ticket, self._accepts, self._rejections = command, ticket, accepts, rejections
        self._room = MAX_REPLIES

    def take(self, message: Message) -> None:
        headers = message.headers
        if not isinstance(headers, dict) or headers.get("ticket") != self._ticket:
            # A late reply to an earlier question
            return
        size = len(message.body or b"")
        if size > min(MAX_REPLY, self._room):
            self.reject(TOO_LARGE, f"{size} bytes")
            return
        self._room -= size
        body = message.decode()
        if not isinstance(body, dict):
            self.reject(MALFORMED, f"{type(body).__name__} instead of an object")
            return
        for name, reply in body.items():
            self._take(str(name), reply)

    def _take(self, name: str, reply: Any) -> None:
        if not (is_worker_name(name) and self._accepts(name, len(self.valid))):
            self.reject(UNKNOWN_WORKER, name)
            return
        try:
            self.valid[name] = validate_reply(self._command, reply)
        except InvalidReplyError as error:
            self.reject(error.reason, f"{name[:100]}: {error}")

    def reject(self, reason: str, detail: str) -> None:
        self._rejections.count(reason, f"{self._command}: {detail}")


def ask(
    mailbox: Mailbox,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    destination: Collection[str] | None,
    timeout: float,
    rejections: Rejections,
    accepts_from_all: Callable[[str, int], bool] = lambda name, count: True,
) -> dict[str, Any]:
    """Ask workers, and return their valid replies, by worker.

    In place of `Mailbox.call`, where one malformed reply loses those of all workers.

    :param mailbox: of the workers, bound to a connection.
    :param destination: the workers to ask; None for all.
    :param timeout: seconds to wait for the next valid reply; ten times that for all of them.
    :param rejections: counts the replies that are rejected, by the reasons of `flower_proxy.events.replies`.
    :param accepts_from_all: with a worker's name and the number of replies before its own, whether to accept the reply
        to a question to all.
    :raises Exception: whatever the transport raises for a connection that fails.
    """
    if destination is not None and not destination:
        # Workers take a question to nobody for one to all
        return {}
    connection, ticket = mailbox.connection, uuid()
    names = None if destination is None else set(destination)
    accepts = accepts_from_all if names is None else lambda name, count: name in names
    replies = _Replies(command, ticket, accepts, rejections)
    channel, queue = connection.default_channel, mailbox.reply_queue
    consumer = Consumer(channel, [queue], accept=mailbox.accept, no_ack=True, on_message=replies.take)
    try:
        with consumer:
            _publish(mailbox, command, arguments, destination, ticket, timeout)
            _collect(connection, replies, names, timeout)
    finally:
        # On Redis nothing else deletes it
        channel.after_reply_message_received(queue.name)
    return replies.valid


def _collect(connection: Connection, replies: _Replies, names: set[str] | None, timeout: float) -> None:
    lost = (*connection.connection_errors, *connection.channel_errors)
    now = time.monotonic()
    deadline, end = now + timeout, now + _MAX_TIMEOUTS * timeout
    while (remaining := min(deadline, end) - time.monotonic()) > 0 and replies.valid.keys() != names:
        before = len(replies.valid)
        try:
            connection.drain_events(timeout=remaining)
        except TimeoutError:
            return
        except lost:
            raise
        except Exception as error:
            replies.reject(MALFORMED, f"{type(error).__name__}: {error}")
        if len(replies.valid) > before:
            deadline = time.monotonic() + timeout


def _publish(
    mailbox: Mailbox,
    command: str,
    arguments: Mapping[str, Any] | None,
    destination: Collection[str] | None,
    ticket: str,
    timeout: float,
) -> None:
    message = {
        "method": command,
        "arguments": dict(arguments or {}),
        "destination": None if destination is None else list(destination),
        "pattern": None,
        "matcher": None,
        "ticket": ticket,
        "reply_to": {"exchange": mailbox.reply_exchange.name, "routing_key": mailbox.reply_queue.routing_key},
    }
    with mailbox.producer_or_acquire(channel=mailbox.connection.default_channel) as producer:
        producer.publish(
            message,
            exchange=mailbox.exchange.name,
            declare=[mailbox.exchange],
            headers={"clock": mailbox.clock.forward(), "expires": time.time() + timeout},
            serializer=mailbox.serializer,
            retry=True,
        )


class _InspectionLog:
    """Logs why inspections fail, once until another outcome; Flower sends several at the same time."""

    def __init__(self) -> None:
        self._outcome = ""
        self._lock = threading.Lock()

    def note(self, level: int, outcome: str) -> None:
        """Note the outcome of an inspection; empty for a success."""
        with self._lock:
            changed, self._outcome = outcome != self._outcome, outcome
        if changed and outcome:
            logger.log(level, outcome)


class Inspections:
    """Celery's inspections, by the names of its `Inspect`. A failed one is logged and returns no replies.

    Flower would log each of them without the cause.

    :param app: the Celery application, with a `CheckedControl` as its ``control``.
    :param log: notes the outcome.
    :param timeout: seconds to wait for replies.
    :param options: others of `Inspect`.
    """

    def __init__(self, app: Any, log: _InspectionLog, *, timeout: float = 1.0, **options: Any) -> None:
        self._inspect = Inspect(app=app, timeout=timeout, **options)
        self._log, self._timeout = log, timeout

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        method = getattr(self._inspect, name)

        def inspect(**arguments: Any) -> dict[str, Any]:
            try:
                replies: dict[str, Any] = method(**arguments) or {}
            except Exception as error:
                self._log.note(logging.WARNING, f"Failed to inspect workers: {problem_of(error)}")
                logger.debug("Failed to inspect workers", exc_info=True)
                return {}
            nobody = f"No worker replied within {self._timeout:g} s: none is running, or increase --inspect_timeout"
            self._log.note(logging.INFO, "" if replies else nobody)
            return replies

        return inspect


class CheckedControl(Control):
    """Celery's remote control, which returns valid replies only.

    :param app: the Celery application whose workers are controlled, with this as its ``control``.
    :param rejections: counts the replies that are rejected.
    :param accepts_from_all: as for `ask`.
    """

    def __init__(self, app: Any, *, rejections: Rejections, accepts_from_all: Callable[[str, int], bool]) -> None:
        super().__init__(app)
        self._rejections, self._accepts_from_all = rejections, accepts_from_all
        self._log = _InspectionLog()

    @property
    def inspect(self) -> Callable[..., Inspections]:
        """Return what makes inspections, which ask through this."""
        return partial(Inspections, self.app, self._log)

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Collection[str] | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float = 1.0,
        **options: Any,
    ) -> list[dict[str, Any]] | None:
        """Send a command to workers, with Celery's parameters.

        :param options: Celery's others, which only count without `reply`.
        :returns: ``{name: reply}`` for each worker whose reply is valid; None without `reply`.
        """
        if not reply:
            super().broadcast(command, arguments, destination, connection, timeout=timeout, **options)
            return None
        with self.app.connection_or_acquire(connection) as acquired:
            replies = ask(
                self.mailbox(acquired),
                command,
                arguments,
                destination=destination,
                timeout=timeout,
                rejections=self._rejections,
                accepts_from_all=self._accepts_from_all,
            )
        return [{name: told} for name, told in replies.items()]


class CheckedCelery:
    """The Celery application as Flower gets it: replies of workers are validated.

    :param capp: the Celery application.
    :param inspected: keeps the replies to inspections.
    :param rejections: counts the replies that are rejected.
    """

    def __init__(self, capp: Celery, inspected: Inspected, rejections: Rejections) -> None:
        self._capp = capp
        self.control = CheckedControl(self, rejections=rejections, accepts_from_all=inspected.accepts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capp, name)


class Inspected(dict[str, dict[str, Any]]):
    """The latest replies of workers to inspections, by worker and inspection; filled by Flower's inspector.

    :param max_workers: maximum number of workers.
    :param is_known: with a worker's name, whether it has sent events; others make way for it.
    """

    def __init__(self, max_workers: int, is_known: Callable[[str], bool]) -> None:
        super().__init__()
        self._max_workers, self._is_known = max_workers, is_known

    def accepts(self, name: str, count: int) -> bool:
        """Return whether to accept a worker's reply to a question to all, after so many replies of others."""
        # Flower takes a reply of this name for the failure of all
        return name != "error" and (count < self._max_workers or self._is_known(name))

    def __missing__(self, name: str) -> dict[str, Any]:
        if len(self) >= self._max_workers:
            del self[next((other for other in self if not self._is_known(other)), next(iter(self)))]
        self[name] = {}
        return self[name]
