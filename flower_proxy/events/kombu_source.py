"""Reception of messages by kombu, over any transport."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from queue import Empty
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from kombu import Connection, Message
from kombu.transport import virtual

from flower_proxy.events.broker import mailbox_of
from flower_proxy.events.buffer import Decode, Raw
from flower_proxy.events.decoding import decode_message
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.validation import UNDECODABLE

READ_TIMEOUT = 1.0
"""Maximum time in seconds to wait for messages until a source checks whether to stop."""

MAX_BATCH = 500
"""Maximum number of messages that are passed on together."""

_REDIS_LOGGER = "kombu.transport.redis"
_REST = 0.03  # seconds


Deliver = Callable[[Decode, Sequence[Raw]], None]
"""Takes messages, and the function that decodes each of them later."""


class KombuSource(EventReceiver):
    """Receives messages in the thread that calls `receive`, until the connection fails or `is_stopping` returns True.

    Invalid messages are rejected without closing the connection.

    :param connection: connection to the broker.
    :param capp: the Celery application.
    :param rejections: counts messages with invalid envelopes.
    :param on_ready: called after the subscription to events.
    :param deliver: called with the messages.
    :param is_stopping: called at least once a second; returns whether to stop.
    :cvar name: the way of the messages, for the log.
    """

    name = "kombu's consumer"

    def __init__(
        self,
        connection: Connection,
        capp: Celery,
        *,
        rejections: Rejections,
        on_ready: Callable[[], None],
        deliver: Deliver,
        is_stopping: Callable[[], bool],
    ) -> None:
        super().__init__(connection, app=capp)
        self._rejections = rejections
        self._on_ready, self._deliver, self._is_stopping = on_ready, deliver, is_stopping

    def receive(self) -> None:
        """Receive messages until the connection fails or `is_stopping` returns True."""
        for _ in self.consume(limit=None):
            pass

    @property
    def should_stop(self) -> bool:
        """Return whether `consume` ends."""
        return self._is_stopping()

    @contextlib.contextmanager
    def establish_connection(self) -> Iterator[Connection]:
        """Use the existing connection; kombu would retry a second one for ever."""
        yield self.connection

    @contextlib.contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[Any]:
        """Consume without kombu's log of undecodable messages."""
        with self._without_log_of_undecodable(), super().consumer_context(**kwargs) as context:
            yield context

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        """Return consumers whose channel tolerates invalid messages."""
        if isinstance(channel, virtual.Channel):
            channel.Message = _tolerant_message(type(channel).Message)
        if hasattr(channel, "_receive_one"):
            channel._receive_one = partial(self._receive_one, channel._receive_one)
        return [consumer(queues=[self.queue], on_message=self._on_message, no_ack=True, accept=self.accept)]

    def on_consume_ready(self, connection: Connection, *args: Any, **kwargs: Any) -> None:
        """Wait for the subscription, then ask workers for heartbeats."""
        # On Redis, the first read subscribes; heartbeats sent before it are lost
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=0.01)
        self._on_ready()
        super().on_consume_ready(connection, *args, **kwargs)

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask all workers for a heartbeat, over this connection."""
        mailbox_of(self.app, self.connection).abcast("heartbeat")

    # Messages

    def _on_message(self, message: Message) -> None:
        self._deliver(decode_message, [message])

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Reject a message; event messages need no acknowledgement."""
        self._rejections.count(UNDECODABLE, f"{type(exc).__name__}: {exc}")

    def _receive_one(self, receive: Callable[[Any], Any], client: Any) -> Any:
        """Receive a message from Redis; reject invalid JSON, whose error would delay messages of the same read."""
        try:
            return receive(client)
        except (Empty, RecursionError):
            self._rejections.count(UNDECODABLE, "the message is not JSON, or too deeply nested")
            return None

    @contextlib.contextmanager
    def _without_log_of_undecodable(self) -> Iterator[None]:
        """Suppress kombu's log record, with traceback, for each message that is not JSON."""
        thread = threading.get_ident()

        def is_unrelated(record: logging.LogRecord) -> bool:
            return record.thread != thread or not record.msg.startswith("Cannot process event on channel")

        logger = logging.getLogger(_REDIS_LOGGER)
        logger.addFilter(is_unrelated)
        try:
            yield
        finally:
            logger.removeFilter(is_unrelated)


def rest(is_small: bool) -> None:
    """Rest after a small read, so that evenly spaced messages are passed on in batches, too."""
    if is_small:
        time.sleep(_REST)


@lru_cache
def _tolerant_message(kind: type[virtual.Message]) -> type[virtual.Message]:
    """Return a message class that accepts any envelope; decoding an invalid one raises the error."""

    class TolerantMessage(kind):
        def __init__(self, payload: Any, **kwargs: Any) -> None:
            try:
                super().__init__(payload, **kwargs)
            except Exception:
                super().__init__({"properties": {"delivery_tag": None}}, **kwargs)
                # kombu raises it when the message is decoded
                self.errors.append(sys.exc_info())

    return TolerantMessage
