"""Many short tasks of real workers, and the numbers that Flower's counters must have then."""

from __future__ import annotations

from collections import Counter

from celery import Celery

from .processes import wait_until
from .programs import Broker, Flower

EVENTS = ("task-sent", "task-received", "task-started", "task-succeeded")


def send_tasks(broker: Broker, count: int) -> None:
    """Send short tasks, whose results are ignored."""
    with Celery(broker=broker.url) as app, app.producer_pool.acquire(block=True) as producer:
        app.conf.task_send_sent_event = True
        for number in range(count):
            app.send_task("server.add", (number, 1), producer=producer, ignore_result=True)


def counted_events(flower: Flower) -> Counter[str]:
    """Return the numbers of task events that Flower has counted, by type."""
    counts: Counter[str] = Counter()
    for metric in flower.metrics():
        for sample in metric.samples:
            if sample.name == "flower_events_total" and sample.labels["type"] in EVENTS:
                counts[sample.labels["type"]] += int(sample.value)
    return counts


def lost_events(broker: Broker, flower: Flower, count: int, *, timeout: float = 60) -> Counter[str]:
    """Run short tasks with the broker's workers, and return the numbers of events that Flower lacks, by type."""
    before = counted_events(flower)
    send_tasks(broker, count)

    def missing() -> Counter[str]:
        counted = counted_events(flower)
        return Counter({kind: before[kind] + count - counted[kind] for kind in EVENTS})

    try:
        wait_until(lambda: not any(missing().values()), timeout=timeout, what="all events are counted")
    except TimeoutError:
        return missing()
    return Counter()
