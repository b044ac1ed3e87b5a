"""Client of RabbitMQ's management API, for queue details that AMQP does not provide."""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from celery import Celery
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

logger = logging.getLogger(__name__)

_COLUMNS = {"messages_unacknowledged": int, "idle_since": str}
_CONNECT_TIMEOUT = 1.0  # seconds
_REQUEST_TIMEOUT = 2.0  # seconds
_NO_RESPONSE = 599  # Tornado's code


class ManagementApi:
    """Client of RabbitMQ's management API.

    :param capp: the Celery application whose broker is queried.
    :param url: URL of the API; without a user name, the broker's credentials are used.
    """

    def __init__(self, capp: Celery, url: str) -> None:
        self._capp, self._url = capp, url
        self._problem: str | None = None

    async def details(self) -> dict[str, dict[str, Any]]:
        """Return ``messages_unacknowledged`` and ``idle_since`` of the queues that have them, by queue.

        :returns: an empty dict for brokers other than RabbitMQ, and while the API fails; the cause is logged once.
        """
        with self._capp.connection_for_write() as connection:
            if connection.transport.driver_type != "amqp":
                return {}
            user, password, vhost = connection.userid, connection.password, connection.virtual_host
        request = _request(self._url, user=user, password=password, vhost=vhost, tls=self._capp.conf.broker_use_ssl)
        client = AsyncHTTPClient(force_instance=True)
        try:
            found = _parse((await client.fetch(request)).body)
            self._problem = None
        except Exception as error:
            found, problem = {}, _problem_of(error)
            if problem != self._problem:
                logger.warning(
                    "--broker_api failed (%s); unacknowledged messages and idle times are not shown", problem
                )
            self._problem = problem
        finally:
            client.close()
        return found


def _request(
    url: str, *, user: str | None, password: str | None, vhost: str | None, tls: Mapping[str, Any] | bool | None
) -> HTTPRequest:
    parts = urlsplit(url)
    if parts.username:
        user, password = unquote(parts.username), unquote(parts.password or "")
    # Flower replaces the last path segment, so URLs that end with a virtual host are in use
    named = re.match(r".*/api(?=/|$)", parts.path)
    root = named.group() if named else parts.path.rstrip("/") or "/api"
    host = parts.netloc.rpartition("@")[2]
    options = tls if isinstance(tls, Mapping) else {}
    return HTTPRequest(
        f"{parts.scheme}://{host}{root}/queues/{quote(vhost or '/', safe='')}?columns=name,{','.join(_COLUMNS)}",
        auth_username=user or "guest",
        auth_password=password or "guest",
        connect_timeout=_CONNECT_TIMEOUT,
        request_timeout=_REQUEST_TIMEOUT,
        follow_redirects=False,
        # py-amqp's option names, then Flower's
        validate_cert=options.get("cert_reqs", options.get("ssl_cert_reqs")) != ssl.CERT_NONE,
        ca_certs=options.get("ca_certs", options.get("ssl_ca_certs")),
    )


def _parse(body: bytes) -> dict[str, dict[str, Any]]:
    return {
        queue["name"]: {name: queue[name] for name, type_ in _COLUMNS.items() if isinstance(queue.get(name), type_)}
        for queue in json.loads(body)
    }


def _problem_of(error: Exception) -> str:
    """Return the cause of an API error, without any part of the URL."""
    if isinstance(error, HTTPClientError):
        return "no response" if error.code == _NO_RESPONSE else f"status {error.code}"
    if isinstance(error, ssl.SSLError):
        return "TLS error"
    return "connection failed" if isinstance(error, OSError) else "response is not a list of queues"
