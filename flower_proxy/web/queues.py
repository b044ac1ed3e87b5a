"""The queues of the Broker page and of ``/api/queues/length``."""

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
    """The queues of a broker, as Flower's handlers ask for them; the counts are those of ``/metrics``.

    :param capp: the Celery application whose broker it is.
    :param poller: counts the messages.
    :param broker_api: the URL of RabbitMQ's management API; None if there is none.
    """

    def __init__(self, capp: Celery, poller: BrokerPoller, *, broker_api: str | None) -> None:
        self._poller = poller
        self._api = ManagementApi(capp, broker_api) if broker_api else None

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Count the queues now.

        :param names: queues to count too.
        :returns: a row for each queue, by name; ``messages`` are those that wait, as in ``messages_ready``, and
            ``messages_unacknowledged`` and ``idle_since`` are there if the management API answers.
        :raises HTTPError: 503, the broker does not answer.
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
