"""Remote control of workers, with validated replies of limited size."""

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
"""Maximum size of all replies to one command, in bytes."""

# Celery's own second is too short for a busy worker, which may do what it is told without the user knowing
_TIMEOUT = 5.0  # seconds

# Each valid reply extends the wait by the timeout, up to this multiple of it
_MAX_TIMEOUTS = 10


class _Replies:
    """Valid replies to one command.

    :ivar valid: the latest valid reply of each worker, by its name.
    """

    def __init__(self, command: str, ticket: str, accepts: Callable[[str, int], bool], rejections: Rejections) -> None:
        self.valid: dict[str, Any] = {}
        self._command, self._ticket, self._accepts, self._rejections = command, ticket, accepts, rejections
        self._remaining_size = MAX_REPLIES

    def receive(self, message: Message) -> None:
        headers = message.headers
        if not isinstance(headers, dict) or headers.get("ticket") != self._ticket:
            # A late reply to an earlier command
            return
        size = len(message.body or b"")
        if size > min(MAX_REPLY, self._remaining_size):
            self.reject(TOO_LARGE, f"{size} bytes")
            return
        self._remaining_size -= size
        body = message.decode()
        if not isinstance(body, dict):
            self.reject(MALFORMED, f"{type(body).__name__} instead of an object")
            return
        for name, reply in body.items():
            self._receive(str(name), reply)

    def _receive(self, name: str, reply: Any) -> None:
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
    """Send a command to workers and return their valid replies, by worker name.

    Replaces `Mailbox.call`, where one malformed reply discards the replies of all workers.

    :param mailbox: the workers' mailbox, bound to a connection.
    :param destination: names of the workers; None for all.
    :param timeout: seconds to wait for the next valid reply; ten times that for all of them.
    :param rejections: counts rejected replies, by the reasons of `flower_proxy.events.replies`.
    :param accepts_from_all: takes a worker's name and the number of valid replies so far; returns whether to accept
        this worker's reply to a broadcast.
    :raises Exception: any error of the transport when the connection fails.
    """
    if destination is not None and not destination:
        # Workers treat an empty destination as a broadcast
        return {}
    connection, ticket = mailbox.connection, uuid()
    names = None if destination is None else set(destination)
    accepts = accepts_from_all if names is None else lambda name, count: name in names
    replies = _Replies(command, ticket, accepts, rejections)
    channel, queue = connection.default_channel, mailbox.reply_queue
    consumer = Consumer(channel, [queue], accept=mailbox.accept, no_ack=True, on_message=replies.receive)
    try:
        with consumer:
            _publish(mailbox, command, arguments, destination, ticket, timeout)
            _collect(connection, replies, names, timeout)
    finally:
        # Deletes the reply queue, which would otherwise stay in Redis
        channel.after_reply_message_received(queue.name)
    return replies.valid


def _collect(connection: Connection, replies: _Replies, names: set[str] | None, timeout: float) -> None:
    connection_lost = (*connection.connection_errors, *connection.channel_errors)
    now = time.monotonic()
    deadline, end = now + timeout, now + _MAX_TIMEOUTS * timeout
    while (remaining := min(deadline, end) - time.monotonic()) > 0 and replies.valid.keys() != names:
        before = len(replies.valid)
        try:
            connection.drain_events(timeout=remaining)
        except TimeoutError:
            return
        except connection_lost:
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
    """Logs the outcome of inspections whenever it changes; Flower sends several at the same time."""

    def __init__(self) -> None:
        self._outcome = ""
        self._lock = threading.Lock()

    def record(self, level: int, outcome: str) -> None:
        """Record the outcome of an inspection; empty for a success."""
        with self._lock:
            changed, self._outcome = outcome != self._outcome, outcome
        if changed and outcome:
            logger.log(level, outcome)


class Inspections:
    """Celery's `Inspect`, but a failed inspection is logged with its cause and returns no replies.

    :param app: the Celery application, with a `CheckedControl` as its ``control``.
    :param log: records the outcome.
    :param timeout: seconds to wait for replies.
    :param options: other options of `Inspect`.
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
                self._log.record(logging.WARNING, f"Failed to inspect workers: {problem_of(error)}")
                logger.debug("Failed to inspect workers", exc_info=True)
                return {}
            no_reply = f"No worker replied within {self._timeout:g} s; start a worker or increase --inspect_timeout"
            self._log.record(logging.INFO, "" if replies else no_reply)
            return replies

        return inspect


class CheckedControl(Control):
    """Celery's remote control, which returns valid replies only.

    :param app: the Celery application that has this object as its ``control``.
    :param rejections: counts rejected replies.
    :param accepts_from_all: see `ask`.
    """

    def __init__(self, app: Any, *, rejections: Rejections, accepts_from_all: Callable[[str, int], bool]) -> None:
        super().__init__(app)
        self._rejections, self._accepts_from_all = rejections, accepts_from_all
        self._log = _InspectionLog()

    @property
    def inspect(self) -> Callable[..., Inspections]:
        """Return the factory of inspections, in place of Celery's `Inspect`."""
        return partial(Inspections, self.app, self._log)

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Collection[str] | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> list[dict[str, Any]] | None:
        """Send a command to workers, with Celery's parameters.

        :param timeout: seconds to wait for the next reply. Inspections have one; by default, as in control actions, the
            workers of the destination have five, and those that do not reply are returned with an error.
        :param options: Celery's other parameters, used only without `reply`.
        :returns: ``{name: reply}`` for each worker whose reply is valid; None without `reply`.
        """
        if not reply:
            super().broadcast(command, arguments, destination, connection, **options)
            return None
        unanswered: dict[str, Any] = {}
        if timeout is None:
            error = f"no reply within {_TIMEOUT:g} s; the worker may still do it"
            timeout, unanswered = _TIMEOUT, {name: {"error": error} for name in destination or ()}
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
        return [{name: value} for name, value in {**unanswered, **replies}.items()]


class CheckedCelery:
    """Celery application for Flower, with validated replies of workers.

    :param capp: the Celery application.
    :param inspected: stores the replies to inspections.
    :param rejections: counts rejected replies.
    """

    def __init__(self, capp: Celery, inspected: Inspected, rejections: Rejections) -> None:
        self._capp = capp
        self.control = CheckedControl(self, rejections=rejections, accepts_from_all=inspected.accepts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capp, name)


class Inspected(dict[str, dict[str, Any]]):
    """Latest replies to inspections, by worker and inspection; filled by Flower's inspector.

    :param max_workers: maximum number of workers.
    :param is_known: takes a worker's name and returns whether it has sent events; other workers are evicted first.
    """

    def __init__(self, max_workers: int, is_known: Callable[[str], bool]) -> None:
        super().__init__()
        self._max_workers, self._is_known = max_workers, is_known

    def accepts(self, name: str, count: int) -> bool:
        """Return whether to accept a worker's reply to a broadcast, after `count` replies of others."""
        # Flower interprets a reply of this name as the failure of the inspection
        return name != "error" and (count < self._max_workers or self._is_known(name))

    def __missing__(self, name: str) -> dict[str, Any]:
        if len(self) >= self._max_workers:
            del self[next((other for other in self if not self._is_known(other)), next(iter(self)))]
        self[name] = {}
        return self[name]
