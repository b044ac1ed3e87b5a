"""Reading of events from a connection to the broker."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from queue import Empty
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from kombu import Connection
from kombu.transport import virtual

from flower_proxy.events.broker import mailbox_of
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.validation import UNDECODABLE, InvalidEventError, validate

_LOGGER_OF_REDIS = "kombu.transport.redis"


class Stream(EventReceiver):
    """Consumes events over one connection, in the thread that calls `consume`, until that fails or it is to stop.

    Invalid messages and events are rejected; none of them ends the connection.

    :param connection: to the broker.
    :param capp: the Celery application.
    :param rejections: counts what is rejected.
    :param on_ready: called when events can arrive.
    :param on_event: called with each valid event.
    :param is_stopping: called at least once a second, returns whether to stop.
    """

    def __init__(
        self,
        connection: Connection,
        capp: Celery,
        *,
        rejections: Rejections,
        on_ready: Callable[[], None],
        on_event: Callable[[dict[str, Any]], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        super().__init__(connection, app=capp)
        self._rejections = rejections
        self._on_ready, self._on_event, self._is_stopping = on_ready, on_event, is_stopping

    @property
    def should_stop(self) -> bool:
        return self._is_stopping()

    @contextlib.contextmanager
    def establish_connection(self) -> Iterator[Connection]:
        # In place of a second connection, which would be tried for ever
        yield self.connection

    @contextlib.contextmanager
    def consumer_context(self, **kwargs: Any) -> Iterator[Any]:
        with self._without_log_of_undecodable(), super().consumer_context(**kwargs) as context:
            yield context

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        if isinstance(channel, virtual.Channel):
            channel.Message = _tolerant(type(channel).Message)
        if hasattr(channel, "_receive_one"):
            channel._receive_one = partial(self._receive_one, channel._receive_one)
        return list(super().get_consumers(consumer, channel))

    def on_consume_ready(self, connection: Connection, *args: Any, **kwargs: Any) -> None:
        # Redis subscribes when it first looks for messages; the heartbeats asked for next would be missed
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=0.01)
        self._on_ready()
        super().on_consume_ready(connection, *args, **kwargs)

    def wakeup_workers(self, channel: Any = None) -> None:
        mailbox_of(self.app, self.connection).abcast("heartbeat")

    # Messages

    def _receive(self, body: object, message: Any = None) -> None:
        for part in body if type(body) is list else [body]:
            try:
                event = validate(part)
            except InvalidEventError as error:
                self._rejections.count(error.reason, str(error))
            else:
                # Timestamps are in seconds since the epoch in every time zone, and need no shift by the utcoffset
                self._on_event(self.event_from_message(event, localize=False)[1])

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        # Nothing is acknowledged here, and kombu would log each
        self._rejections.count(UNDECODABLE, f"{type(exc).__name__}: {exc}")

    def _receive_one(self, receive: Callable[[Any], Any], client: Any) -> Any:
        """Receive a message from Redis; one that is no JSON must not keep those waiting that are read with it."""
        try:
            return receive(client)
        except (Empty, RecursionError):
            self._rejections.count(UNDECODABLE, "the message is not JSON, or nested too deeply")
            return None

    @contextlib.contextmanager
    def _without_log_of_undecodable(self) -> Iterator[None]:
        """Keep kombu from logging each message that is no JSON, with a traceback."""
        thread = threading.get_ident()

        def is_about_another(record: logging.LogRecord) -> bool:
            return record.thread != thread or not record.msg.startswith("Cannot process event on channel")

        logger = logging.getLogger(_LOGGER_OF_REDIS)
        logger.addFilter(is_about_another)
        try:
            yield
        finally:
            logger.removeFilter(is_about_another)


@lru_cache
def _tolerant(kind: type[virtual.Message]) -> type[virtual.Message]:
    """Return a class of messages that takes any envelope; an invalid one cannot be decoded."""

    class Tolerant(kind):
        def __init__(self, payload: Any, **kwargs: Any) -> None:
            try:
                super().__init__(payload, **kwargs)
            except Exception:
                super().__init__({"properties": {"delivery_tag": None}}, **kwargs)
                # Raised when the message is decoded
                self.errors.append(sys.exc_info())

    return Tolerant
