"""Reception of messages over AMQP, without kombu's work for each of them."""

from __future__ import annotations

import select
from typing import Any

from kombu.serialization import prepare_accept_content

from flower_proxy.events.decoding import JSON, UTF_8, decode_json, decode_message
from flower_proxy.events.kombu_source import MAX_BATCH, READ_TIMEOUT, KombuSource, rest


class AmqpSource(KombuSource):
    """Receives messages from py-amqp's channel.

    kombu connects and declares the queue, so that TLS, credentials and virtual hosts are its own.
    """

    name = "the AMQP connection"

    def receive(self) -> None:
        """Receive messages until the connection fails or `is_stopping` returns True."""
        self._messages: list[bytes | str] = []
        self._accept = prepare_accept_content(self.accept)
        connection, channel = self.connection, self.channel
        queue = self.queue(channel)
        queue.declare()
        channel.basic_consume(queue.name, no_ack=True, callback=self._on_delivery)
        self.on_consume_ready(connection, channel, [])
        sock = connection.connection.sock
        readable = select.poll()
        readable.register(sock, select.POLLIN)
        while not self._is_stopping():
            count, timeout = 0, READ_TIMEOUT
            # A timeout of py-amqp costs several system calls for each message
            while count < MAX_BATCH and (_is_pending(sock) or readable.poll(timeout * 1000)):
                connection.drain_events()
                count, timeout = count + 1, 0
            connection.heartbeat_check()
            self._flush()
            rest(0 < count < MAX_BATCH)

    def _on_delivery(self, delivery: Any) -> None:
        properties, body = delivery.properties, delivery.body
        if (
            body
            and properties.get("content_type") == JSON
            and properties.get("content_encoding") == UTF_8
            and "compression" not in (properties.get("application_headers") or {})
        ):
            self._messages.append(body)
            return
        self._flush()
        message = self.channel.message_to_python(delivery)
        message.accept = self._accept
        self._deliver(decode_message, [message])

    def _flush(self) -> None:
        if self._messages:
            self._deliver(decode_json, self._messages)
            self._messages = []


def _is_pending(sock: Any) -> bool:
    """Return whether a TLS socket has decrypted data that poll does not know of."""
    return hasattr(sock, "pending") and sock.pending() > 0
