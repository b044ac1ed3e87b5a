"""Decoding of messages."""

from __future__ import annotations

from kombu import Message


def decode_message(message: Message) -> object:
    """Decode a message as kombu's consumer does.

    :raises Exception: its content type is not accepted, or its body is invalid.
    """
    if message.errors:
        raise message.errors[0][1]
    return message.decode()
