"""The Celery application that ``flower-proxy demo`` shows: tasks that succeed, fail, are slow or are tried again.

`flower_proxy.cli.demo` starts worker and beat in a folder of their own, and names the broker in the environment.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery, Task
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES, filesystem

# No other application that uses the same broker has queues of these names
QUEUE, SECOND_QUEUE = "flower-proxy-demo", "flower-proxy-demo-later"

FOLDER_BROKER = "filesystem://"

MESSAGES, CONTROL, UNFINISHED = "messages", "control", "unfinished"


class Channel(filesystem.Channel):
    """Kombu's, but that a message appears in one piece.

    Kombu writes where others read; who is quick finds an empty file, cannot decode it, and a worker dies of that.
    """

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        unfinished = Path(self.data_folder_out).with_name(UNFINISHED) / name
        unfinished.write_text(json.dumps(payload), encoding="utf-8")
        unfinished.rename(Path(self.data_folder_out, name))


class Transport(filesystem.Transport):
    Channel = Channel


app = Celery("demo")
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE), Queue(SECOND_QUEUE)],
    task_send_sent_event=True,
    # What a worker has reserved no longer counts as waiting
    worker_prefetch_multiplier=1,
    beat_schedule={
        "add": {"task": "demo.add", "schedule": 1, "args": (2, 2)},
        "fail": {"task": "demo.fail", "schedule": 4},
        "slow": {"task": "demo.slow", "schedule": 5, "args": (2,)},
        "retry": {"task": "demo.retry", "schedule": 7},
        "burst": {"task": "demo.burst", "schedule": 12},
    },
)


def use_folder(folder: Path) -> None:
    """Let the messages lie in this folder, where `MESSAGES`, `CONTROL` and `UNFINISHED` are."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / MESSAGES),
        "data_folder_out": str(folder / MESSAGES),
        "control_folder": str(folder / CONTROL),
        # Flower waits a second for the answers of a worker, by default as long as kombu waits before it looks again
        "polling_interval": 0.1,
    }


if os.environ.get("CELERY_BROKER_URL") == FOLDER_BROKER:
    use_folder(Path.cwd())


def add(x: int, y: int) -> int:
    return x + y


def fail() -> None:
    raise ValueError("this task fails on purpose")


def slow(seconds: float) -> None:
    time.sleep(seconds)


def retry(task: Task) -> str:
    if task.request.retries == 0:
        raise ConnectionError("this task is tried again on purpose")
    return "the second time it went well"


def burst() -> None:
    """Send more than the worker can do at once, so that a queue has a length."""
    for _ in range(6):
        app.send_task("demo.slow", (2,), queue=SECOND_QUEUE)


app.task(add, name="demo.add")
app.task(fail, name="demo.fail")
app.task(slow, name="demo.slow")
app.task(retry, name="demo.retry", bind=True, autoretry_for=(ConnectionError,), default_retry_delay=2)
app.task(burst, name="demo.burst")
