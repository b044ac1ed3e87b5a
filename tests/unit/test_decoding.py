"""Decoding of messages: the fast ways agree with kombu."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection, Message
from kombu.serialization import loads
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads as loads_json

from flower_proxy.events import decoding
from flower_proxy.events.decoding import EnvelopeDecoder, decode_json, decode_with_json, decode_with_orjson
from tests.support.events import EVENTS, messages

JSON = "application/json"
CHANNEL = Connection("memory://").default_channel
HEARTBEAT = json.dumps(EVENTS[1]).encode()


def outcome(function: Callable[..., object], *args: Any) -> str:
    """Return the representation of the result; "error" for an exception."""
    try:
        return repr(function(*args))
    except Exception:
        return "error"


def by_kombu(body: bytes | str) -> object:
    return loads(body, JSON, "utf-8", accept={JSON})


SPECIAL = (
    b"NaN",
    b'{"a": [Infinity, -Infinity]}',
    b'{"a": 1, "b": 2, "a": 3}',
    b'{"a": 18446744073709551615, "b": 18446744073709551616, "c": -9223372036854775809}',
    b"[99999999999999999999999, 0.12345678901234567890123, 1e400, -1e400, 1E5]",
    b"[-0, 0, -0.0, 1.0, 1e2, 12345678901234567890e-5]",
    b'"\\ud800"',
    b'{"\\ud800": "\\udc00\\ud800"}',
    b'"\\ud83d\\ude00"',
    b'"\xff\xfe"',
    b'{"a": "\xff"}',
    b'\xef\xbb\xbf{"a": 1}',
    '{"a": 1}'.encode("utf-16"),
    b'{"__type__": "decimal", "__value__": "1.5"}',
    b'{"a": {"__type__": "datetime", "__value__": "2026-11-27T12:00:00"}}',
    b'{"\\u005f_type__": "decimal", "__value__": "1.5"}',
    b'{"__\\u0074ype__": "bytes", "__value__": "x"}',
    b'{"__type__": "unknown", "__value__": 1}',
    b'{"__type__": "decimal", "__value__": "x"}',
    b'"a\nb"',
    b'"a\x00b"',
    b"01",
    b"1.",
    b"[1,]",
    b"{'a': 1}",
    b'{"a": 1} x',
    b" \t\r\n1 ",
    b"\x0b1",
    b"[" * 900 + b"]" * 900,
    b"[" * 2000 + b"]" * 2000,
    b"[" * 200_000,
    b"1" * 10_000,
    b"nul",
    b'"caf\xc3\xa9 \\u00e9"',
)


@pytest.mark.parametrize("decode", [decode_with_json, decode_with_orjson])
@pytest.mark.parametrize("body", SPECIAL, ids=lambda body: repr(body[:30]))
def test_unusual_json_is_decoded_as_by_kombu(body: bytes, decode: Callable[[Any], object]) -> None:
    assert outcome(decode, body) == outcome(by_kombu, body)


PIECES = st.sampled_from(
    [*(piece.decode(errors="surrogateescape") for piece in SPECIAL if len(piece) < 100), '"', "\\", "{", "}", "[", ","]
)


@given(body=messages().map(lambda body: json.dumps(body).encode()) | st.binary() | st.lists(PIECES).map(" ".join))
def test_any_json_is_decoded_as_by_kombu(body: bytes | str) -> None:
    data = body if isinstance(body, bytes) else body.encode(errors="surrogateescape")
    # kombu does not decode an empty body
    if data:
        expected = outcome(by_kombu, data)
        assert outcome(decode_with_json, data) == expected
        assert outcome(decode_with_orjson, data) == expected


def test_orjson_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_json is decode_with_orjson
    used: list[bytes] = []
    monkeypatch.setattr(orjson, "loads", lambda data: used.append(data))
    assert decoding.decode_json(HEARTBEAT) is None
    assert used == [HEARTBEAT]


# Envelopes


def message_of(payload: Any) -> Message:
    return virtual.Message(payload, channel=CHANNEL, accept={JSON})


def envelope(body: bytes, tag: str = "", **changes: Any) -> dict[str, Any]:
    """Return the envelope of a message, as kombu writes it."""
    properties = {
        "delivery_mode": 1,
        "delivery_info": {"exchange": "celeryev", "routing_key": "worker.heartbeat"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag or str(uuid4()),
    }
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": JSON,
        "headers": {"hostname": "w1@host"},
        "properties": properties,
        **changes,
    }


def envelope_by_kombu(data: bytes) -> object:
    message = message_of(loads_json(bytes_to_str(data)))
    if message.errors:
        raise message.errors[0][1]
    return message.decode()


def new_decoder() -> EnvelopeDecoder:
    """Return a decoder that knows the envelope of heartbeats."""
    decoder = EnvelopeDecoder(message_of)
    assert decoder(json.dumps(envelope(HEARTBEAT)).encode()) == EVENTS[1]
    return decoder


def test_known_envelopes_are_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder()
    monkeypatch.setattr(decoder, "_message", None)
    for event in EVENTS:
        assert decoder(json.dumps(envelope(json.dumps(event).encode())).encode()) == event


def test_envelopes_of_kombu_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way depends on the order of the fields."""
    sent: list[bytes] = []
    monkeypatch.setattr(CHANNEL, "_put", lambda queue, message, **_: sent.append(json.dumps(message).encode()))
    for number in range(2):
        message = CHANNEL.prepare_message(HEARTBEAT.decode(), content_type=JSON, content_encoding="utf-8")
        CHANNEL.basic_publish(message, exchange="", routing_key=f"queue-{number - number}")
    decoder = EnvelopeDecoder(message_of)
    assert decoder(sent[0]) == EVENTS[1]
    monkeypatch.setattr(decoder, "_message", None)
    assert decoder(sent[1]) == EVENTS[1]


def changed_envelopes() -> st.SearchStrategy[bytes]:
    bodies = st.sampled_from([HEARTBEAT, b"", b"{", b"null", b"\xff", b'"\xff"', b"[" * 5000, zlib.compress(b"{}")])
    changes: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
        st.sampled_from(["body", "content-encoding", "content-type", "headers", "properties"]),
        st.sampled_from(
            ["x", "", None, 5, [], {}, {"compression": "gzip"}, {"delivery_tag": "1"}, "application/x-yaml"]
        ),
        max_size=2,
    )
    tags = st.sampled_from(["", "1", "x" * 36, '"' * 36, "ä" * 18, "a" * 36])
    return st.builds(
        lambda body, tag, changed: json.dumps({**envelope(body, tag), **changed}).encode(), bodies, tags, changes
    )


TEXT = st.sampled_from([b'"', b"\\", b"\n", b"=", b"==", b"\xff", b"\xc3\xa4", b"}", b'", "body": "', b" ", b"A", b""])


@given(data=changed_envelopes(), position=st.integers(0, 900), inserted=TEXT, removed=st.integers(0, 3))
def test_any_envelope_is_decoded_as_by_kombu(data: bytes, position: int, inserted: bytes, removed: int) -> None:
    decoder = new_decoder()
    for tried in (data, data[:position] + inserted + data[position + removed :]):
        # The second time, its envelope may be known
        for _ in range(2):
            assert outcome(decoder, tried) == outcome(envelope_by_kombu, tried)


def test_the_number_of_known_envelopes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_MAX_ENVELOPES", 3)
    decoder = new_decoder()
    for number in range(20):
        decoder(json.dumps(envelope(HEARTBEAT, headers={"hostname": f"w{number}@host"})).encode())
    assert len(decoder._known) <= 3
