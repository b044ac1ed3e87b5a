"""A worker with arbitrary replies, and the replies of a real one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from kombu import Connection, Message, Producer

INSPECTIONS: dict[str, Any] = {
    "stats": {
        "total": {"server.add": 2},
        "pid": 7,
        "clock": "12",
        "uptime": 30,
        "pool": {"max-concurrency": 2, "processes": [8, 9], "timeouts": [0, 0], "writes": "N/A"},
        "broker": {"hostname": "broker.example", "port": 6379, "transport": "redis", "alternates": []},
        "prefetch_count": 8,
        "rusage": {"utime": 0.5, "stime": 0.25, "maxrss": 1000},
    },
    "active_queues": [
        {
            "name": "celery",
            "exchange": {"name": "celery", "type": "direct"},
            "routing_key": "celery",
            "exclusive": False,
            "durable": True,
            "no_ack": False,
            "alias": None,
            "queue_arguments": None,
            "binding_arguments": None,
            "auto_delete": False,
        }
    ],
    "registered": ["server.add"],
    "scheduled": [
        {"eta": "2020-01-01T00:00:00", "priority": 6, "request": {"id": "1", "name": "t", "args": [], "kwargs": {}}}
    ],
    "active": [{"id": "2", "name": "t", "args": "()", "kwargs": "{}", "acknowledged": True, "worker_pid": 8}],
    "reserved": [{"id": "3", "name": "t", "args": [], "kwargs": {}}],
    "revoked": ["4"],
    "conf": {"timezone": "UTC", "task_queues": None},
}
"""The replies of a real worker to Flower's inspections."""


@dataclass(frozen=True)
class Answer:
    """A reply message.

    :ivar body: bytes as they are, anything else as JSON.
    :ivar options: arguments of `kombu.Producer.publish`.
    """

    body: Any
    options: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def answering_worker(url: str, name: str, answers: Callable[[str], Iterable[Answer]]) -> Iterator[None]:
    """Reply to every command for this worker or for all of them.

    :param answers: returns the replies to a command; they are not sent if it expects none.
    """
    ending, listening = threading.Event(), threading.Event()

    def answer(connection: Connection, body: dict[str, Any], message: Message) -> None:
        if name not in (body["destination"] or [name]):
            return
        producer = Producer(connection.default_channel, auto_declare=False)
        replies = answers(body["method"])
        for sent in replies if "ticket" in body else ():
            options = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "headers": {"ticket": body["ticket"]},
            } | sent.options
            content = sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body).encode()
            producer.publish(content, **body["reply_to"], **options)

    def work() -> None:
        with Celery(broker=url) as capp, capp.connection_for_write() as connection:
            node = capp.control.mailbox(connection).Node(name, channel=connection.default_channel)
            with node.listen(callback=lambda body, message: answer(connection, body, message)):
                while not ending.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)
                    # With Redis, the first poll subscribes
                    listening.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert listening.wait(30)
        yield
    finally:
        ending.set()
        thread.join()
