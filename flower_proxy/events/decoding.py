"""Decoding of messages, with the results of kombu in a fraction of its time.

Fast ways exist for JSON in UTF-8, as Celery sends events. Whatever they do not know is decoded by kombu.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable
from typing import Any

from kombu import Message
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads as kombu_loads

try:
    import orjson
except ImportError:  # not installed with flower-proxy[fast]
    orjson = None  # type: ignore[assignment]

JSON = "application/json"
UTF_8 = "utf-8"

# kombu converts objects with this key. Escapes of ASCII letters, which may spell it, are unusual
_TYPED = "__type__"
_ESCAPED = re.compile(r"\\u00[2-7]")
_ESCAPES = "\\u00"
# orjson converts integers of more than 64 bits to floats
_MAX_DIGITS = 19
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_TOO_MANY_DIGITS = b"0" * (_MAX_DIGITS + 1)

# Its raw_decode does not look for white space at both ends
_decoder = json.JSONDecoder()

_BODY = b'{"body": "'
_TAG = b'"delivery_tag": "'
_END = b'"}}'
_TAG_BEGIN, _TAG_END = -len(_END) - len("00000000-0000-0000-0000-000000000000"), -len(_END)
_TAG_CHARACTERS = b"0123456789abcdef-"
_MAX_ENVELOPES = 10_000


def decode_message(message: Message) -> object:
    """Decode a message as kombu's consumer does.

    :raises Exception: its content type is not accepted, or its body is invalid.
    """
    if message.errors:
        raise message.errors[0][1]
    return message.decode()


def decode_with_json(body: bytes | str) -> object:
    """Decode JSON with the standard library.

    :raises Exception: the body is invalid.
    """
    text = body if isinstance(body, str) else body.decode()
    if _TYPED in text or (_ESCAPES in text and _ESCAPED.search(text)):
        return kombu_loads(text)
    if text.startswith(("{", "[")):
        decoded, end = _decoder.raw_decode(text)
        if end == len(text):
            return decoded
    return json.loads(text)


def decode_with_orjson(body: bytes | str) -> object:
    """Decode JSON with orjson; what that does not accept, such as NaN, with the standard library.

    :raises Exception: the body is invalid.
    """
    data = body.encode() if isinstance(body, str) else body
    if b"\\u00" in data or b"__type__" in data or _TOO_MANY_DIGITS in data.translate(_DIGITS):
        return decode_with_json(body)
    try:
        decoded: object = orjson.loads(data)
    except ValueError:
        return decode_with_json(body)
    return decoded


decode_json: Callable[[bytes | str], object] = decode_with_json if orjson is None else decode_with_orjson
"""Decodes JSON as kombu does, with orjson if it is installed."""


class EnvelopeDecoder:
    """Decodes messages in the envelopes in which kombu sends them through brokers without properties, such as Redis.

    An envelope is a JSON object, whose first field is the body in base64 and whose last one is a unique tag. The text
    between them is the same for all events of a sender and kind, so it is parsed once.

    :param message: creates a message from a decoded envelope.
    """

    def __init__(self, message: Callable[[Any], Message]) -> None:
        self._message = message
        self._known: set[bytes] = set()

    def __call__(self, envelope: bytes) -> object:
        """Decode a message.

        :raises Exception: the envelope or the body is invalid.
        """
        end = envelope.find(b'"', len(_BODY))
        between = envelope[end:_TAG_BEGIN]
        is_plain = (
            envelope.startswith(_BODY)
            and envelope.endswith(_END)
            and not envelope[_TAG_BEGIN:_TAG_END].translate(None, _TAG_CHARACTERS)
        )
        if is_plain and between in self._known:
            encoded = envelope[len(_BODY) : end]
            body = binascii.a2b_base64(encoded)
            # base64 ignores invalid characters, some of which are errors in JSON
            if 4 * len(body) == 3 * len(encoded) - 4 * encoded.count(b"=", -2):
                try:
                    return decode_json(body)
                except ValueError:
                    pass
        message = self._message(kombu_loads(bytes_to_str(envelope)))
        if is_plain and _is_usual(message, between):
            if len(self._known) >= _MAX_ENVELOPES:
                self._known.clear()
            self._known.add(between)
        return decode_message(message)


def _is_usual(message: Message, between: bytes) -> bool:
    return (
        between.endswith(_TAG)
        and b"\\" not in between
        and b'"body"' not in between
        and not message.errors
        and message.content_type == JSON
        and message.content_encoding == UTF_8
        and "compression" not in message.headers
        and message.properties.get("body_encoding") == "base64"
    )
