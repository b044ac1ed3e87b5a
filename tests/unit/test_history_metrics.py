"""The history counts what the metrics count, for random events."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flower_proxy.events.state import State
from flower_proxy.metrics.exposition import render
from flower_proxy.metrics.recorder import Recorder
from flower_proxy.monitor.history import History
from flower_proxy.monitor.series import EVENTS, RANGES

KINDS = (*EVENTS, "rejected", "custom")
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 4), st.integers(0, 2), st.floats(0, 50)), min_size=1, max_size=80
)


class Cluster:
    """A state, its metrics, and a history that follows them.

    :param max_task_names: of the metrics; further ones are aggregated.
    """

    def __init__(self, max_task_names: int) -> None:
        self.history = History()
        self.state = State(max_tasks_in_memory=100, max_workers_in_memory=100)
        self.recorder = Recorder((1.0,), max_task_names=max_task_names, follower=self.history)
        self.recorder.begin(self.state)
        self.now = 1_800_000_000.0
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.history.advance(self.now, self.now, is_covered=True)

    def process(self, kind: str, task: int, worker: int) -> None:
        event: dict[str, Any] = {"type": f"task-{kind}", "uuid": f"id-{task}-{worker}", "hostname": f"w{worker}@h"}
        event |= {"timestamp": self.now, "local_received": self.now, "clock": int(self.now), "pid": 1, "utcoffset": 0}
        if kind in ("sent", "received"):
            event |= {"name": f"task-{task}", "retries": 0}
        if kind == "sent":
            event |= {"queue": f"queue-{task % 2}", "hostname": "gen1@web"}
        if kind == "succeeded":
            event["runtime"] = 0.5 * (task + 1)
        self.state.event(event)
        self.recorder.on_event(event)

    def metric(self, name: str, label: str) -> Counter[tuple[str, str]]:
        """Return the values of a counter by the type of its events and a label."""
        text = "".join(render(self.recorder.families(None, groups=("flower", "celery")), openmetrics=False))
        counts: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(name) and sample.name.endswith("_total"):
                    kind = sample.labels.get("type", f"task-{family.name.removeprefix('celery_task_')}")
                    counts[kind.removeprefix("task-"), sample.labels[label]] += int(sample.value)
        return counts

    def counted(self, by: str) -> Counter[tuple[str, str]]:
        """Return the sums of the slots of the longest range by the type of the events and a name."""
        self.history.settle()
        slots = RANGES[-1].slots
        return Counter(
            {
                (kind, name): sum(series.columns.column(kind)[-slots:])
                for name, series in self.history.groups[by].items()
                for kind in EVENTS
            }
        )


@given(steps=STEPS, max_task_names=st.sampled_from([2, 100]))
def test_sums_of_slots_equal_the_counters(steps: list[tuple[str, int, int, float]], max_task_names: int) -> None:
    cluster = Cluster(max_task_names)
    for kind, task, worker, seconds in steps:
        cluster.process(kind, task, worker)
        cluster.advance(seconds)
    metrics = cluster.metric("flower_events", "task")
    assert +cluster.counted("task") == Counter({key: n for key, n in metrics.items() if n and key[0] in EVENTS})
    metrics = cluster.metric("flower_events", "worker")
    assert +cluster.counted("worker") == Counter(
        {key: n for key, n in metrics.items() if n and key[0] in EVENTS and key[0] != "sent"}
    )
    metrics = cluster.metric("celery_task_", "queue_name")
    assert +cluster.counted("queue") == Counter({key: n for key, n in metrics.items() if n and key[0] in EVENTS})
