"""Bounds on memory and metric cardinality, whatever names events contain."""

from __future__ import annotations

import gc
import itertools
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from flower.events import EventsState
from prometheus_client.parser import text_string_to_metric_families
from tornado.ioloop import IOLoop

from flower_proxy.app import FlowerProxy
from flower_proxy.events.state import State
from flower_proxy.metrics.broker_poller import MAX_QUEUES, _summarize, _Worker
from flower_proxy.settings.loader import make_options
from tests.support.churn import Churn, scraped
from tests.support.processes import PROJECT
from tests.support.states import pickled, restored

MAX_WORKERS = 50
LIMIT = {"task": 20, "exception": 100, "queue_name": 1000, "producer": 1000, "type": 100}
OTHER = {
    "task": "other",
    "exception": "UnknownException",
    "queue_name": "other",
    "producer": "gen@other",
    "type": "other",
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"max_workers": MAX_WORKERS}


@pytest.fixture
def app(io_loop: IOLoop, settings: dict[str, Any]) -> Iterator[FlowerProxy]:
    """The application; it receives only the events of the test."""
    options = make_options(no_auth=True, max_tasks=1000, metrics_max_task_names=LIMIT["task"], **settings)
    capp = Celery(broker="memory://")
    application = FlowerProxy(capp=capp, options=options)
    yield application
    io_loop.run_sync(application.close)
    capp.close()


class Feed:
    """Passes events to the application and counts them."""

    def __init__(self, app: FlowerProxy) -> None:
        self._process = app.events.dispatcher.dispatch
        self.sent = 0

    def __call__(self, kind: str, sender: str, **fields: Any) -> None:
        self.sent += 1
        base = {"timestamp": 1.0, "local_received": 1.0, "utcoffset": 0, "pid": 1}
        self._process({"type": kind, "hostname": sender, "clock": self.sent, **base, **fields})


def samples(app: FlowerProxy, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of a name."""
    families = text_string_to_metric_families(scraped(app))
    return [(one.labels, one.value) for family in families for one in family.samples if one.name == name]


def by_label(app: FlowerProxy, name: str, label: str) -> Counter[str]:
    """Return the sum of a metric for each value of a label."""
    sums: Counter[str] = Counter()
    for labels, value in samples(app, name):
        sums[labels[label]] += int(value)
    return sums


def workers_in(app: FlowerProxy) -> set[str]:
    return set(by_label(app, "flower_worker_online", "worker"))


# Labels


def test_readme_lists_every_limit() -> None:
    readme = (PROJECT / "examples" / "prometheus" / "README.md").read_text()
    _, _, rest = readme.partition("Every label is bounded:")
    rows = [[cell.strip(" `") for cell in row.split("|")] for row in rest.split("\n\n")[1].splitlines()]
    table = {row[1].split("`")[0].strip(): row[2:4] for row in rows[2:]}
    rows_of = dict(zip(LIMIT, LIMIT, strict=True)) | {"producer": "hosts of clients that send tasks ("}
    for label in LIMIT.keys() - {"task"}:
        limit, beyond = table[rows_of[label]]
        assert (int(limit.replace(",", "")), beyond.split("`")[0]) == (LIMIT[label], OTHER[label])


def test_label_values_beyond_their_limits_are_aggregated(app: FlowerProxy) -> None:
    """All limits are exceeded at once."""
    feed, beyond = Feed(app), 7
    for number in range(max(LIMIT.values()) + beyond):
        uuid, worker = str(number), f"w{number % MAX_WORKERS}@host"
        task = f"task{number % (LIMIT['task'] + beyond)}"
        feed("task-sent", f"gen{number}@pod{number}", uuid=uuid, name=task, queue=f"queue{number}")
        feed("task-received", worker, uuid=uuid, name=task)
        feed(f"task-step{number % (LIMIT['type'] + beyond)}", worker, uuid=uuid)
        feed("task-failed", worker, uuid=uuid, exception=f"Error{number % (LIMIT['exception'] + beyond)}()")
    runs = feed.sent // 4
    found = {
        "task": by_label(app, "flower_events_total", "task"),
        "exception": by_label(app, "celery_task_failed_total", "exception"),
        "queue_name": by_label(app, "celery_task_received_total", "queue_name"),
        "producer": by_label(app, "celery_task_sent_total", "hostname"),
        "type": by_label(app, "flower_events_total", "type"),
    }
    expected = {"task": 4 * runs, "exception": runs, "queue_name": runs, "producer": runs, "type": 4 * runs}
    assert {label: sum(counts.values()) for label, counts in found.items()} == expected
    # Without the series that are created with 0
    values = {label: {value for value, count in counts.items() if count} for label, counts in found.items()}
    # Clients' task-sent events do not count towards the limit of workers' event types
    extra = {"type": 1}
    assert {label: len(found) for label, found in values.items()} == {
        label: limit + 1 + extra.get(label, 0) for label, limit in LIMIT.items()
    }
    assert all(found[label][other] > 0 for label, other in OTHER.items())
    assert workers_in(app) == {f"w{number}@host" for number in range(MAX_WORKERS)}


def test_series_of_evicted_workers_are_removed(app: FlowerProxy) -> None:
    feed = Feed(app)
    for number in range(3 * MAX_WORKERS):
        feed("task-received", f"w{number}@host", uuid=str(number), name="add")
    last = {f"w{number}@host": 1 for number in range(2 * MAX_WORKERS, 3 * MAX_WORKERS)}
    assert by_label(app, "flower_events_total", "worker") == last
    assert by_label(app, "celery_task_received_total", "hostname") == last
    assert workers_in(app) == last.keys()
    assert by_label(app, "flower_worker_prefetched_tasks", "worker").keys() == last.keys()


@pytest.mark.parametrize(
    ("fields", "name", "label"),
    [
        pytest.param({"type": "task-received", "name": "{}"}, "flower_events_total", "task", id="task"),
        pytest.param({"type": "task-{}"}, "flower_events_total", "type", id="type"),
        pytest.param(
            {"type": "task-failed", "exception": "{}()"}, "celery_task_failed_total", "exception", id="exception"
        ),
    ],
)
def test_forgotten_workers_make_room_for_new_label_values(
    app: FlowerProxy, fields: dict[str, str], name: str, label: str
) -> None:
    """Otherwise short-lived workers would use up the limit."""

    def run(worker: str, value: str) -> None:
        event = {key: text.format(value) for key, text in fields.items()}
        feed(event.pop("type"), worker, uuid=value, **event)

    feed = Feed(app)
    for number in range(LIMIT[label] + 1):
        run("old@host", f"Old{number}")
    run("steady@host", "Old1")
    assert by_label(app, name, label)[OTHER[label]] == 1
    app.events.state.workers.pop("old@host")
    app.forget_workers()
    for number in range(LIMIT[label]):
        run("new@host", f"New{number}")
    counts = by_label(app, name, label)
    prefix = "task-" if label == "type" else ""
    # steady@host still uses one value
    assert counts[f"{prefix}Old1"] == counts[f"{prefix}New{LIMIT[label] - 2}"] == counts[OTHER[label]] == 1
    assert f"{prefix}Old2" not in counts


def test_forgotten_workers_make_room_for_new_producers(app: FlowerProxy) -> None:
    feed = Feed(app)
    for number in range(LIMIT["producer"] + MAX_WORKERS):
        feed("worker-online", f"w{number}@host")
        feed("task-sent", f"w{number}@host", uuid=str(number), name="add")
    app.forget_workers()
    feed("worker-online", "new@host")
    feed("task-sent", "new@host", uuid="new", name="add")
    assert by_label(app, "celery_task_sent_total", "hostname")["new@host"] == 1


def test_queues_of_workers_are_limited() -> None:
    workers = {f"w{number}": _Worker(tuple(f"{number}-{queue}" for queue in range(400)), 1) for number in range(3)}
    figures = _summarize({}, workers, counts_consumers=False)
    assert len(figures.workers) == len(figures.processes) == MAX_QUEUES


# Workers


def test_active_workers_are_not_evicted_by_ten_thousand_others(app: FlowerProxy) -> None:
    """Celery evicts by first event or by last read access, not by last event."""
    churn = Churn(app.events.dispatcher.dispatch, steady=10, heartbeat_every=MAX_WORKERS // 2, tasks=0)
    feed = Feed(app)
    for number in range(10):
        for name in churn.steady:
            feed("task-received", name, uuid=f"{name}{number}", name="add")
        churn.run(1000)
        # Reading must not influence the eviction order
        assert workers_in(app) >= set(churn.steady)
        assert all(app.events.state.workers.get(name) for name in list(app.events.state.workers))
        assert {app.task_events.sends_task_events(name) for name in churn.steady} == {True}
        app.forget_workers()
    assert by_label(app, "flower_events_total", "worker").keys() >= set(churn.steady)
    received = by_label(app, "celery_task_received_total", "hostname")
    assert [received[name] for name in churn.steady] == [10] * 10


def test_reading_a_worker_does_not_prevent_its_eviction(app: FlowerProxy) -> None:
    feed, state = Feed(app), app.events.state
    for number in range(MAX_WORKERS):
        feed("worker-heartbeat", f"w{number}@host")
    assert state.workers["w0@host"] is state.workers.get("w0@host")
    feed("worker-heartbeat", "w1@host")
    feed("worker-heartbeat", "new@host")
    assert ("w0@host" in state.workers, "w1@host" in state.workers) == (False, True)


def test_memory_is_bounded_if_names_never_repeat(app: FlowerProxy) -> None:
    """Each event has new names; memory must not grow once every limit is reached."""
    # The limit of 5,000 takes ten rounds to reach
    app.monitor.recorder._waits._unsent.limit = 1000
    feed, numbers, sizes = Feed(app), itertools.count(), []
    tracemalloc.start()
    try:
        for _ in range(4):
            for number in itertools.islice(numbers, max(LIMIT.values()) // 2 + 1):
                worker, uuid, task = f"w{number}@host", str(number), f"task{number}"
                feed(f"custom{number}-event", f"any{number}")
                feed("task-step", "steady@host", uuid="one", **{f"field{number}": f"value{number}"})
                for name in (worker, "steady@host"):
                    feed(f"worker-step{number}", name)
                    feed("task-sent", f"gen{number}@pod{number}", uuid=uuid, name=task, queue=f"queue{number}")
                    feed("task-received", name, uuid=uuid, name=task, parent_id=f"parent{number}")
                    feed(f"task-step{number}", name, uuid=uuid)
                    feed("task-started", name, uuid=f"unknown{number}")
                    feed("task-failed", name, uuid=uuid, exception=f"Error{number}()")
                app.workers[worker].update(timestamp=number)
            app.forget_workers()
            scraped(app)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[3] == pytest.approx(sizes[2], rel=0.03), sizes


@pytest.mark.parametrize("settings", [{"max_workers": 500}])
def test_memory_and_metrics_do_not_grow_over_a_week_of_new_workers(app: FlowerProxy) -> None:
    """A day has 1,000 new workers here; `tests.bench.churn` has 5,000."""
    churn = Churn(app.events.dispatcher.dispatch, steady=10, tasks=1)
    figures: dict[int, tuple[int, int, int]] = {}

    def run_for(days: int) -> None:
        for _ in range(4 * days):
            churn.run(250)
            app.forget_workers()

    tracemalloc.start()
    try:
        # The cache of shared strings, which all tests of a process use, has 4,096 entries
        run_for(days=5)
        for day in range(1, 8):
            run_for(days=1)
            text = scraped(app)
            online = text.count("\nflower_worker_online{")
            assert online == 500
            figures[day] = (text.count("\n"), len(text), 0)
            del text
            gc.collect()
            figures[day] = (*figures[day][:2], tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    for second, seventh in zip(figures[2], figures[7], strict=True):
        assert seventh == pytest.approx(second, rel=0.05), figures


def test_evicted_workers_are_forgotten_without_a_scrape(app: FlowerProxy) -> None:
    Churn(app.events.dispatcher.dispatch, tasks=1).run(20 * MAX_WORKERS)
    assert len(app.monitor.recorder._tasks.runtime) <= 2 * MAX_WORKERS
    assert len(app.events.state.counter) <= 2 * MAX_WORKERS


# Indexes of the state


def test_clients_have_no_event_counts(app: FlowerProxy) -> None:
    """Stock Flower counts events of each client process and never displays them."""
    feed = Feed(app)
    feed("task-sent", "gen1@web", uuid="1", name="add")
    feed("task-received", "w@host", uuid="1", name="add")
    feed("custom-event", "anything")
    feed("worker-offline", "unknown@host")
    assert app.events.state.counter == {"w@host": {"task-received": 1}}


def test_event_types_of_a_worker_are_limited(app: FlowerProxy) -> None:
    feed = Feed(app)
    for number in range(300):
        feed(f"worker-{number}", "w@host")
        feed("worker-heartbeat", "w@host")
    counts = app.events.state.counter["w@host"]
    assert (counts["worker-heartbeat"], counts["worker-1"], counts.total()) == (300, 1, 600)
    assert counts["other"] > 0
    assert len(counts) <= 101


def test_names_of_evicted_tasks_are_forgotten(app: FlowerProxy) -> None:
    feed, state = Feed(app), app.events.state
    for number in range(1500):
        feed("task-received", f"w{number}@host", uuid=str(number), name=f"task{number}")
    app.forget_workers()
    names = {task.name for task in state.tasks.values()}
    assert len(names) == 1000
    assert set(state.task_types()) == names
    feed("task-received", "w@host", uuid="new", name="new")
    assert "new" in state.task_types()


def test_names_of_evicted_tasks_are_kept_below_the_limit(app: FlowerProxy) -> None:
    feed = Feed(app)
    for number in range(1500):
        feed("task-received", "w@host", uuid=str(number), name="first" if number < 100 else "second")
    app.forget_workers()
    assert app.events.state.task_types() == ["first", "second"]


def test_stock_flower_loads_a_state_saved_by_flower_proxy() -> None:
    state = State(max_tasks_in_memory=10, max_workers_in_memory=2)
    for number in range(3):
        state.event({"type": "worker-online", "hostname": f"w{number}", "timestamp": 1, "local_received": 1})
    saved = pickled(state)
    assert b"flower_proxy" not in saved
    loaded = pickle.loads(saved)
    assert (type(loaded), list(loaded.workers), loaded.workers.limit) == (EventsState, ["w1", "w2"], 2)
    assert list(restored(loaded, max_workers_in_memory=1).workers) == ["w2"]


# Inspections


def test_inspection_results_are_limited_and_forgotten_with_their_worker(app: FlowerProxy) -> None:
    feed = Feed(app)
    feed("worker-online", "w@host")
    # Workers without events reply to inspections too
    for number in range(MAX_WORKERS + 5):
        app.workers[f"silent{number}@host"].update(stats={}, timestamp=float(number))
    app.workers["w@host"].update(stats={}, timestamp=100.0)
    app.forget_workers()
    # The first event made the worker known
    assert list(app.workers) == ["w@host"] + [f"silent{number}@host" for number in range(6, MAX_WORKERS + 5)]
    app.events.state.workers.pop("w@host")
    app.forget_workers()
    assert "w@host" not in app.workers
