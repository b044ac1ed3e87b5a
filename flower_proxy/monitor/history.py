"""Counts, durations and gauges of the cluster, its tasks, workers and queues, in slots of time.

Times are those of handling: late events, and those of workers whose clocks differ, count when they are handled. Slots
are aligned to the wall clock. Counts are exact; quantiles are those of their own slot, from a sketch that is kept while
the slot is open.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from flower_proxy.monitor.series import EVENTS, RANGES, SLOTS, Group, Series, position_of
from flower_proxy.monitor.sketch import bucket_of

MAX_MARKS = 100
# Between two calls of `advance`: after longer ones, the process has not run
_LONGEST_PAUSE = 10.0  # seconds
_STEP = RANGES[0].step
_INDEX = {f"task-{name}": index for index, name in enumerate(EVENTS)}
_SENT, _TIMED = 0, len(EVENTS)


@dataclass(frozen=True)
class Mark:
    """Something that happened to flower-proxy.

    :ivar time: seconds since the epoch.
    :ivar kind: ``started``, ``lost``, ``restored``, ``dropped`` or ``missed``.
    :ivar number: of events or tasks; 0 if it has none.
    """

    time: float
    kind: str
    number: int = 0


@dataclass(frozen=True)
class SavedSeries:
    """The slots of a series.

    :ivar kind: ``task``, ``worker`` or ``queue``; empty for the whole cluster.
    :ivar columns: `Saved.slots` numbers by column.
    """

    kind: str
    name: str
    active_at: int
    columns: Mapping[str, array[int]]


@dataclass(frozen=True)
class Saved:
    """A copy of a history.

    :ivar slot: number of the open slot.
    :ivar latest: number of the latest slot of each range.
    """

    slots: ClassVar = SLOTS
    slot: int
    latest: Sequence[int]
    began: float
    marks: Sequence[Mark]
    series: Sequence[SavedSeries]


class History:
    """What the Monitor page shows; counts in the same calls as the metrics.

    `advance` must be called before the first event, then regularly, several times per slot.

    :param generation: differs from that of earlier runs.
    :param limits: maximum number of task names, workers and queues.
    :ivar whole: the series of the whole cluster.
    :ivar groups: the series of each task name, worker and queue, by kind.
    :ivar marks: the latest marks.
    :ivar generation: grows whenever slots before the open one have changed.
    :ivar began: time of the first slot, in seconds since the epoch; None before it.
    """

    def __init__(self, generation: int = 0, *, limits: tuple[int, int, int] = (200, 100, 50)) -> None:
        self.whole = Series(0)
        self.groups = {kind: Group(limit) for kind, limit in zip(("task", "worker", "queue"), limits, strict=True)}
        self._tasks, self._workers, self._queues = self.groups.values()
        self.marks: deque[Mark] = deque(maxlen=MAX_MARKS)
        self.generation = generation
        self.began: float | None = None
        self._slot = 0
        # Number of the latest slot of each range
        self._latest = [0] * len(RANGES)
        self._now = self._monotonic = 0.0
        self._is_covered = False
        self._covered = 0.0

    # Events

    def count(self, kind: str, name: str, worker: str, queue: str) -> None:
        """Count an event.

        :param kind: its type.
        :param name: that of the task.
        :param worker: the worker or client that sent it.
        :param queue: that of the task.
        """
        index = _INDEX.get(kind)
        if index is None:
            return
        self.whole.counts[index] += 1
        self._tasks[name].counts[index] += 1
        self._queues[queue].counts[index] += 1
        # Clients send tasks
        if index != _SENT:
            self._workers[worker].counts[index] += 1

    def observe_runtime(self, runtime: float, name: str, worker: str, queue: str) -> None:
        """Count the run time of a task, after the event of its end.

        :param runtime: seconds.
        """
        bucket = bucket_of(runtime)
        for series in (self.whole, self._tasks[name], self._workers[worker], self._queues[queue]):
            series.counts[_TIMED] += 1
            series.runtime += runtime
            series.runtimes[bucket] = series.runtimes.get(bucket, 0) + 1

    def observe_wait(self, wait: float, name: str, worker: str, queue: str) -> None:
        """Count the time that a task waited in its queue, after the event of its start.

        :param wait: seconds.
        """
        bucket = bucket_of(wait)
        for series in (self.whole, self._tasks[name], self._workers[worker], self._queues[queue]):
            series.waits[bucket] = series.waits.get(bucket, 0) + 1

    def mark(self, kind: str, number: int = 0) -> None:
        """Remember that something happened now; adds the number to the latest mark if that has the same kind."""
        if number and self.marks and self.marks[-1].kind == kind and self._now - self.marks[-1].time < _STEP:
            number += self.marks.pop().number
        self.marks.append(Mark(self._now, kind, number))

    # Gauges

    def measure(self, executing: Mapping[str, int], lengths: Mapping[str, int]) -> None:
        """Record the current state.

        :param executing: number of running tasks by online worker.
        :param lengths: number of messages by queue; empty if unknown.
        """
        positions = self._positions()
        self._gauge(self.whole, "online", len(executing), positions)
        self._gauge(self.whole, "executing", sum(executing.values()), positions)
        if lengths:
            self._gauge(self.whole, "length", sum(lengths.values()), positions)
        for name, group, numbers in (("executing", self._workers, executing), ("length", self._queues, lengths)):
            for series, number in group.totals(numbers):
                self._gauge(series, name, number, positions)

    def _gauge(self, series: Series, name: str, number: int, positions: Sequence[int]) -> None:
        if number:
            series.active_at = self._slot
        columns = series.columns
        for position in positions:
            # 0 means unknown
            columns.set(name, position, number + 1)
            if name == "length":
                columns.set("longest", position, max(columns["longest", position], number + 1))

    # Time

    def advance(self, now: float, monotonic: float, *, is_covered: bool) -> None:
        """Close the slots that have ended.

        :param now: the wall clock's seconds since the epoch.
        :param monotonic: seconds by a clock that never steps.
        :param is_covered: whether events have been received from the last call until now.
        """
        slot = int(now // _STEP)
        if self.began is None:
            self._begin(slot)
        elapsed = monotonic - self._monotonic
        if not (is_covered and self._is_covered and elapsed <= _LONGEST_PAUSE):
            elapsed = 0.0
        if 0 < slot - self._slot <= _LONGEST_PAUSE / _STEP + 1:
            # Each slot is covered up to its end
            rest = min(elapsed, max(0.0, now - slot * _STEP))
            missing = elapsed - rest
            while self._slot < slot:
                part = min(missing, max(0.0, (self._slot + 1) * _STEP - self._now))
                self._covered += part
                missing -= part
                self._move(self._slot + 1)
                self._now = self._slot * _STEP
            self._covered += rest + missing
        else:
            self._covered += elapsed
            if slot != self._slot:
                self._move(slot)
        self._now, self._monotonic, self._is_covered = now, monotonic, is_covered

    def _begin(self, slot: int) -> None:
        self.began = float(slot * _STEP)
        self._slot = slot
        self._latest = [slot * _STEP // range_.step for range_ in RANGES]
        for group in self.groups.values():
            group.slot = slot

    def _move(self, slot: int) -> None:
        """Close the open slot and open another one."""
        self._add_covered()
        positions = self._positions()
        old, new = ([number * _STEP // range_.step for range_ in RANGES] for number in (self._slot, slot))
        has_ended = [before != after for before, after in zip(old[1:], new[1:], strict=True)]
        is_next = slot == self._slot + 1
        if slot < self._slot:
            self.generation += 1
        for series in self._all():
            series.close(self._slot, positions, has_ended)
            if not is_next:
                # Before its slots are cleared
                series.digest()
        self._slot = slot
        for group in self.groups.values():
            group.slot, group.merged = slot, 0
        for index, number in enumerate(new):
            self._open(index, number)

    def _open(self, index: int, number: int) -> None:
        latest, slots = self._latest[index], RANGES[index].slots
        # After a step of the clock backwards, counts are added to the slots that exist
        if latest - slots < number <= latest:
            return
        self._latest[index] = number
        first = latest + 1 if latest < number < latest + slots else number - slots + 1
        cleared = [position_of(index, past) for past in range(first, number + 1)]
        for series in self._all():
            series.columns.clear(cleared)

    def _add_covered(self) -> None:
        milliseconds = int(self._covered * 1000)
        self._covered -= milliseconds / 1000
        self.whole.columns.add("covered", self._positions(), milliseconds)

    def digest(self) -> Generator[None, None, None]:
        """Add what ended slots have counted, for `flower_proxy._slices.in_slices`."""
        for series in list(self._all()):
            series.digest()
            yield

    def settle(self, indexes: Sequence[int] = (0,), of: Iterable[Series] | None = None) -> None:
        """Add what has been counted to the slots, so that they can be read.

        :param indexes: those of the ranges whose open slots will be read, ascending.
        :param of: the series that will be read; None for all.
        """
        self._add_covered()
        positions = self._positions()
        for series in self._all() if of is None else of:
            series.settle(positions, indexes)

    def _positions(self) -> list[int]:
        return [position_of(index, self._slot * _STEP // range_.step) for index, range_ in enumerate(RANGES)]

    def _all(self) -> Iterable[Series]:
        yield self.whole
        for group in self.groups.values():
            yield from group.values()

    def times(self, index: int) -> range:
        """Return the times of the slots of a range, in seconds since the epoch.

        :param index: that of the range.
        """
        range_, latest = RANGES[index], self._latest[index]
        return range((latest - range_.slots + 1) * range_.step, (latest + 1) * range_.step, range_.step)

    # Restarts

    def save(self) -> Saved:
        """Return a copy, for `restore`; the sketches of open slots are not in it."""
        self.settle(range(len(RANGES)))
        series = [("", "", self.whole)]
        series += [(kind, name, one) for kind, group in self.groups.items() for name, one in group.items()]
        return Saved(
            slot=self._slot,
            latest=list(self._latest),
            began=self.began or 0.0,
            marks=list(self.marks),
            series=[
                SavedSeries(kind, name, one.active_at, {key: column[:] for key, column in one.columns.arrays.items()})
                for kind, name, one in series
            ],
        )

    def restore(self, saved: Saved) -> None:
        """Continue a history, before the first call of `advance`.

        :raises ValueError: it has other ranges or groups.
        """
        if len(saved.latest) != len(RANGES) or {one.kind for one in saved.series} - {"", *self.groups}:
            raise ValueError("it has other ranges")
        self.began, self._slot, self._latest = saved.began, saved.slot, list(saved.latest)
        self.marks.extend(saved.marks)
        for one in saved.series:
            series = self.groups[one.kind][one.name] if one.kind else self.whole
            series.active_at = one.active_at
            series.columns.arrays.update(one.columns)
