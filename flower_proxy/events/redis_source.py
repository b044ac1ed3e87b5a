"""Reception of messages from Redis, without kombu's work for each of them."""

from __future__ import annotations

from typing import Any

from kombu import Message
from kombu.serialization import prepare_accept_content

from flower_proxy.events.decoding import EnvelopeDecoder
from flower_proxy.events.kombu_source import MAX_BATCH, READ_TIMEOUT, KombuSource, rest
from flower_proxy.events.output_buffer import OutputBuffer, OutputBufferFullError

# redis-py sends a PING at each read of an idle connection
_MAX_UNANSWERED = 5


class RedisSource(KombuSource):
    """Receives messages of the channel that kombu has subscribed to.

    kombu connects and subscribes, so that TLS, credentials, prefixes and Sentinel are its own.
    """

    name = "the Redis connection"

    def receive(self) -> None:
        """Receive messages until the connection fails or `is_stopping` returns True."""
        self._output = OutputBuffer(self.channel)
        with self.consumer_context() as (_, channel, _):
            accept = prepare_accept_content(self.accept)

            def message_of(envelope: Any) -> Message:
                message = channel.Message(envelope, channel=channel)
                message.accept = accept
                return message

            decode, subscription = EnvelopeDecoder(message_of), channel.subclient
            _silence(subscription.connection)
            while not self._is_stopping():
                try:
                    messages = self._read(subscription)
                except channel.connection_errors as error:
                    if self._output.was_nearly_full:
                        raise OutputBufferFullError from error
                    raise
                if messages:
                    self._deliver(decode, messages)
                    rest(len(messages) < MAX_BATCH)
                if len(messages) == MAX_BATCH:
                    self._output.sample()

    def _read(self, subscription: Any) -> list[bytes]:
        """Wait for messages for a second, and return those that have arrived.

        :raises Exception: the connection has failed.
        """
        messages: list[bytes] = []
        connection = subscription.connection
        if not connection.can_read(timeout=READ_TIMEOUT):
            subscription.check_health()
            if subscription.health_check_response_counter > _MAX_UNANSWERED:
                raise TimeoutError("Redis does not answer PING")
        while len(messages) < MAX_BATCH and connection.can_read(timeout=0):
            # The method of the subscription takes twice the time, and may reconnect without an error
            response = connection.read_response(push_request=True)
            kind = response[0]
            if kind == b"pmessage":
                if response[-1]:
                    messages.append(response[-1])
            elif kind == b"pong":
                subscription.health_check_response_counter = 0
        return messages


def _silence(connection: Any) -> None:
    """Prevent redis-py from formatting each message for its log, which takes 3 µs, even if nothing is logged."""
    # The public way, an argument of PubSub, fails where the server or redis-py speaks RESP2
    set_handler = getattr(connection._parser, "set_pubsub_push_handler", None)
    if set_handler is not None:
        set_handler(lambda message: message)
