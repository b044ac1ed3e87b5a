"""The queues on the Broker page and at ``/api/queues/length``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from celery import Celery
from tornado.web import HTTPError

from flower_proxy.events.management_api import ManagementApi
from flower_proxy.metrics.broker_poller import BrokerPoller


class BrokerQueues:
    """The queues of a broker, with the interface that Flower's handlers expect and the counts of ``/metrics``.

    :param capp: the Celery application.
    :param poller: counts the messages.
    :param broker_api: the URL of RabbitMQ's management API; None without one.
    """

    def __init__(self, capp: Celery, poller: BrokerPoller, *, broker_api: str | None) -> None:
        self._poller = poller
        self._api = ManagementApi(capp, broker_api) if broker_api else None

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Count the messages in the queues now.

        :param names: additional queues.
        :returns: one row per queue, sorted by name; ``messages`` equals ``messages_ready``;
            ``messages_unacknowledged`` and ``idle_since`` are present if the management API responds.
        :raises HTTPError: 503, the broker does not respond.
        """
        figures, details = await asyncio.gather(self._poller.refresh(names), self._details())
        if problem := self._poller.problem:
            raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, problem)
        return [
            {
                **details.get(name, {}),
                "name": name,
                "messages": messages,
                "messages_ready": messages,
                "consumers": figures.consumers[name],
            }
            for name, messages in sorted(figures.lengths.items())
        ]

    async def _details(self) -> dict[str, dict[str, Any]]:
        return await self._api.details() if self._api else {}
