"""Metric families and their exposition in slices, so that a large scrape does not block the event loop.

The output equals prometheus_client's, in text format 0.0.4 and OpenMetrics 1.0.0, without ``_created`` series.
prometheus_client itself takes more than a second, uninterrupted, for 100,000 lines.
Families are not thread-safe: one thread updates and renders them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from math import inf
from typing import ClassVar, Generic, Protocol, TypeVar

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SLICE_LINES = 2000

# Placeholder for the labels, inserted after the numbers are formatted, since labels may contain %
_LABELS = "\0"
# Formats a value as an empty string
_OMIT = "%.0s"

_go_float: Callable[[float], str] = floatToGoString


def negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Choose the text format for an ``Accept`` header.

    :returns: prometheus_client's encoder and the content type.
    """
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # prometheus_client fails on malformed version parameters
        return choose_encoder("")


def document(
    families: Iterable[Family],
    rest: Collector,
    *,
    encoder: Callable[[Collector], bytes],
    openmetrics: bool,
    names: Collection[str] | None = None,
) -> Iterator[bytes]:
    """Yield the exposition of families and of a collector in slices.

    :param rest: the collector whose metrics follow the families. prometheus_client renders them and the final
        ``# EOF`` of OpenMetrics, even if there are none.
    :param encoder: prometheus_client's encoder, from `negotiate`.
    :param openmetrics: whether `encoder` writes OpenMetrics.
    :param names: see `render`.
    """
    for text in render(families, openmetrics=openmetrics, names=names):
        yield text.encode()
    yield encoder(_Filter(rest, names))


class _Filter(Collector):
    """The metrics of a collector without ``_created`` samples, restricted to the samples in `names` if given."""

    def __init__(self, collector: Collector, names: Collection[str] | None) -> None:
        self._collector, self._names = collector, names

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            metric.samples = [sample for sample in metric.samples if self._includes(sample.name)]
            if metric.samples:
                yield metric

    def _includes(self, name: str) -> bool:
        return not name.endswith("_created") and (self._names is None or name in self._names)


def render(families: Iterable[Family], *, openmetrics: bool, names: Collection[str] | None = None) -> Iterator[str]:
    """Yield the text of families in slices of about `SLICE_LINES` lines.

    Families may change between two slices; the lines of one series are always consistent.

    :param names: the sample names to include, with suffixes such as ``_total``; None includes all.
    """
    for family in families:
        samples = [name for name in family.sample_names() if names is None or name in names]
        if samples:
            yield family.metadata(openmetrics)
            yield from family.slices(samples)


class Family(ABC):
    """Metric family: all series of one name.

    :param name: the name without the suffix of its samples (``_total``, ``_bucket``).
    :param help: one line without quotes and backslashes.
    :param labels: the label names; values are passed in this order.
    :param samples: the sample name and extra label of each number of a series, in order.
    """

    type: ClassVar[str]

    def __init__(self, name: str, help: str, labels: Sequence[str], samples: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._samples = samples
        self._labels_template = ",".join(f'{label}="%s"' for label in labels)

    def sample_names(self) -> list[str]:
        """Return the sample names, without duplicates."""
        return list(dict.fromkeys(name for name, _ in self._samples))

    def blocks(self, openmetrics: bool) -> Iterator[str]:
        """Yield the text: metadata, then the series in slices."""
        return render([self], openmetrics=openmetrics)

    def metadata(self, openmetrics: bool) -> str:
        """Return the ``# HELP`` and ``# TYPE`` lines."""
        name = self.name if openmetrics else self._name_in_text()
        return f"# HELP {name} {self.help}\n# TYPE {name} {self.type}\n"

    def slices(self, names: Collection[str]) -> Iterator[str]:
        """Yield the lines of the samples in `names`, in slices."""
        lines = [self._line(name, label) if name in names else _OMIT for name, label in self._samples]
        template = "".join(lines)
        series = iter(self._snapshot())
        size = max(1, SLICE_LINES // len(lines))
        while texts := [(template % one.numbers()).replace(_LABELS, one.labels) for one in islice(series, size)]:
            yield "".join(texts)

    @abstractmethod
    def _snapshot(self) -> Iterable[_Series]:
        """Return the current series; later changes do not affect the iteration."""

    def _line(self, name: str, label: str) -> str:
        labels = ",".join(filter(None, (_LABELS if self.labels else "", label)))
        return f"{name}{{{labels}}} %s\n" if labels else f"{name} %s\n"

    def _name_in_text(self) -> str:
        return self.name

    def _labels_text(self, values: tuple[str, ...]) -> str:
        text = self._labels_template % values
        if text.count('"') == 2 * len(values) and "\\" not in text and "\n" not in text:
            return text
        return self._labels_template % tuple(map(_escaped, values))


class _Series(Protocol):
    @property
    def labels(self) -> str: ...

    def numbers(self) -> tuple[object, ...]: ...


class Number:
    """Series of a counter or gauge.

    :ivar labels: the text of its labels.
    """

    __slots__ = ("labels", "value")

    def __init__(self, labels: str, value: float = 0) -> None:
        self.labels = labels
        self.value = value

    def numbers(self) -> tuple[object, ...]:
        """Return the values of the samples."""
        return (_number(self.value),)


class Distribution:
    """Series of a histogram.

    :param labels: the text of its labels.
    :param bounds: upper bounds of the buckets except +Inf, ascending.
    """

    __slots__ = ("bounds", "counts", "labels", "sum")

    def __init__(self, labels: str, bounds: Sequence[float]) -> None:
        self.labels = labels
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value, which must be finite and not negative."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def numbers(self) -> tuple[object, ...]:
        """Return the values of the samples."""
        up_to = list(accumulate(self.counts))
        return (*up_to, up_to[-1], _number(self.sum))


@dataclass(frozen=True)
class SeriesLimit:
    """Cardinality limit: beyond it a family aggregates new series.

    :ivar number: maximum number of series.
    :ivar labels: the labels whose values are replaced by `other` in aggregated series.
    """

    number: int
    labels: Collection[str]
    other: str


SeriesT = TypeVar("SeriesT", bound=_Series)


class _StatefulFamily(Family, Generic[SeriesT]):
    """Family that keeps its series between scrapes.

    :param new: creates a series from the text of its labels.
    :param limit: None for a family whose labels have few values.
    """

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        samples: Sequence[tuple[str, str]],
        new: Callable[[str], SeriesT],
        limit: SeriesLimit | None,
    ) -> None:
        super().__init__(name, help, labels, samples)
        self._new = new
        self._limit = limit
        self._series: dict[tuple[str, ...], SeriesT] = {}

    def __len__(self) -> int:
        """Return the number of series."""
        return len(self._series)

    def series(self, *values: str) -> SeriesT:
        """Return a series, which counts until it is removed; create it with 0, if it does not exist."""
        series = self._series.get(values)
        if series is None and self._limit is not None and len(self._series) >= self._limit.number:
            pairs, limit = zip(self.labels, values, strict=True), self._limit
            values = tuple(limit.other if label in limit.labels else value for label, value in pairs)
            series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._new(self._labels_text(values))
        return series

    def values(self, label: str) -> set[str]:
        """Return the values of a label in all series."""
        index = self.labels.index(label)
        return {key[index] for key in self._series}

    def remove(self, label: str, values: Collection[str]) -> None:
        """Remove the series in which a label has one of these values."""
        index = self.labels.index(label)
        for key in [key for key in self._series if key[index] in values]:
            del self._series[key]

    def _snapshot(self) -> list[SeriesT]:
        return list(self._series.values())


class Counter(_StatefulFamily[Number]):
    """Counter family. `name` has no ``_total`` suffix; see `Family`."""

    type = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, limit: SeriesLimit | None = None) -> None:
        super().__init__(name, help, labels, [(f"{name}_total", "")], Number, limit)

    def inc(self, *values: str, by: float = 1) -> None:
        """Increase a series by `by`, which must not be negative."""
        self.series(*values).value += by

    def _name_in_text(self) -> str:
        return f"{self.name}_total"


class Histogram(_StatefulFamily[Distribution]):
    """Histogram family; see `Family`.

    :param buckets: upper bounds, ascending; +Inf is added.
    :raises ValueError: `buckets` is empty or does not ascend.
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
            raise ValueError(f"{name}: buckets must ascend, got {list(buckets)}")
        self._bounds = [float(bound) for bound in buckets if bound != inf]
        samples = [(f"{name}_bucket", f'le="{_go_float(bound)}"') for bound in (*self._bounds, inf)]
        samples += [(f"{name}_count", ""), (f"{name}_sum", "")]
        super().__init__(name, help, labels, samples, lambda text: Distribution(text, self._bounds), limit)

    def observe(self, value: float, *values: str) -> None:
        """Count a value, which must be finite and not negative."""
        self.series(*values).observe(value)


class Gauge(Family):
    """Gauge family, created for one scrape; see `Family`."""

    type = "gauge"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels, [(name, "")])
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *values: str) -> None:
        """Set the value of a series."""
        self._values[values] = value

    def _snapshot(self) -> Iterator[_Series]:
        for values, value in list(self._values.items()):
            yield Number(self._labels_text(values), value)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    # Most values are integers, and str is faster
    return str(value) if type(value) is int else _go_float(value)
