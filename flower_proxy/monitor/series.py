"""Series of numbers in slots of several ranges of time, and groups of them with a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from flower_proxy.monitor.columns import BYTES, Columns
from flower_proxy.monitor.sketch import quantiles

EVENTS: Final = ("sent", "received", "started", "succeeded", "failed", "retried", "revoked")
# The number of measured run times and their sum in milliseconds, for the mean
_COUNTS = (*EVENTS, "timed")
_SUMS = (*_COUNTS, "runtime")
FRACTIONS: Final = (0.5, 0.95, 0.99)
_RUNTIMES, _WAITS = (tuple(f"{of}_p{round(100 * part)}" for part in FRACTIONS) for of in ("runtime", "wait"))
QUANTILES: Final = (*_RUNTIMES, *_WAITS)

OTHER = "other"
# In one slot: merging a series takes 0.3 ms, and any sender of events can choose new names
_MAX_MERGED = 30
# Slots that wait for `Series.digest`, for programs that do not call it
_MAX_ENDED = 3


@dataclass(frozen=True)
class Range:
    """A span of time with slots of one length.

    :ivar name: as in the API.
    :ivar step: length of a slot in seconds, which divides that of the next range.
    :ivar slots: number of slots.
    """

    name: str
    step: int
    slots: int

    @property
    def span(self) -> int:
        """Its length in seconds."""
        return self.step * self.slots


RANGES: Final = (Range("15m", 5, 180), Range("1h", 20, 180), Range("6h", 120, 180), Range("24h", 600, 144))
_OFFSETS = tuple(sum(range_.slots for range_ in RANGES[:index]) for index in range(len(RANGES)))
SLOTS = sum(range_.slots for range_ in RANGES)


def position_of(index: int, number: int) -> int:
    """Return the position of a slot in the columns.

    :param index: that of the range.
    :param number: time of the slot in the unit of its length, since the epoch.
    """
    return _OFFSETS[index] + number % RANGES[index].slots


Sketch = dict[int, int]
"""Number of durations by bucket."""


class _Ended(NamedTuple):
    """What a series has counted in a slot of the shortest range.

    :ivar positions: position of the slot in each range.
    :ivar has_ended: for each longer range, whether its slot has ended, too.
    """

    positions: Sequence[int]
    has_ended: Sequence[bool]
    counts: Sequence[int]
    runtime: float
    runtimes: Sketch
    waits: Sketch


class Series:
    """The numbers of the cluster, a task name, a worker or a queue.

    What has been counted is added to the slots later, by `digest` or `settle`, since that takes long for many series.

    :ivar counts: number of events by type, and of measured run times, that are not in the slots yet.
    :ivar runtime: sum of these run times, in seconds.
    :ivar runtimes: their sketch, in the open slot of the shortest range; `waits` is that of the times in a queue.
    :ivar columns: the slots of all ranges.
    :ivar active_at: number of the slot of its last event.
    """

    __slots__ = ("_ended", "_open", "_rest", "active_at", "columns", "counts", "runtime", "runtimes", "waits")

    def __init__(self, slot: int) -> None:
        self.active_at = slot
        self.counts = [0] * len(_COUNTS)
        self.runtime = self._rest = 0.0
        self.runtimes: Sketch = {}
        self.waits: Sketch = {}
        self.columns = Columns(SLOTS)
        self._ended: list[_Ended] = []
        # Sketches of run times and waits in the open slot of each longer range, without those of the shorter ones
        self._open: list[tuple[Sketch, Sketch]] = [({}, {}) for _ in RANGES[1:]]

    def close(self, slot: int, positions: Sequence[int], has_ended: Sequence[bool]) -> None:
        """Begin with a new slot of the shortest range.

        :param slot: number of the slot that has ended.
        :param positions: its position in each range.
        :param has_ended: for each longer range, whether its slot has ended, too.
        """
        is_active = any(self.counts)
        if is_active:
            self.active_at = slot
        if is_active or self.waits or self.runtimes or any(has_ended):
            ended = _Ended(positions, has_ended, self.counts, self.runtime, self.runtimes, self.waits)
            self._ended.append(ended)
            self.counts, self.runtime, self.runtimes, self.waits = [0] * len(_COUNTS), 0.0, {}, {}
        if len(self._ended) > _MAX_ENDED:
            self.digest()

    def digest(self) -> None:
        """Add what ended slots have counted, with their quantiles."""
        for ended in self._ended:
            self._add(ended.positions, ended.counts, ended.runtime)
            sketches = ended.runtimes, ended.waits
            self._set_quantiles(ended.positions[0], sketches)
            for index, has_ended in enumerate(ended.has_ended):
                merged = _both_merged(self._open[index], sketches)
                self._open[index] = merged if not has_ended else ({}, {})
                if not has_ended:
                    break
                self._set_quantiles(ended.positions[index + 1], merged)
                sketches = merged
        self._ended.clear()

    def settle(self, positions: Sequence[int], indexes: Sequence[int]) -> None:
        """Add what has been counted to the slots, and set the quantiles of open ones.

        :param positions: position of the open slot in each range.
        :param indexes: those of the ranges with these open slots, ascending.
        """
        self.digest()
        self._add(positions, self.counts, self.runtime)
        self.counts, self.runtime = [0] * len(_COUNTS), 0.0
        sketches = self.runtimes, self.waits
        for index, position in enumerate(positions[: indexes[-1] + 1]):
            if index:
                sketches = _both_merged(self._open[index - 1], sketches)
            if index in indexes:
                self._set_quantiles(position, sketches)

    def _add(self, positions: Sequence[int], counts: Sequence[int], runtime: float) -> None:
        # The rest counts later, so that rounding errors do not add up
        self._rest += runtime
        milliseconds = int(self._rest * 1000)
        self._rest -= milliseconds / 1000
        for name, number in zip(_SUMS, (*counts, milliseconds), strict=True):
            if number:
                self.columns.add(name, positions, number)

    def _set_quantiles(self, position: int, sketches: tuple[Sketch, Sketch]) -> None:
        for names, sketch in zip((_RUNTIMES, _WAITS), sketches, strict=True):
            if sketch:
                for name, bucket in zip(names, quantiles(sketch, FRACTIONS), strict=True):
                    self.columns.set(name, position, bucket, BYTES)

    def absorb(self, other: Series) -> None:
        """Add the counts of another series, and what it has observed in the open slots."""
        self.digest()
        other.digest()
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.runtime += other.runtime + other._rest
        self.runtimes, self.waits = _merged(self.runtimes, other.runtimes), _merged(self.waits, other.waits)
        self._open = list(map(_both_merged, self._open, other._open))
        self.columns.add_all(other.columns, _SUMS)


def _both_merged(left: tuple[Sketch, Sketch], right: tuple[Sketch, Sketch]) -> tuple[Sketch, Sketch]:
    return _merged(left[0], right[0]), _merged(left[1], right[1])


def _merged(left: Sketch, right: Sketch) -> Sketch:
    if not left or not right:
        return left or right
    merged = dict(left)
    for bucket, number in right.items():
        merged[bucket] = merged.get(bucket, 0) + number
    return merged


class Group(dict[str, Series]):
    """The series of the tasks, workers or queues, by name; a missing one is created.

    If there are too many, the one that has been silent longest is merged into `OTHER`.

    :param limit: maximum number of series, including `OTHER`.
    :ivar slot: number of the open slot.
    :ivar merged: number of series that have been merged in the open slot.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self.slot = 0
        self.merged = 0

    def _is_full(self) -> bool:
        return len(self) >= self._limit - (OTHER not in self)

    def totals(self, numbers: Mapping[str, int]) -> list[tuple[Series, int]]:
        """Return numbers by series; if there are too many names, those of the rest are added to `OTHER`."""
        totals: Counter[str] = Counter()
        for name, number in numbers.items():
            if name not in self and not self._is_full():
                self[name] = Series(self.slot)
            totals[name if name in self else OTHER] += number
        return [(self[name], number) for name, number in totals.items()]

    def __missing__(self, name: str) -> Series:
        if name != OTHER and self._is_full():
            if self.merged >= _MAX_MERGED:
                return self[OTHER]
            self.merged += 1
            # What has counted since the last slot is active
            silent = min(
                (key for key in self if key != OTHER), key=lambda key: (any(self[key].counts), self[key].active_at)
            )
            self[OTHER].absorb(self.pop(silent))
        series = self[name] = Series(self.slot)
        return series
