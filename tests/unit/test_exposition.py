"""Exposition of metric families, compared with prometheus_client's output for the same observations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf

import prometheus_client as theirs
import prometheus_client.openmetrics.exposition
import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flower_proxy.metrics.exposition import SLICE_LINES, Counter, Family, Gauge, Histogram, render

# prometheus_client has no type hints for these
parse_text: Callable[[str], Iterable[Metric]] = prometheus_client.parser.text_string_to_metric_families
parse_openmetrics: Callable[[str], Iterable[Metric]] = (
    prometheus_client.openmetrics.parser.text_string_to_metric_families
)
their_openmetrics: Callable[[Collector], bytes] = prometheus_client.openmetrics.exposition.generate_latest

BUCKETS = (0.005, 0.1, 1, 2.5, 60.0, 3600)

LABELS = {
    "plain": "worker1@example.com",
    "empty": "",
    "quotes": 'say "add"',
    "backslashes": "C:\\new\\",
    "an escaped newline": "\\n",
    "newline": "first\nsecond",
    "other line ends": "a\rb\x0bc\x85d\u2028e",
    "unicode": "tâche 任務 \U0001f33c",
    "format strings": "100% %s %(x)d {0} {x}",
    "zero byte": "a\0b",
    "end of a sample": '"} 1',
    "braces and commas": '{a="b",c="d"}',
}

Sample = tuple[str, frozenset[tuple[str, str]]]


class Both:
    """The same families of flower-proxy and of prometheus_client."""

    def __init__(self) -> None:
        self.registry = theirs.CollectorRegistry()
        self.counters = (
            Counter("events", "Events.", ("worker", "task")),
            theirs.Counter("events", "Events.", ["worker", "task"], registry=self.registry),
        )
        self.histograms = (
            Histogram("runtime_seconds", "Run time.", ("worker", "task"), buckets=BUCKETS),
            theirs.Histogram(
                "runtime_seconds", "Run time.", ["worker", "task"], buckets=BUCKETS, registry=self.registry
            ),
        )
        self.gauges = (
            Gauge("tasks", "Tasks.", ("worker", "task")),
            theirs.Gauge("tasks", "Tasks.", ["worker", "task"], registry=self.registry),
        )

    @property
    def ours(self) -> list[Family]:
        return [self.counters[0], self.histograms[0], self.gauges[0]]

    def inc(self, *labels: str, by: float = 1) -> None:
        self.counters[0].inc(*labels, by=by)
        self.counters[1].labels(*labels).inc(by)

    def observe(self, value: float, *labels: str) -> None:
        self.histograms[0].observe(value, *labels)
        self.histograms[1].labels(*labels).observe(value)

    def set(self, value: float, *labels: str) -> None:
        self.gauges[0].set(value, *labels)
        self.gauges[1].labels(*labels).set(value)

    def assert_same(self) -> None:
        text = "".join(render(self.ours, openmetrics=True)) + "# EOF\n"
        assert read(parse_openmetrics(text)) == read(parse_openmetrics(their_openmetrics(self.registry).decode()))
        self.assert_same_text()

    def assert_same_text(self, names: Collection[str] | None = None) -> None:
        registry = self.registry if names is None else self.registry.restricted_registry(names)
        text = "".join(render(self.ours, openmetrics=False, names=names))
        assert read(parse_text(text)) == read(parse_text(theirs.generate_latest(registry).decode()))


def read(families: Iterable[Metric]) -> dict[tuple[str, str, str], dict[Sample, float]]:
    """The samples of each family by its name, type and help, without ``_created``."""
    found = {}
    for family in families:
        samples = {(one.name, frozenset(one.labels.items())): one.value for one in family.samples}
        samples = {key: value for key, value in samples.items() if not key[0].endswith("_created")}
        if samples or not family.samples:
            found[family.name, family.type, family.documentation] = samples
    return found


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_any_label_value_round_trips(label: str) -> None:
    both = Both()
    for labels in ((label, "add"), ("worker1", label), (label, label)):
        both.inc(*labels)
        both.observe(0.5, *labels)
        both.set(3, *labels)
    both.assert_same()


@pytest.mark.parametrize(
    "value",
    [0, 1, 7, 0.0, 1.0, 0.1 + 0.2, 1e-9, 123456.75, 1234567.0, 1e16, 1.5e300, 10**15, True],
    ids=repr,
)
def test_numbers_round_trip(value: float) -> None:
    both = Both()
    both.inc("w", "t", by=value)
    both.observe(value, "w", "t")
    both.set(value, "w", "t")
    both.assert_same()


@pytest.mark.parametrize("value", [-1, -2.5, inf, -inf], ids=repr)
def test_gauges_can_be_negative_or_infinite(value: float) -> None:
    both = Both()
    both.set(value, "w", "t")
    both.assert_same()


def test_gauges_can_be_nan() -> None:
    gauge = Gauge("age", "Age.")
    gauge.set(math.nan)
    assert lines(gauge)[2:] == ["age NaN"]


@pytest.mark.parametrize("value", [0, 0.005, 0.0050001, 1, 60, 3600, 3600.5, 1e9], ids=repr)
def test_observations_count_in_all_buckets_above(value: float) -> None:
    both = Both()
    both.observe(value, "w", "t")
    both.observe(0.5, "w", "t")
    both.assert_same()


labels = st.tuples(st.text(max_size=5), st.text(max_size=5))
numbers = st.floats(min_value=0, max_value=1e12) | st.integers(min_value=0, max_value=10**12)


# st.text excludes surrogates, which events cannot contain either
@given(st.lists(st.tuples(st.sampled_from(["inc", "observe", "set"]), labels, numbers), max_size=20))
def test_arbitrary_observations_equal_prometheus_client(
    observations: list[tuple[str, tuple[str, str], float]],
) -> None:
    both = Both()
    for method, (worker, task), number in observations:
        if method == "inc":
            both.inc(worker, task, by=number)
        elif method == "observe":
            both.observe(number, worker, task)
        else:
            both.set(number, worker, task)
    both.assert_same()


def sample_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith("#")]


def lines(*families: Family, openmetrics: bool = False) -> list[str]:
    text = "".join(render(families, openmetrics=openmetrics))
    return text.removesuffix("\n").split("\n")


def test_bucket_bounds_are_formatted_like_prometheus_client() -> None:
    bounds = (0.005, 1, 2.5, 60.0, 3600, 1000000, 1e21, inf)
    histogram = Histogram("t", "T.", buckets=bounds)
    histogram.series()
    written = [line.partition('"')[2].partition('"')[0] for line in lines(histogram) if "_bucket" in line]
    registry = theirs.CollectorRegistry()
    their = theirs.Histogram("t", "T.", buckets=bounds, registry=registry)
    samples = next(iter(their.collect())).samples
    assert written == [sample.labels["le"] for sample in samples if sample.name == "t_bucket"]
    assert written[:3] == ["0.005", "1.0", "2.5"]
    assert written[-1] == "+Inf"


@pytest.mark.parametrize("buckets", [(), (1, 1), (2, 1), (1, inf, 3)], ids=str)
def test_buckets_must_ascend(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="t: buckets must ascend"):
        Histogram("t", "T.", buckets=buckets)


def test_families_can_have_no_labels() -> None:
    counter, gauge, histogram = Counter("c", "C."), Gauge("g", "G."), Histogram("h", "H.", buckets=(1,))
    counter.inc()
    gauge.set(2)
    histogram.observe(3)
    assert lines(counter)[2:] == ["c_total 1"]
    assert lines(gauge)[2:] == ["g 2"]
    assert lines(histogram)[2:] == ['h_bucket{le="1.0"} 0', 'h_bucket{le="+Inf"} 1', "h_count 1", "h_sum 3.0"]


def test_counter_metadata_has_the_total_suffix_only_in_text_format() -> None:
    counter = Counter("events", "Events.")
    assert lines(counter) == ["# HELP events_total Events.", "# TYPE events_total counter"]
    assert lines(counter, openmetrics=True) == ["# HELP events Events.", "# TYPE events counter"]


def test_a_new_series_starts_at_0_and_an_existing_one_is_kept() -> None:
    both = Both()
    both.counters[0].series("w", "t")
    both.counters[1].labels("w", "t")
    both.histograms[0].series("w", "t")
    both.histograms[1].labels("w", "t")
    both.assert_same()
    both.inc("w", "t")
    both.counters[0].series("w", "t")
    both.assert_same()


def test_series_are_removed_by_label_value() -> None:
    both = Both()
    for worker in ("w1", "w2", "w3"):
        for task in ("w1", "add"):
            both.inc(worker, task)
            both.observe(1, worker, task)
    for family in (both.counters[0], both.histograms[0]):
        family.remove("worker", {"w1", "w3", "never seen"})
        assert len(family) == 2
    for worker, task in (("w1", "w1"), ("w1", "add"), ("w3", "w1"), ("w3", "add")):
        both.counters[1].remove(worker, task)
        both.histograms[1].remove(worker, task)
    both.assert_same()
    both.inc("w1", "add")
    both.assert_same()


@pytest.mark.parametrize(
    "names",
    [
        {"events_total"},
        {"tasks"},
        {"runtime_seconds_bucket"},
        {"runtime_seconds_sum"},
        {"runtime_seconds_count", "runtime_seconds_sum"},
        {"runtime_seconds_count", "tasks", "events_total"},
        {"events", "runtime_seconds"},
        {"unknown"},
        set(),
    ],
    ids=lambda names: ",".join(sorted(names)) or "none",
)
def test_only_requested_samples_are_rendered(names: set[str]) -> None:
    both = Both()
    for task in ("add", "mul"):
        both.inc("w", task)
        both.observe(2, "w", task)
        both.set(3, "w", task)
    both.assert_same_text(names)
    texts = ["".join(render(both.ours, openmetrics=openmetrics, names=names)) for openmetrics in (False, True)]
    assert sample_lines(texts[0]) == sample_lines(texts[1])


# Slices


def many(number: int) -> list[Family]:
    counter = Counter("c", "C.", ("n",))
    gauge = Gauge("g", "G.", ("n",))
    histogram = Histogram("h", "H.", ("n",), buckets=BUCKETS)
    for count in range(number):
        counter.inc(str(count))
        gauge.set(count, str(count))
        histogram.observe(count, str(count))
    return [counter, gauge, histogram]


def test_slices_are_bounded_and_complete() -> None:
    number = 3 * SLICE_LINES
    slices = list(render(many(number), openmetrics=False))
    assert max(text.count("\n") for text in slices) <= SLICE_LINES
    assert len(slices) < 40
    found = read(parse_text("".join(slices)))
    assert [len(samples) for samples in found.values()] == [number, number, number * (len(BUCKETS) + 3)]


def test_histograms_can_have_more_buckets_than_a_slice_has_lines() -> None:
    histogram = Histogram("h", "H.", ("n",), buckets=range(2 * SLICE_LINES))
    for label in "abc":
        histogram.observe(1, label)
    assert len(list(histogram.blocks(openmetrics=False))) == 1 + 3


numbered = itertools.count()


def remove_all(families: list[Family]) -> None:
    for family in families:
        if isinstance(family, (Counter, Histogram)):
            family.remove("n", {str(number) for number in range(3 * SLICE_LINES)})


def add_more(families: list[Family]) -> None:
    for family in families:
        if isinstance(family, Counter):
            family.inc(f"new{next(numbered)}")
        elif isinstance(family, Histogram):
            family.observe(1, f"new{next(numbered)}")
        elif isinstance(family, Gauge):
            family.set(1, f"new{next(numbered)}")


def count_up(families: list[Family]) -> None:
    for family in families:
        if isinstance(family, Histogram):
            for number in range(3 * SLICE_LINES):
                family.observe(0.001, str(number))


@pytest.mark.parametrize("change", [remove_all, add_more, count_up])
def test_families_can_change_between_slices(change: Callable[[list[Family]], None]) -> None:
    families = many(3 * SLICE_LINES)

    def changing() -> Iterator[str]:
        for count, text in enumerate(render(families, openmetrics=False)):
            yield text
            if count % 5 == 1:
                change(families)

    found = read(parse_text("".join(changing())))
    assert [name for name, _, _ in found] == ["c", "g", "h"]
    for (name, labels), value in found["h", "histogram", "H."].items():
        if name == "h_count":
            assert found["h", "histogram", "H."]["h_bucket", labels | {("le", "+Inf")}] == value
