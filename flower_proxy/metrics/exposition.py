"""Metrics and their text for Prometheus, made quickly and in slices between which others have their turn.

The text is that of prometheus_client, in the text format 0.0.4 and in OpenMetrics 1.0.0, without ``_created`` series.
For a hundred thousand lines prometheus_client takes more than a second at one go, which is worth a module of our own.
Nothing here is locked: families belong to the thread that counts and renders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from math import inf
from typing import ClassVar, Generic, Protocol, TypeVar

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SLICE_LINES = 2000

# Stands in a template for the labels of a series, which come in after the numbers: they may hold anything
_LABELS = "\0"
# Takes a number and prints nothing
_NOTHING = "%.0s"

_as_go_writes: Callable[[float], str] = floatToGoString


def negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Choose the text format for an ``Accept`` header.

    :returns: prometheus_client's encoder and the content type.
    """
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # prometheus_client compares whatever a client calls a version with numbers
        return choose_encoder("")


def document(
    families: Iterable[Family],
    rest: Collector,
    *,
    encoder: Callable[[Collector], bytes],
    openmetrics: bool,
    names: Collection[str] | None = None,
) -> Iterator[bytes]:
    """Yield a whole document in slices, as `render`.

    :param rest: its metrics follow the families. prometheus_client writes them, and with them the ``# EOF`` at the end
        of OpenMetrics, even if there are none.
    :param encoder: of prometheus_client, as `negotiate` returns it.
    """
    for text in render(families, openmetrics=openmetrics, names=names):
        yield text.encode()
    yield encoder(_Wanted(rest, names))


class _Wanted(Collector):
    """The same metrics without ``_created`` samples, and, if names are given, with those samples alone."""

    def __init__(self, collector: Collector, names: Collection[str] | None) -> None:
        self._collector, self._names = collector, names

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            metric.samples = [sample for sample in metric.samples if self._is_wanted(sample.name)]
            if metric.samples:
                yield metric

    def _is_wanted(self, name: str) -> bool:
        return not name.endswith("_created") and (self._names is None or name in self._names)


def render(families: Iterable[Family], *, openmetrics: bool, names: Collection[str] | None = None) -> Iterator[str]:
    """Yield the text of families in slices of about `SLICE_LINES` lines.

    Between two slices the families may change; the lines of one series always fit each other.

    :param names: the samples that are wanted, as they are called in the text (``x_total``); None means all.
    """
    for family in families:
        samples = [name for name in family.sample_names() if names is None or name in names]
        if samples:
            yield family.metadata(openmetrics)
            yield from family.slices(samples)


class Family(ABC):
    """All series of one name.

    :param name: without what the samples have at the end (``_total``, ``_bucket``).
    :param help: one line without quotes and backslashes.
    :param labels: the names; wherever values are passed, they come in this order.
    :param samples: of each number of a series, what its line is called and the label that it has besides, in order.
    """

    type: ClassVar[str]

    def __init__(self, name: str, help: str, labels: Sequence[str], samples: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._samples = samples
        self._labels_template = ",".join(f'{label}="%s"' for label in labels)

    def sample_names(self) -> list[str]:
        """Return the names that stand before the numbers."""
        return list(dict.fromkeys(name for name, _ in self._samples))

    def blocks(self, openmetrics: bool) -> Iterator[str]:
        """Yield all its text: what it is, then its series in slices."""
        return render([self], openmetrics=openmetrics)

    def metadata(self, openmetrics: bool) -> str:
        """Return what stands above the series."""
        name = self.name if openmetrics else self._name_in_text()
        return f"# HELP {name} {self.help}\n# TYPE {name} {self.type}\n"

    def slices(self, names: Collection[str]) -> Iterator[str]:
        """Yield the lines that have one of these names."""
        lines = [self._line(name, label) if name in names else _NOTHING for name, label in self._samples]
        template = "".join(lines)
        series = iter(self._all())
        most = max(1, SLICE_LINES // len(lines))
        while texts := [(template % one.numbers()).replace(_LABELS, one.labels) for one in islice(series, most)]:
            yield "".join(texts)

    @abstractmethod
    def _all(self) -> Iterable[_Series]:
        """Return the series that are there now, even if some are removed later."""

    def _line(self, name: str, label: str) -> str:
        labels = ",".join(filter(None, (_LABELS if self.labels else "", label)))
        return f"{name}{{{labels}}} %s\n" if labels else f"{name} %s\n"

    def _name_in_text(self) -> str:
        return self.name

    def _labels_text(self, values: tuple[str, ...]) -> str:
        return self._labels_template % tuple(map(_escaped, values))


class _Series(Protocol):
    @property
    def labels(self) -> str: ...

    def numbers(self) -> tuple[object, ...]: ...


class _Number:
    __slots__ = ("labels", "value")

    def __init__(self, labels: str, value: float = 0) -> None:
        self.labels = labels
        self.value = value

    def numbers(self) -> tuple[object, ...]:
        return (_number(self.value),)


class _Distribution:
    __slots__ = ("counts", "labels", "sum")

    def __init__(self, labels: str, buckets: int) -> None:
        self.labels = labels
        self.counts = [0] * buckets
        self.sum = 0.0

    def numbers(self) -> tuple[object, ...]:
        up_to = list(accumulate(self.counts))
        return (*up_to, up_to[-1], _number(self.sum))


@dataclass(frozen=True)
class SeriesLimit:
    """The number of series beyond which a family aggregates new ones.

    :ivar number: of series.
    :ivar labels: the labels whose values become `other` in the series that are aggregated.
    """

    number: int
    labels: Collection[str]
    other: str


Kept = TypeVar("Kept", bound=_Series)


class _Lasting(Family, Generic[Kept]):
    """A family that keeps its series, made by `new` from the text of their labels.

    :param limit: None for a family whose labels have few values.
    """

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        samples: Sequence[tuple[str, str]],
        new: Callable[[str], Kept],
        limit: SeriesLimit | None,
    ) -> None:
        super().__init__(name, help, labels, samples)
        self._new = new
        self._limit = limit
        self._series: dict[tuple[str, ...], Kept] = {}

    def __len__(self) -> int:
        """Return the number of series."""
        return len(self._series)

    def touch(self, *values: str) -> None:
        """Let the series be there, with 0 if it is new."""
        self._at(values)

    def values(self, label: str) -> set[str]:
        """Return the values that a label has in any series."""
        index = self.labels.index(label)
        return {key[index] for key in self._series}

    def remove(self, label: str, values: Collection[str]) -> None:
        """Forget the series whose label has one of these values."""
        index = self.labels.index(label)
        for key in [key for key in self._series if key[index] in values]:
            del self._series[key]

    def _at(self, values: tuple[str, ...]) -> Kept:
        series = self._series.get(values)
        if series is None and self._limit is not None and len(self._series) >= self._limit.number:
            pairs, limit = zip(self.labels, values, strict=True), self._limit
            values = tuple(limit.other if label in limit.labels else value for label, value in pairs)
            series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._new(self._labels_text(values))
        return series

    def _all(self) -> list[Kept]:
        return list(self._series.values())


class Counter(_Lasting[_Number]):
    """Counts what happens. Its name is given without ``_total``; else see `Family`."""

    type = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, limit: SeriesLimit | None = None) -> None:
        super().__init__(name, help, labels, [(f"{name}_total", "")], _Number, limit)

    def inc(self, *values: str, by: float = 1) -> None:
        """Count one more, or `by` more, which is not negative."""
        self._at(values).value += by

    def _name_in_text(self) -> str:
        return f"{self.name}_total"


class Histogram(_Lasting[_Distribution]):
    """Counts measured values by size.

    :param buckets: upper bounds, ascending; +Inf comes by itself. Else see `Family`.
    :raises ValueError: if they do not ascend or there is none.
    """

    type = "histogram"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        limit: SeriesLimit | None = None,
    ) -> None:
        if not buckets or any(low >= high for low, high in pairwise(buckets)):
            raise ValueError(f"the buckets of {name} must ascend")
        self._bounds = [float(bound) for bound in buckets if bound != inf]
        samples = [(f"{name}_bucket", f'le="{_as_go_writes(bound)}"') for bound in (*self._bounds, inf)]
        samples += [(f"{name}_count", ""), (f"{name}_sum", "")]
        number = len(self._bounds) + 1
        super().__init__(name, help, labels, samples, lambda text: _Distribution(text, number), limit)

    def observe(self, value: float, *values: str) -> None:
        """Count a value that was measured, finite and not negative."""
        series = self._at(values)
        series.counts[bisect_left(self._bounds, value)] += 1
        series.sum += value


class Gauge(Family):
    """What there is at this moment: made anew for each scrape, thrown away after it. See `Family`."""

    type = "gauge"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels, [(name, "")])
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *values: str) -> None:
        """Let the series be of this value."""
        self._values[values] = value

    def _all(self) -> Iterator[_Series]:
        for values, value in list(self._values.items()):
            yield _Number(self._labels_text(values), value)


@lru_cache(maxsize=4096)
def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    # Most are integers, which need neither a point nor the time to find that out
    return str(value) if type(value) is int else _as_go_writes(value)
