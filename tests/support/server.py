"""The Celery application that Flower monitors; the environment names its broker and result backend."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery, chord

from tests.support import ledger

app = Celery("server", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(
    broker_transport_options=json.loads(os.environ.get("BROKER_TRANSPORT_OPTIONS", "{}")),
    broker_connection_retry_on_startup=True,
    task_send_sent_event=True,
    worker_send_task_events="WITHOUT_TASK_EVENTS" not in os.environ,
)


def add(x: int, y: int) -> int:
    return x + y


def total(numbers: list[int]) -> int:
    return sum(numbers)


def total_of_sums(numbers: int) -> None:
    """Send a chord."""
    chord([app.signature("server.add", (n, n)) for n in range(numbers)])(app.signature("server.total"))


def fail() -> None:
    raise ValueError("this task fails on purpose")


def fail_otherwise() -> None:
    raise KeyError("this task fails on purpose")


def slow(seconds: float) -> None:
    time.sleep(seconds)


def wait(file: str) -> None:
    """Run until the file exists."""
    while not Path(file).exists():
        time.sleep(0.02)


def retry() -> None:
    raise ConnectionError("this task is retried on purpose")


app.task(add, name="server.add")
app.task(total, name="server.total")
app.task(total_of_sums, name="server.total_of_sums")
app.task(add, name="server.add_limited", rate_limit="1/h")
app.task(fail, name="server.fail")
app.task(fail_otherwise, name="server.fail_otherwise")
app.task(slow, name="server.slow")
app.task(wait, name="server.wait")
# Redelivered if the worker or its pool process dies
app.task(wait, name="server.wait_late", acks_late=True, reject_on_worker_lost=True)
app.task(retry, name="server.retry", autoretry_for=(ConnectionError,), max_retries=2, default_retry_delay=0)

if "LEDGER" in os.environ:
    ledger.keep(ledger.Ledger(Path(os.environ["LEDGER"])))
