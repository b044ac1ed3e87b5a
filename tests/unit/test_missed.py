"""Counts of tasks whose events did not arrive, and their log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy.events.missed import Incident
from flower_proxy.events.task_events import TaskEvents
from flower_proxy.web.losses import missed_note

WORKER = "w1@host"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def starts(number: int, clock: int | None = None) -> list[dict[str, Any]]:
    return [{"type": "task-started", "hostname": WORKER, "clock": clock}] * number


def heartbeat(processed: float | None, clock: int | None = None) -> list[dict[str, Any]]:
    return [{"type": "worker-heartbeat", "hostname": WORKER, "processed": processed, "clock": clock}]


def feed(task_events: TaskEvents, events: Iterable[dict[str, Any]]) -> None:
    for event in events:
        task_events.on_event(event)


def missed_after(*events: Iterable[dict[str, Any]]) -> int:
    """Return the number of missed tasks after events that follow the first task of a worker and two heartbeats."""
    task_events = TaskEvents(max_workers=1)
    begin = [*heartbeat(0), *starts(1), *heartbeat(1)]
    feed(task_events, [*begin, *(event for part in events for event in part)])
    return task_events.missed(WORKER)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([starts(9), heartbeat(10), starts(5), heartbeat(15)], 0, id="complete"),
        pytest.param([heartbeat(881), starts(1), heartbeat(882)], 880, id="cut"),
        pytest.param([heartbeat(881), heartbeat(881)], 880, id="cut-then-idle"),
        pytest.param([starts(100), heartbeat(981), starts(100), heartbeat(1081)], 880, id="cut-between-events"),
        pytest.param([heartbeat(881)], 0, id="only-one-heartbeat"),
        pytest.param([heartbeat(11), starts(10), heartbeat(11)], 0, id="events-after-their-heartbeat"),
        pytest.param(
            [
                *(heartbeat(11, 20), starts(10, 11), starts(5, 21), heartbeat(21, 30), starts(5, 22), starts(9, 31)),
                *(heartbeat(31, 40), starts(1, 32), starts(5, 41), heartbeat(36, 50)),
            ],
            0,
            id="always-late",
        ),
        pytest.param(
            [starts(1), heartbeat(13), starts(1), heartbeat(14), starts(11), heartbeat(14), heartbeat(14)],
            11,
            id="very-late-events-do-not-lower-it",
        ),
        pytest.param(
            [heartbeat(11), starts(1), heartbeat(12), heartbeat(42), starts(1), heartbeat(43)], 40, id="twice"
        ),
        pytest.param(
            [starts(3), heartbeat(1), heartbeat(1), heartbeat(11), starts(1), heartbeat(12)], 10, id="late-at-first"
        ),
        pytest.param([heartbeat(0), starts(1), heartbeat(5), starts(1), heartbeat(6)], 0, id="restart"),
        pytest.param(
            [heartbeat(0), starts(1), heartbeat(5), heartbeat(15), starts(1), heartbeat(16)], 10, id="then-cut"
        ),
        pytest.param(
            [heartbeat(21), starts(1), heartbeat(22), heartbeat(0), starts(9), heartbeat(9)], 20, id="restart-after-cut"
        ),
        pytest.param([heartbeat(11), heartbeat(21), heartbeat(31), heartbeat(31)], 0, id="worker-stops-sending-events"),
        pytest.param(
            [heartbeat(11), heartbeat(21), heartbeat(31), starts(1), heartbeat(32), starts(1), heartbeat(33)],
            0,
            id="worker-sends-events-again",
        ),
        pytest.param([heartbeat(None), heartbeat(11.0), heartbeat(11)], 10, id="other-heartbeats"),
    ],
)
def test_tasks_without_a_start_event_are_counted(events: list[list[dict[str, Any]]], expected: int) -> None:
    assert missed_after(*events) == expected


def test_a_worker_that_never_sends_task_events_misses_none() -> None:
    """A worker without -E sends heartbeats only."""
    task_events = TaskEvents(max_workers=1)
    for processed in (0, 5, 5, 10, 20, 20, 20):
        feed(task_events, heartbeat(processed))
    assert task_events.missed(WORKER) == 0


def test_the_count_begins_with_the_first_task_event() -> None:
    """flower-proxy asks workers without -E to send events, after which their earlier tasks are not missed."""
    task_events = TaskEvents(max_workers=1)
    feed(task_events, [*heartbeat(0), *heartbeat(50), *starts(1), *heartbeat(80), *starts(1), *heartbeat(81)])
    assert task_events.missed(WORKER) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.booleans()), max_size=30))
def test_late_events_are_not_missed_and_lost_ones_are(intervals: list[tuple[int, int, bool]]) -> None:
    """Events may come after one heartbeat, at each heartbeat, between losses."""
    task_events = TaskEvents(max_workers=1)
    feed(task_events, [*heartbeat(0, 0), *starts(1, 1), *heartbeat(1, 2)])
    processed, lost, previous, late = 1, 0, 0, starts(0)
    for clock, (number, delayed, is_lost) in enumerate(intervals, 3):
        # At least one event arrives, so that the worker is known to send some
        arrived = starts(1, 2 * clock) if is_lost else starts(number + 1, 2 * clock)
        feed(task_events, [*late, *arrived[delayed:]])
        late = arrived[:delayed]
        processed, lost = processed + number + 1, lost + number * is_lost
        feed(task_events, heartbeat(processed, 2 * clock + 1))
        assert previous <= task_events.missed(WORKER) <= lost
        previous = task_events.missed(WORKER)
    feed(task_events, [*late, *starts(1, 100), *heartbeat(processed + 1, 101), *heartbeat(processed + 1, 102)])
    assert task_events.missed(WORKER) == lost


def test_forgotten_workers_start_at_zero() -> None:
    task_events = TaskEvents(max_workers=1)
    feed(task_events, [*starts(1), *heartbeat(1), *heartbeat(11), *heartbeat(11)])
    assert task_events.missed(WORKER) == 10
    task_events.forget([WORKER])
    assert task_events.missed(WORKER) == 0


# Log


def test_an_incident_of_a_cluster_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    incident = Incident(clock)
    for worker, tasks in (("w1@host", 5), ("w2@host", 7), ("w1@host", 1)):
        incident.add(worker, tasks)
        incident.log()
        clock.now += 2
    assert not caplog.records
    clock.now += 4
    for _ in range(30):
        incident.log()
        clock.now += 30
        incident.add("w1@host", 1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Missed task events (tasks: 13, workers: 2, most at 'w2@host'); ")
    clock.now += 60
    incident.add("w3@host", 2)
    clock.now += 10
    incident.log()
    assert "(tasks: 2, workers: 1, most at 'w3@host')" in caplog.records[-1].getMessage()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# Note on the workers page


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        pytest.param({}, "", id="no-workers"),
        pytest.param({"w1": 0, "w2": 0}, "", id="none"),
        pytest.param({"w1": 1}, "1 task did not arrive (1 of w1):", id="one-task"),
        pytest.param({"w1": 0, "w2": 3}, "3 tasks did not arrive (3 of w2):", id="one-worker"),
        pytest.param(
            {"w1": 1, "w2": 3, "w3": 2, "w4": 1},
            "7 tasks did not arrive (3 of w2, 2 of w3, 1 of w4, the rest of another worker):",
            id="four",
        ),
        pytest.param({f"w{number}": 1 for number in range(9)}, "the rest of 6 other workers", id="many"),
    ],
)
def test_the_note_names_the_workers_that_missed_most(missed: dict[str, int], expected: str) -> None:
    assert expected in missed_note(missed)
    assert bool(missed_note(missed)) == bool(expected)
