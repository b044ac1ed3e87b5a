"""Generator of task events at a constant rate: ``python -m tests.bench.generator``.

All messages exist before the first one is sent, and whole blocks of them are written to the socket, so that the
generator takes little of the CPU time that the measured server shares with it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from celery import Celery
from celery.events import EventDispatcher
from celery.events.event import get_exchange
from kombu import Connection
from redis import Redis

WORKERS, NAMES = 10, 20
STEPS = ("task-received", "task-started", "task-succeeded")
WARM_UP = "warm-up"


@dataclass(frozen=True)
class Flood:
    """A number of events at a constant rate.

    :ivar rate: events per second; 0 sends as fast as possible.
    :ivar events: number of events: three for each task.
    :ivar burst: number of events that are sent at once, without a pause.
    :ivar batch: number of events per message.
    :ivar result: length of each task's result.
    """

    rate: float
    events: int
    burst: int = 300
    batch: int = 1
    result: int = 20

    def scaled(self, scale: float) -> Flood:
        """Return a shorter flood at the same rate."""
        size = len(STEPS) * self.batch
        return replace(self, events=max(size, int(self.events * scale) // size * size))

    def messages(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the events of each message."""
        message = []
        for number in range(self.events):
            message.append(self._event(number))
            if len(message) == self.batch:
                yield message
                message = []

    def _event(self, number: int) -> dict[str, Any]:
        task, step = divmod(number, len(STEPS))
        uuid = f"{task * 0x9E3779B97F4A7C15 % 2**64:016x}-{task:016x}"
        event = {
            "type": STEPS[step],
            "uuid": uuid,
            "hostname": f"worker{task % WORKERS}@host{task % WORKERS}.example.com",
            "timestamp": time.time(),
            "clock": number + 1,
            "pid": 4711,
            "utcoffset": 0,
        }
        if step == 0:
            event |= {
                "name": f"shop.orders.tasks.task_{task % NAMES}",
                "args": f"({task}, 2)",
                "kwargs": "{'user': 77}",
            }
            event |= {"root_id": uuid, "parent_id": None, "retries": 0, "eta": None, "expires": None}
        elif step == 2:
            event |= {"result": f"'{'x' * self.result}'", "runtime": task % 97 / 1000}
        return event


class Sender(Protocol):
    """Connection to a broker that sends blocks of encoded messages."""

    def encode(self, events: Sequence[dict[str, Any]]) -> bytes:
        """Return a message as it is sent to the broker."""

    def send(self, block: bytes) -> None:
        """Send encoded messages."""

    def wait(self) -> None:
        """Wait until the broker has processed everything."""


class RedisSender:
    """Sends messages to Redis; kombu determines the channel and the envelope."""

    def __init__(self, capp: Celery, url: str) -> None:
        self._envelopes: dict[str, tuple[bytes, bytes, bytes]] = {}
        with contextlib.closing(Redis.from_url(url)) as client, client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.psubscribe("*")
            subscription.get_message(timeout=10)
            for kind in (*STEPS, "task-multi"):
                self._envelopes[kind] = self._capture(capp, subscription, kind)
            options = client.connection_pool.connection_kwargs
        self._socket = socket.create_connection((options["host"], options["port"]), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Redis sends no reply to each message then
        self.send(_resp(b"CLIENT", b"REPLY", b"OFF"))

    def _capture(self, capp: Celery, subscription: Any, kind: str) -> tuple[bytes, bytes, bytes]:
        """Send an event with kombu; return its channel, and the envelope before and after the body."""
        with capp.connection() as connection, EventDispatcher(connection, app=capp, enabled=True) as dispatcher:
            fields = {"uuid": WARM_UP, "name": WARM_UP, "type": kind}
            dispatcher._publish(fields, dispatcher.producer, kind.replace("-", "."))
        while True:
            message = subscription.get_message(ignore_subscribe_messages=True, timeout=10)
            if message is None:
                raise RuntimeError(f"{kind}: Redis sends no such message")
            if message["channel"].decode().endswith(kind.replace("-", ".")):
                envelope = {**json.loads(message["data"]), "body": "BODY"}
                before, _, after = json.dumps(envelope).partition("BODY")
                return message["channel"], before.encode(), after.encode()

    def encode(self, events: Sequence[dict[str, Any]]) -> bytes:
        channel, before, after = self._envelopes[events[0]["type"] if len(events) == 1 else "task-multi"]
        body = base64.b64encode(json.dumps(events[0] if len(events) == 1 else list(events)).encode())
        return _resp(b"PUBLISH", channel, before + body + after)

    def send(self, block: bytes) -> None:
        self._socket.sendall(block)

    def wait(self) -> None:
        self.send(_resp(b"CLIENT", b"REPLY", b"ON"))
        self._socket.recv(100)


def _resp(*parts: bytes) -> bytes:
    """Return a command in the protocol of Redis."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class AmqpSender:
    """Sends messages to RabbitMQ; py-amqp encodes the frames."""

    def __init__(self, capp: Celery, url: str) -> None:
        self._connection = Connection(url)
        self._channel = self._connection.default_channel
        self._transport = self._channel.connection.transport
        exchange = get_exchange(self._connection, capp.conf.event_exchange)(self._channel)
        exchange.declare()
        self._exchange = exchange.name
        self._frames: list[bytes] = []
        # py-amqp reuses its buffer
        self._write, self._transport._write = self._transport._write, lambda data: self._frames.append(bytes(data))

    def encode(self, events: Sequence[dict[str, Any]]) -> bytes:
        message = self._channel.prepare_message(
            json.dumps(events[0] if len(events) == 1 else list(events)),
            content_type="application/json",
            content_encoding="utf-8",
            properties={"delivery_mode": 1},
        )
        kind = events[0]["type"] if len(events) == 1 else "task-multi"
        self._channel.basic_publish(message, exchange=self._exchange, routing_key=kind.replace("-", "."))
        block, self._frames[:] = b"".join(self._frames), []
        return block

    def send(self, block: bytes) -> None:
        self._write(block)

    def wait(self) -> None:
        self._transport._write = self._write
        # The broker answers after it has read the messages of the channel
        self._channel.queue_delete(self._channel.queue_declare(exclusive=True).queue)


def connected(url: str) -> Sender:
    capp = Celery(broker=url)
    make: Callable[[Celery, str], Sender] = RedisSender if url.startswith("redis:") else AmqpSender
    return make(capp, url)


def send(sender: Sender, blocks: Sequence[bytes], interval: float) -> float:
    """Send one block per interval.

    :param interval: seconds.
    :returns: the duration in seconds.
    """
    pause, begin = threading.Event(), time.perf_counter()
    for number, block in enumerate(blocks):
        early = begin + number * interval - time.perf_counter()
        if early > 0:
            pause.wait(early)
        sender.send(block)
    sender.wait()
    return max(time.perf_counter() - begin, len(blocks) * interval)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="URL of the broker")
    for name, value in asdict(Flood(5000.0, 30_000)).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    sender = connected(arguments.pop("url"))
    flood = Flood(**arguments)
    messages = [sender.encode(events) for events in flood.messages()]
    size = max(1, flood.burst // flood.batch)
    blocks = [b"".join(messages[begin : begin + size]) for begin in range(0, len(messages), size)]
    del messages
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    seconds = send(sender, blocks, flood.burst / flood.rate if flood.rate else 0.0)
    print(json.dumps({"rate": flood.events / seconds, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
