"""Queue lengths of any broker that kombu can count (P4, P22)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery import Celery
from kombu import Connection

from flower_proxy.events.broker import connected

_NOT_FOUND = "404"


class Counted(NamedTuple):
    """What the broker tells of a queue. Transports other than amqp know of no consumers, and say 0."""

    messages: int
    consumers: int
    exists: bool = True


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
        return Counted(0, 0, exists=False) if missing else None
    return Counted(declared.message_count, declared.consumer_count)


class KombuQueues:
    """The queues of a broker for the Broker page.

    :param capp: the Celery application whose broker is asked.
    """

    def __init__(self, capp: Celery) -> None:
        self._capp = capp

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return ``{"name": ..., "messages": ...}`` for each queue that exists, as Flower's own brokers do."""
        return await asyncio.get_running_loop().run_in_executor(None, self._count, list(names))

    def _count(self, names: list[str]) -> list[dict[str, Any]]:
        with connected(self._capp) as connection:
            counted = {name: count(connection, name) for name in names}
        return [{"name": name, "messages": found.messages} for name, found in counted.items() if found and found.exists]
