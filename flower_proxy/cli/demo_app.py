"""The Celery application of ``flower-proxy demo``, with tasks that succeed, fail, retry or take long.

`flower_proxy.cli.demo` runs worker and beat in a temporary folder, with the broker URL in the environment.
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

# Unlikely names, so that the demo can share a broker with other applications
QUEUE, SECOND_QUEUE = "flower-proxy-demo", "flower-proxy-demo-later"

FOLDER_BROKER = "filesystem://"

MESSAGES, CONTROL, UNFINISHED = "messages", "control", "unfinished"


class Channel(filesystem.Channel):
    """A channel that creates message files atomically.

    kombu writes to the file in place, and a worker that reads the unfinished file fails to decode it and exits.
    """

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        unfinished = Path(self.data_folder_out).with_name(UNFINISHED) / name
        unfinished.write_text(json.dumps(payload), encoding="utf-8")
        unfinished.rename(Path(self.data_folder_out, name))


class Transport(filesystem.Transport):
    """A filesystem transport with atomic messages."""

    Channel = Channel


app = Celery("demo")
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE), Queue(SECOND_QUEUE)],
    task_send_sent_event=True,
    # Prefetched messages do not count towards the queue length
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
    """Store messages in this folder, which has the subfolders `MESSAGES`, `CONTROL` and `UNFINISHED`."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / MESSAGES),
        "data_folder_out": str(folder / MESSAGES),
        "control_folder": str(folder / CONTROL),
        # The default is 1 s, as long as Flower waits for replies of workers
        "polling_interval": 0.1,
    }


if os.environ.get("CELERY_BROKER_URL") == FOLDER_BROKER:
    use_folder(Path.cwd())


def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y


def fail() -> None:
    """Fail with ValueError."""
    raise ValueError("this task fails on purpose")


def slow(seconds: float) -> None:
    """Sleep for some seconds."""
    time.sleep(seconds)


def retry(task: Task) -> str:
    """Succeed at the second attempt."""
    if task.request.retries == 0:
        raise ConnectionError("this task retries on purpose")
    return "succeeded after a retry"


def burst() -> None:
    """Send more tasks than the worker can run at once, so that a queue has a length."""
    for _ in range(6):
        app.send_task("demo.slow", (2,), queue=SECOND_QUEUE)


app.task(add, name="demo.add")
app.task(fail, name="demo.fail")
app.task(slow, name="demo.slow")
app.task(retry, name="demo.retry", bind=True, autoretry_for=(ConnectionError,), default_retry_delay=2)
app.task(burst, name="demo.burst")
