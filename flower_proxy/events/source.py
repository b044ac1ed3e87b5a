"""Selection of the source of events that fits a connection to the broker."""

from __future__ import annotations

from kombu import Connection

from flower_proxy.events.amqp_source import AmqpSource
from flower_proxy.events.kombu_source import KombuSource
from flower_proxy.events.redis_source import RedisSource

# By transport driver
_SOURCES: dict[str, type[KombuSource]] = {"redis": RedisSource, "py-amqp": AmqpSource}


def source_for(connection: Connection) -> type[KombuSource]:
    """Return the source for a connection: a fast one for the usual brokers, else kombu's consumer."""
    if connection.transport_options.get("sentinel_fanout_compat"):
        # Messages arrive twice, and kombu drops the duplicates
        return KombuSource
    return _SOURCES.get(connection.transport.driver_name, KombuSource)
