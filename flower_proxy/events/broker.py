"""Connections to the broker with timeouts, and queue lengths."""

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
"""Maximum time for one response of the broker, in seconds."""

# Detects an unreachable host within 30 s, on systems that have these options
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_KEEPALIVE_OPTIONS = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}

# By transport driver; other drivers may refuse unknown options
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
# By class name, since the libraries of other transports may not be installed; the first match wins
_PROBLEMS = {
    "Redis closed it because its output buffer was full; raise client-output-buffer-limit pubsub": {
        "OutputBufferFullError"
    },
    "the broker refuses the credentials": {
        "AccessRefused",
        "AuthenticationError",
        "AuthorizationError",
        "NoPermissionError",
        "NotAllowed",
    },
    NO_ANSWER: {"TimeoutError"},
    "the TLS handshake with the broker fails": {"SSLError"},
    "the broker cannot be reached": {"ConnectionError", "OSError"},
}


@contextlib.contextmanager
def connected(capp: Celery) -> Iterator[Connection]:
    """Connect to the first of the broker's URLs that answers, until the block ends.

    Timeouts in `broker_transport_options` override the defaults of this module.

    :raises Exception: any error of the transport, while connecting and later; see `problem_of`.
    """
    with capp.connection_for_write() as connection:
        for name, value in _TIMEOUTS.get(connection.transport.driver_name, {}).items():
            connection.transport_options.setdefault(name, value)
        if sentinel := connection.transport_options.get("sentinel_kwargs"):
            # redis-py applies the socket options to Sentinels only where `sentinel_kwargs` is unset
            sockets = {
                name: value for name, value in connection.transport_options.items() if name.startswith("socket_")
            }
            connection.transport_options["sentinel_kwargs"] = {**sockets, **sentinel}
        for remaining in reversed(range(max(1, len(connection.alt)))):
            try:
                # By default kombu retries for ever
                connection.ensure_connection(max_retries=0)
                # On Redis, opening a channel is the first access to the server
                _ = connection.default_channel
                break
            except Exception:
                if not remaining:
                    raise
                connection.maybe_switch_next()
        yield connection


def problem_of(error: BaseException) -> str:
    """Return the cause of a broker error as a fixed phrase, which contains no part of the broker's URL."""
    names: set[str] = set()
    # redis-py raises its ConnectionError from the SSLError
    cause: BaseException | None = error
    while cause is not None:
        names.update(base.__name__ for base in type(cause).__mro__)
        cause = cause.__cause__ or cause.__context__
    return next((phrase for phrase, known in _PROBLEMS.items() if names & known), "the broker answers with an error")


def back_off(max_interval: float) -> Iterator[float]:
    """Yield the seconds to wait before each attempt: exponential back-off from 1 s to `max_interval`, with jitter.

    Stock Flower doubles the interval without a limit (mher/flower#321).
    """
    interval = 1.0
    while True:
        yield random.uniform(interval / 2, interval)  # noqa: S311
        interval = min(2 * interval, max_interval)


def mailbox_of(capp: Celery, connection: Connection) -> Mailbox:
    """Return the workers' mailbox, bound to this connection."""
    mailbox = capp.control.mailbox(connection)
    # The application's own pool opens connections without timeouts
    mailbox.producer_pool = _ProducerPool(connection)
    return mailbox


class _ProducerPool:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def acquire(self) -> contextlib.AbstractContextManager[Producer]:
        return contextlib.nullcontext(_SingleAttemptProducer(self._connection.default_channel, auto_declare=False))


class _SingleAttemptProducer(Producer):
    """Producer that never retries; its user reconnects."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        return super().publish(*args, **{**kwargs, "retry": False})


class Counted(NamedTuple):
    """Messages and consumers of a queue; transports other than AMQP report 0 consumers."""

    messages: int
    consumers: int


def count(connection: Connection, name: str) -> Counted | None:
    """Count the messages and consumers of a queue.

    :returns: None if the broker refuses access to the queue.
    :raises Exception: any error of the transport when the connection fails.
    """
    try:
        declared = connection.default_channel.queue_declare(queue=name, passive=True)
    except connection.channel_errors as error:
        # AMQP brokers close the channel with this error; py-amqp opens it again
        missing = str(getattr(error, "reply_code", None)) == _NOT_FOUND
        return Counted(0, 0) if missing else None
    return Counted(declared.message_count, declared.consumer_count)
