"""Invalid messages neither close the connection to the broker nor delay valid events."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from amqp.basic_message import Message
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from redis import Redis

from flower_proxy.events.buffer import Decode, Raw
from flower_proxy.events.kombu_source import KombuSource
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.validation import REASONS
from tests.support import programs
from tests.support.events import BASE, EVENTS, HOSTILE, messages, values
from tests.support.outage import interruptible
from tests.support.processes import request, wait_until

PAGES = ("/workers?json=1", "/tasks", "/api/workers", "/api/tasks", "/broker", "/-/check", "/ready", "/metrics")
GOOD_PER_BAD = 20
ROUTING_KEY = "worker.heartbeat"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


class Sent(NamedTuple):
    """Message to publish."""

    body: bytes
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    headers: dict[str, Any] = {}  # noqa: RUF012


def as_body(value: Any) -> Sent:
    return Sent(json.dumps(value).encode())


HEARTBEAT = next(event for event in EVENTS if event["type"] == "worker-heartbeat")
BAD = (
    *map(as_body, (None, 5, "x", [], [None, [HEARTBEAT]], {}, {"type": "worker-heartbeat"})),
    *(
        as_body({**HEARTBEAT, name: value})
        for name in ("hostname", "freq", "clock", "active", "heartbeats", "expire_window", "event", "type")
        for value in ("\ud800", "x" * 100_000, float("nan"))
    ),
    *(as_body({**event, "type": value, "clock": value}) for event in EVENTS for value in HOSTILE[:4]),
    Sent(b""),
    Sent(b"{"),
    Sent(b"\xff\xfe"),
    Sent(b"[" * 100_000),
    Sent(b"1" * 10_000),
    Sent(pickle.dumps(Harmful()), "application/x-python-serialize", "binary"),
    Sent(b"{}", content_type="application/unknown"),
    Sent(b"{}", content_encoding="unknown"),
    Sent(zlib.compress(b"null"), headers={"compression": "application/x-gzip"}),
    Sent(b"not compressed", headers={"compression": "application/x-gzip"}),
    Sent(b"{}", headers={"compression": "unknown"}),
)
_ENVELOPE = {
    "body": base64.b64encode(json.dumps(HEARTBEAT).encode()).decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {},
    "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {}},
}
BAD_ENVELOPES = (
    *(b"", b"null", b"5", b'"x"', b"[]", b"{}", b"{", b"\xff\xfe", b"[" * 100_000),
    *(
        json.dumps({**_ENVELOPE, name: value}).encode()
        for name in ("body", "headers", "properties", "content-encoding")
        for value in ("x", 5, [1])
    ),
    *(
        json.dumps({**_ENVELOPE, "properties": {**_ENVELOPE["properties"], name: value}}).encode()  # type: ignore[dict-item]
        for name, value in (("body_encoding", "x"), ("body_encoding", 5))
    ),
    json.dumps({name: value for name, value in _ENVELOPE.items() if name != "body"}).encode(),
    json.dumps({name: value for name, value in _ENVELOPE.items() if name != "properties"}).encode(),
)
"""Messages with invalid envelopes, which Redis forwards unchanged; in AMQP the broker writes the envelope."""


class RedisPublisher:
    """Publishes to a Redis broker without kombu."""

    bad: tuple[Sent | bytes, ...] = (*BAD, *BAD_ENVELOPES)

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url)

    def publish(self, sent: Sent | bytes) -> None:
        if isinstance(sent, Sent):
            envelope = {
                **_ENVELOPE,
                "body": base64.b64encode(sent.body).decode(),
                "content-type": sent.content_type,
                "content-encoding": sent.content_encoding,
                "headers": sent.headers,
            }
            sent = json.dumps(envelope).encode()
        assert self._client.publish(f"/0.celeryev/{ROUTING_KEY}", sent) == 1

    def close(self) -> None:
        self._client.close()


class AmqpPublisher:
    """Publishes to RabbitMQ without kombu's serialization."""

    bad: tuple[Sent | bytes, ...] = BAD

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        self._channel = self._connection.default_channel

    def publish(self, sent: Sent | bytes) -> None:
        assert isinstance(sent, Sent)
        message = Message(
            sent.body,
            content_type=sent.content_type,
            content_encoding=sent.content_encoding,
            application_headers=sent.headers,
        )
        self._channel.basic_publish(message, exchange="celeryev", routing_key=ROUTING_KEY)

    def close(self) -> None:
        self._connection.close()


Publisher = RedisPublisher | AmqpPublisher


class Watched(NamedTuple):
    flower: programs.Flower
    publisher: Publisher
    log: Path


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A flower-proxy connected to a real broker, and a publisher."""
    folder = tmp_path_factory.mktemp(request.param)
    with interruptible(request.param, folder) as server, programs.launch("ours", server.broker, folder) as flower:
        wait_until(lambda: value_of(flower, "flower_proxy_broker_connected") == 1, what="it is subscribed to events")
        publisher = RedisPublisher(server.broker.url) if request.param == "redis" else AmqpPublisher(server.broker.url)
        yield Watched(flower, publisher, folder / "flower.log")
        publisher.close()


def value_of(flower: programs.Flower, name: str, **labels: str) -> float:
    """Return the sum of all samples with this name and these labels."""
    samples = (sample for metric in flower.metrics() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def received_by(flower: programs.Flower, worker: str) -> float:
    return value_of(flower, "flower_events_total", worker=worker, type="task-received")


def good_event(worker: str, number: int) -> Sent:
    return as_body(
        {**BASE, "type": "task-received", "hostname": worker, "uuid": f"{worker}-{number}", "name": "tasks.add"}
    )


def statuses(flower: programs.Flower) -> dict[str, int]:
    return {page: request(flower.address, page, headers=programs.KNOWN).status for page in PAGES}


def test_invalid_messages_do_not_affect_valid_events_or_pages(watched: Watched) -> None:
    flower, publisher, log = watched
    wait_until(lambda: set(statuses(flower).values()) == {200}, what="all pages answer")
    for number, bad in enumerate(publisher.bad):
        publisher.publish(bad)
        for good in range(GOOD_PER_BAD):
            publisher.publish(good_event("good@host", number * GOOD_PER_BAD + good))
    expected = len(publisher.bad) * GOOD_PER_BAD
    wait_until(lambda: received_by(flower, "good@host") == expected, what="all valid events are counted")
    assert value_of(flower, "flower_proxy_event_reconnects_total") == 0
    assert value_of(flower, "flower_proxy_events_rejected_total", reason="undecodable") >= 5
    assert value_of(flower, "flower_proxy_events_rejected_total", reason="processing_failed") == 0
    assert set(statuses(flower).values()) == {200}
    printed = log.read_text()
    assert "Traceback" not in printed
    assert "executed" not in printed
    # The test takes less than a minute, the interval of the log
    assert printed.count("Rejected an event (wrong_type)") == 1


# In one process


def test_invalid_envelopes_do_not_close_the_connection() -> None:
    received: list[object] = []

    def decode(function: Decode, messages: Sequence[Raw]) -> None:
        for message in messages:
            with contextlib.suppress(Exception):
                received.append(function(message))

    envelopes = st.dictionaries(st.sampled_from(list(_ENVELOPE)), values(), max_size=5).map(
        lambda changed: {**_ENVELOPE, **changed}
    )
    bodies = messages().map(lambda body: {**_ENVELOPE, "body": base64.b64encode(json.dumps(body).encode()).decode()})

    with (
        Connection("memory://") as connection,
        Celery(broker="memory://") as capp,
        KombuSource(
            connection,
            capp,
            rejections=Rejections("an event", REASONS),
            on_ready=lambda: None,
            deliver=decode,
            is_stopping=lambda: False,
        ).consumer_context(wakeup=False) as (_, channel, (consumer,)),
    ):
        queue = consumer.queues[0].name

        def send(envelope: Any) -> None:
            channel._put(queue, json.loads(json.dumps(envelope)))
            connection.drain_events(timeout=1)

        @given(envelope=envelopes | bodies | values())
        def check(envelope: Any) -> None:
            send(envelope)
            received.clear()
            send(_ENVELOPE)
            assert received == [HEARTBEAT]

        check()
