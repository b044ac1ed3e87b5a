"""History: exact counts by slot, quantiles, limits, gaps and steps of the clock."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_proxy.monitor.history import MAX_MARKS, History, Mark
from flower_proxy.monitor.series import EVENTS, OTHER, RANGES, Series, position_of
from flower_proxy.monitor.sketch import LAST_BUCKET, RELATIVE_ERROR, SHORTEST, bucket_of, duration_of, quantiles

# A multiple of the longest slot
START = 1_800_000_000.0
DAY = len(RANGES) - 1


class Clock:
    """Time that passes while a history is advanced as flower-proxy does, each second.

    :ivar wall: seconds since the epoch, which may step.
    """

    def __init__(self, history: History, start: float = START) -> None:
        self.history = history
        self.wall, self.monotonic = start, 50.0
        self.advance()

    def advance(self, *, is_covered: bool = True) -> None:
        self.history.advance(self.wall, self.monotonic, is_covered=is_covered)

    def run(self, seconds: float, *, is_covered: bool = True) -> None:
        while seconds > 0:
            passed = min(seconds, 1.0)
            seconds -= passed
            self.wall += passed
            self.monotonic += passed
            self.advance(is_covered=is_covered)


@pytest.fixture
def history() -> History:
    return History()


@pytest.fixture
def clock(history: History) -> Clock:
    return Clock(history)


def numbers(history: History, name: str, index: int = 0, series: Series | None = None) -> dict[int, int]:
    """Return the numbers other than 0 of a column, by time relative to the start."""
    history.settle([index])
    columns, step = (series or history.whole).columns, RANGES[index].step
    found = {moment: columns[name, position_of(index, moment // step)] for moment in history.times(index)}
    return {round(moment - START): number for moment, number in found.items() if number}


def succeed(
    history: History, runtime: float = 1.0, name: str = "add", worker: str = "w1", queue: str = "celery"
) -> None:
    history.count("task-succeeded", name, worker, queue)
    history.observe_runtime(runtime, name, worker, queue)


# Slots


def test_events_count_in_the_slot_in_which_they_are_handled(history: History, clock: Clock) -> None:
    succeed(history)
    clock.run(5)
    succeed(history)
    succeed(history)
    clock.run(16)
    succeed(history)
    assert numbers(history, "succeeded") == {0: 1, 5: 2, 20: 1}
    assert numbers(history, "succeeded", 1) == {0: 3, 20: 1}
    assert numbers(history, "succeeded", 2) == numbers(history, "succeeded", DAY) == {0: 4}


def test_slots_end_with_their_range(history: History, clock: Clock) -> None:
    succeed(history)
    clock.run(RANGES[0].span - 1)
    assert numbers(history, "succeeded") == {0: 1}
    clock.run(1)
    assert numbers(history, "succeeded") == {}
    assert numbers(history, "succeeded", 1) == {0: 1}
    assert len(history.times(0)) == RANGES[0].slots


def test_run_times_are_summed_without_rounding_errors(history: History, clock: Clock) -> None:
    for _ in range(1000):
        succeed(history, 0.0004)
        history.settle()
    assert sum(numbers(history, "runtime").values()) == pytest.approx(400, abs=1)


def test_events_count_by_task_worker_and_queue(history: History, clock: Clock) -> None:
    history.count("task-sent", "add", "gen1@web", "mail")
    history.count("task-started", "add", "w1", "mail")
    history.count("custom-event", "add", "w1", "mail")
    assert {kind: list(group) for kind, group in history.groups.items()} == {
        "task": ["add"],
        "worker": ["w1"],
        "queue": ["mail"],
    }
    assert numbers(history, "sent", series=history.groups["task"]["add"]) == {0: 1}
    assert numbers(history, "sent", series=history.groups["worker"]["w1"]) == {}
    assert numbers(history, "started", series=history.groups["worker"]["w1"]) == {0: 1}


def test_large_numbers_are_kept(history: History, clock: Clock) -> None:
    for number in (300, 70_000, 5_000_000_000):
        history.whole.counts[0] += number
        history.settle()
    assert numbers(history, "sent") == {0: 5_000_070_300}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([f"task-{name}" for name in EVENTS]), st.integers(0, 5), st.integers(0, 3)),
        st.floats(0.1, 700.0),
        st.sampled_from([3600.0, -3600.0, -7.0, 40.0]).map(str),
    ),
    max_size=60,
)


@given(operations=OPERATIONS)
def test_sums_of_slots_equal_what_was_counted(operations: list[object]) -> None:
    """Within the longest range, whatever the clock does; a series that was merged counts as other."""
    history = History(limits=(4, 3, 2))
    clock = Clock(history)
    counted: Counter[tuple[str, str]] = Counter()
    for operation in operations:
        if isinstance(operation, tuple):
            kind, name, worker = operation
            history.count(kind, f"task-{name}", f"worker-{worker}", f"queue-{worker}")
            counted[kind, f"task-{name}"] += 1
        elif isinstance(operation, str):
            clock.wall += float(operation)
            clock.advance()
        elif isinstance(operation, float):
            clock.run(operation)
    for event in EVENTS:
        of_tasks = {name: numbers(history, event, DAY, series) for name, series in history.groups["task"].items()}
        total = sum(number for (kind, _), number in counted.items() if kind == f"task-{event}")
        assert sum(numbers(history, event, DAY).values()) == total
        assert sum(number for values in of_tasks.values() for number in values.values()) == total
        queues = history.groups["queue"].values()
        assert sum(sum(numbers(history, event, DAY, series).values()) for series in queues) == total
        if OTHER not in of_tasks:
            assert {name: sum(values.values()) for name, values in of_tasks.items() if values} == {
                name: number for (kind, name), number in counted.items() if kind == f"task-{event}"
            }


# Quantiles


@given(durations=st.lists(st.floats(0.0, 400_000.0), min_size=1, max_size=200))
def test_quantiles_are_close_to_those_of_the_sorted_list(durations: list[float]) -> None:
    counts = Counter(map(bucket_of, durations))
    durations.sort()
    for fraction, bucket in zip((0.5, 0.95, 0.99), quantiles(counts, (0.5, 0.95, 0.99)), strict=True):
        exact = durations[max(1, math.ceil(fraction * len(durations))) - 1]
        if exact > SHORTEST:
            assert duration_of(bucket) == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))
        else:
            assert duration_of(bucket) == SHORTEST


def test_the_longest_durations_share_a_bucket() -> None:
    assert bucket_of(10**12) == LAST_BUCKET
    assert duration_of(LAST_BUCKET) > 7 * 86400


@pytest.mark.parametrize("index", range(len(RANGES)))
def test_quantiles_are_those_of_their_own_slot(history: History, clock: Clock, index: int) -> None:
    """A mean of the quantiles of shorter slots would be wrong: most of the slow tasks run in one of them."""
    step = RANGES[index].step
    durations = [0.01] * 90 + [100.0] * 10
    for duration in durations:
        succeed(history, duration)
        # A sum without rounding errors
        clock.run(step / 128)
    clock.run(step - step / 128 * len(durations))
    succeed(history, 5000.0)
    (first, p95), (second, last) = numbers(history, "runtime_p95", index).items()
    assert (first, second) == (0, step)
    assert duration_of(p95) == pytest.approx(100.0, rel=RELATIVE_ERROR)
    assert duration_of(last) == pytest.approx(5000.0, rel=RELATIVE_ERROR)
    assert duration_of(numbers(history, "runtime_p50", index)[0]) == pytest.approx(0.01, rel=RELATIVE_ERROR)


def test_waits_have_quantiles_of_their_own(history: History, clock: Clock) -> None:
    history.observe_wait(3.0, "add", "w1", "mail")
    for series in (
        history.whole,
        *(group[name] for group, name in zip(history.groups.values(), ("add", "w1", "mail"), strict=True)),
    ):
        assert duration_of(numbers(history, "wait_p99", series=series)[0]) == pytest.approx(3.0, rel=RELATIVE_ERROR)
    assert numbers(history, "runtime_p99") == {}


# Limits


def test_the_series_that_was_silent_longest_is_merged_into_other(clock: Clock) -> None:
    history = History(limits=(4, 3, 2))
    clock = Clock(history)
    for name in ("silent", "busy", "late"):
        succeed(history, 2.0, name)
        clock.run(5)
    for _ in range(2):
        succeed(history, 2.0, "silent-later")
        succeed(history, 2.0, "busy")
        clock.run(5)
    tasks = history.groups["task"]
    assert set(tasks) == {"busy", "late", "silent-later", OTHER}
    assert numbers(history, "succeeded", series=tasks[OTHER]) == {0: 1}
    assert numbers(history, "runtime", series=tasks[OTHER]) == {0: 2000}


def test_a_series_that_counts_in_the_open_slot_gives_way_last(clock: Clock) -> None:
    history = History(limits=(3, 3, 2))
    clock = Clock(history)
    for name in ("first", "second"):
        succeed(history, name=name)
    clock.run(5)
    succeed(history, name="first")
    succeed(history, name="third")
    assert set(history.groups["task"]) == {"first", "third", OTHER}


def test_a_flood_of_names_costs_no_time(history: History, clock: Clock) -> None:
    for number in range(5000):
        succeed(history, name=f"known-{number % 100}")
    clock.run(5)
    for number in range(5000):
        succeed(history, name=f"flood-{number}", worker=f"w{number}", queue=f"q{number}")
    assert {kind: len(group) for kind, group in history.groups.items()} == {"task": 200, "worker": 100, "queue": 50}
    assert sum(name.startswith("known") for name in history.groups["task"]) >= 70
    assert sum(sum(numbers(history, "succeeded", 0, one).values()) for one in history.groups["task"].values()) == 10_000


# Gauges


def test_gauges_are_the_last_ones_of_their_slot(history: History, clock: Clock) -> None:
    history.measure({"w1": 3, "w2": 0}, {"mail": 9})
    history.measure({"w1": 1, "w2": 0}, {"mail": 4})
    clock.run(5)
    history.measure({"w1": 0}, {"mail": 0})
    # One more than the number, since 0 means unknown
    assert numbers(history, "online") == {0: 3, 5: 2}
    assert numbers(history, "executing") == {0: 2, 5: 1}
    assert numbers(history, "executing", series=history.groups["worker"]["w2"]) == {0: 1}
    queue = history.groups["queue"]["mail"]
    assert numbers(history, "length", series=queue) == numbers(history, "length") == {0: 5, 5: 1}
    assert numbers(history, "longest", series=queue) == {0: 10, 5: 1}
    assert numbers(history, "longest", 1, series=queue) == {0: 10}


def test_unknown_queue_lengths_are_no_zeros(history: History, clock: Clock) -> None:
    history.measure({"w1": 1}, {})
    assert numbers(history, "length") == {}
    assert numbers(history, "online") == {0: 2}


def test_gauges_of_many_queues_evict_none(clock: Clock) -> None:
    history = History(limits=(4, 3, 3))
    Clock(history)
    history.measure({}, {f"q{number}": number for number in range(6)})
    assert set(history.groups["queue"]) == {"q0", "q1", OTHER}
    assert numbers(history, "length", series=history.groups["queue"][OTHER]) == {0: 2 + 3 + 4 + 5 + 1}


# Covered time, steps of the clock


def covered(history: History, index: int = 0) -> dict[int, int]:
    return {moment: round(number / 1000) for moment, number in numbers(history, "covered", index).items()}


def test_slots_are_covered_while_events_can_be_received(history: History, clock: Clock) -> None:
    clock.run(12)
    clock.run(75, is_covered=False)
    clock.run(8)
    # The second in which the connection returned is not covered
    assert covered(history) == {0: 5, 5: 5, 10: 2, 85: 2, 90: 5}
    assert covered(history, 1) == {0: 12, 80: 7}


def test_a_held_event_loop_leaves_no_gap(history: History, clock: Clock) -> None:
    clock.run(4)
    clock.wall += 8.5
    clock.monotonic += 8.5
    clock.advance()
    assert numbers(history, "covered") == {0: 5000, 5: 5000, 10: 2500}


def test_a_stopped_process_leaves_a_gap(history: History, clock: Clock) -> None:
    clock.run(5)
    clock.wall += 60
    clock.monotonic += 60
    clock.advance()
    clock.run(5)
    assert covered(history) == {0: 5, 65: 5}


@pytest.mark.parametrize("step", [3600.0, -3600.0, 7.0, -7.0, -1.0])
def test_steps_of_the_clock_lose_no_count_and_no_covered_time(history: History, clock: Clock, step: float) -> None:
    # The clock is between two slots of the longest range
    clock.run(1800)
    succeed(history)
    clock.wall += step
    clock.run(600)
    succeed(history)
    clock.wall -= step
    clock.run(600)
    succeed(history)
    assert sum(numbers(history, "succeeded", DAY).values()) == 3
    assert sum(covered(history, DAY).values()) == pytest.approx(3000, abs=2)


def test_a_step_back_changes_the_generation(history: History, clock: Clock) -> None:
    """Readers must read all slots again, not only those after the latest one that they know."""
    before = history.generation
    clock.run(60)
    assert history.generation == before
    clock.wall -= 30
    clock.run(1)
    assert history.generation == before + 1


# Marks


def test_the_latest_marks_are_kept(history: History, clock: Clock) -> None:
    history.mark("started")
    for number in range(MAX_MARKS):
        clock.run(1)
        history.mark("lost" if number % 2 else "restored")
    assert len(history.marks) == MAX_MARKS
    assert history.marks[0].kind == "restored"
    assert history.marks[-1] == Mark(START + MAX_MARKS, "lost")


def test_an_incident_is_one_mark(history: History, clock: Clock) -> None:
    for _ in range(3):
        history.mark("dropped", 100)
        clock.run(1)
    clock.run(60)
    history.mark("dropped", 5)
    assert [mark.number for mark in history.marks] == [300, 5]


# Over a day


def test_memory_is_bounded_over_a_day_of_changing_names(history: History) -> None:
    """10,000 task names and 1,000 workers that come and go."""
    sizes: dict[int, int] = {}
    clock = Clock(history)
    for step in range(24 * 180):
        for number in range(step * 10_000 // 4320, (step + 1) * 10_000 // 4320):
            succeed(history, number % 50 + 0.1, f"task-{number}", f"w{number // 10}", f"q{number % 60}")
        clock.wall += 20
        clock.monotonic += 20
        clock.advance()
        if step % 360 == 359:
            sizes[step // 360] = size_of(history)
    assert sizes[11] <= sizes[5] * 1.05


def size_of(history: History) -> int:
    """Return the number of bytes of all slots."""
    every = [history.whole, *(series for group in history.groups.values() for series in group.values())]
    return sum(column.itemsize * len(column) for series in every for column in series.columns.arrays.values())
