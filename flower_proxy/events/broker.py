"""Connections to the broker with timeouts, and the lengths of its queues (P4, P22)."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import Celery
from kombu import Connection, Producer
from kombu.pidbox import Mailbox

ANSWER_TIMEOUT = 5.0
"""Seconds that a broker may take for one answer."""

# So that a host which is gone without a word is noticed within half a minute, where the system has these
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_KEEPALIVE_OPTIONS = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}

# By the name of the transport's driver; others may refuse what they do not know
_TIMEOUTS: dict[str, dict[str, Any]] = {
    "redis": {
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_connect_timeout": ANSWER_TIMEOUT,
        "socket_keepalive": True,
        "socket_keepalive_options": _KEEPALIVE_OPTIONS,
    },
    "py-amqp": {
        "read_timeout": ANSWER_TIMEOUT,
        "write_timeout": ANSWER_TIMEOUT,
        "socket_settings": _KEEPALIVE_OPTIONS,
    },
}

_NOT_FOUND = "404"

NO_ANSWER = "the broker does not answer"
# By the names of classes, as the libraries of other transports need not be installed; the first that fits
_PROBLEMS = {
    "the broker refuses the credentials": {
        "AccessRefused",
        "AuthenticationError",
        "AuthorizationError",
        "NoPermissionError",
        "NotAllowed",
    },
    NO_ANSWER: {"TimeoutError"},
    "the broker's TLS fails": {"SSLError"},
    "the broker cannot be reached": {"ConnectionError", "OSError"},
}


@contextlib.contextmanager
def connected(capp: Celery) -> Iterator[Connection]:
    """Connect to the broker, at the first of its addresses that answers, until the block ends.

    What `broker_transport_options` say about timeouts counts; where they say nothing, nothing waits for ever.

    :raises Exception: whatever the transport raises, while it connects and later; see `problem_of`.
    """
    with capp.connection_for_write() as connection:
        for name, value in _TIMEOUTS.get(connection.transport.driver_name, {}).items():
            connection.transport_options.setdefault(name, value)
        if sentinel := connection.transport_options.get("sentinel_kwargs"):
            # Without these, redis uses the timeouts for its connections to Sentinels too
            sockets = {
                name: value for name, value in connection.transport_options.items() if name.startswith("socket_")
            }
            connection.transport_options["sentinel_kwargs"] = {**sockets, **sentinel}
        for others in reversed(range(max(1, len(connection.alt)))):
            try:
                # Left to itself it would try for ever, at intervals of its own
                connection.ensure_connection(max_retries=0)
                # Redis is not spoken to before
                _ = connection.default_channel
                break
            except Exception:
                if not others:
                    raise
                connection.maybe_switch_next()
        yield connection


def problem_of(error: BaseException) -> str:
    """Return what is wrong with the broker, as one of a few phrases that hold nothing of its URL."""
    names: set[str] = set()
    # redis says of failing TLS no more than that it cannot connect
    cause: BaseException | None = error
    while cause is not None:
        names.update(base.__name__ for base in type(cause).__mro__)
        cause = cause.__cause__ or cause.__context__
    return next((phrase for phrase, known in _PROBLEMS.items() if names & known), "the broker answers with an error")


def back_off(longest: float) -> Iterator[float]:
    """Yield the seconds to wait before the next attempt, and the next: ever more, but never above `longest` (P9).

    A part of them is left to chance, so that not everybody comes at the same moment when a broker is back.
    """
    pause = 1.0
    while True:
        yield random.uniform(pause / 2, pause)  # noqa: S311
        pause = min(2 * pause, longest)


def mailbox_of(capp: Celery, connection: Connection) -> Mailbox:
    """Return the workers' mailbox over this connection alone."""
    mailbox = capp.control.mailbox(connection)
    # In place of the application's pool, whose connections wait for ever
    mailbox.producer_pool = _ProducerPool(connection)
    return mailbox


class _ProducerPool:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def acquire(self) -> contextlib.AbstractContextManager[Producer]:
        return contextlib.nullcontext(_Once(self._connection.default_channel, auto_declare=False))


class _Once(Producer):
    """Publishes at the first attempt or not at all: to connect again is its user's affair."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        return super().publish(*args, **{**kwargs, "retry": False})


class Counted(NamedTuple):
    """What the broker tells of a queue. Transports other than amqp know of no consumers, and say 0."""

    messages: int
    consumers: int


def count(connection: Connection, name: str) -> Counted | None:
    """Count a queue through the transport itself.

    :returns: None where the broker refuses to tell.
    :raises Exception: whatever the transport raises for a connection that fails.
    """
    try:
        declared = connection.default_channel.queue_declare(queue=name, passive=True)
    except connection.channel_errors as error:
        # On amqp the channel is closed by that, and opened again by its library
        missing = str(getattr(error, "reply_code", None)) == _NOT_FOUND
        return Counted(0, 0) if missing else None
    return Counted(declared.message_count, declared.consumer_count)
