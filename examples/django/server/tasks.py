"""Tasks that succeed quickly, take long, and fail."""

import time

from celery import Task, shared_task
from django.conf import settings


@shared_task
def add(x: int = 1, y: int = 2) -> int:
    return x + y


@shared_task(bind=True)
def report(self: Task, seconds: float = 5) -> str:
    """Write a report, which the front page links to."""
    time.sleep(seconds)
    path = settings.MEDIA_ROOT / f"report-{self.request.id}.txt"
    path.write_text(f"This took {seconds} seconds.\n", encoding="utf-8")
    return path.name


@shared_task
def fail() -> None:
    raise ValueError("this task fails on purpose")
