"""What the Monitor page and scripts read of a history, as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flower_proxy.monitor.history import History
from flower_proxy.monitor.series import EVENTS, QUANTILES, RANGES, Series, position_of
from flower_proxy.monitor.sketch import duration_of

FORMATS = ("json", "csv")
_GAUGES = {"": ("online", "executing", "length"), "task": (), "worker": ("executing",), "queue": ("length", "longest")}
_SPARK = 30
# Spreadsheets run the content of cells that begin like this (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class QueryError(ValueError):
    """An invalid parameter; the message is one line."""


class UnknownSeriesError(LookupError):
    """The history has no such task, worker or queue; the message is one line."""


@dataclass(frozen=True)
class Query:
    """A question about a history.

    :ivar index: that of the range.
    :ivar by: ``task``, ``worker`` or ``queue``; empty for the whole cluster.
    :ivar name: of the task, worker or queue; None for a table of all.
    :ivar since: the cursor of an earlier answer; empty for all slots.
    :ivar format: ``json`` or ``csv``.
    """

    index: int
    by: str
    name: str | None
    since: str
    format: str


def parse_query(arguments: Mapping[str, str]) -> Query:
    """Return a query of its parameters.

    :raises QueryError: one of them is invalid.
    """
    ranges = [one.name for one in RANGES]
    chosen = {
        "range": _choice(arguments, "range", ranges, ranges[0]),
        "by": _choice(arguments, "by", ["task", "worker", "queue"], ""),
        "format": _choice(arguments, "format", FORMATS, FORMATS[0]),
    }
    name, since = arguments.get("name"), arguments.get("since", "")
    if name is not None and not chosen["by"]:
        raise QueryError("name requires by: one of task, worker, queue")
    if since and [part.isdecimal() for part in since.split(".")] != [True, True]:
        raise QueryError(f"since: expected the cursor of an earlier answer, got {since[:50]!r}")
    return Query(ranges.index(chosen["range"]), chosen["by"], name, since, chosen["format"])


def _choice(arguments: Mapping[str, str], parameter: str, choices: Sequence[str], default: str) -> str:
    value = arguments.get(parameter, default)
    if value != default and value not in choices:
        raise QueryError(f"{parameter}: expected one of {', '.join(choices)}, got {value[:50]!r}")
    return value


class Report:
    """The answer to a query.

    :raises UnknownSeriesError: there is no such series.
    """

    def __init__(self, history: History, query: Query) -> None:
        self._history, self._query = history, query
        self._range = RANGES[query.index]
        times = history.times(query.index)
        self._cursor = f"{history.generation}.{times[-1]}"
        generation, _, moment = query.since.partition(".")
        is_known = generation == str(history.generation) and moment and times[0] <= int(moment) <= times[-1]
        # The slot of the cursor was open
        self._times = [time for time in times if not is_known or time >= int(moment)]
        self._slots = [position_of(query.index, time // self._range.step) for time in self._times]
        self._is_complete = not is_known
        if query.by and query.name is not None and query.name not in history.groups[query.by]:
            raise UnknownSeriesError(f"the history has no {query.by} {query.name[:200]!r}")
        history.settle([query.index], self._read())

    def _read(self) -> Iterator[Series]:
        """Return the series of the answer."""
        query, groups = self._query, self._history.groups
        if query.name is not None:
            yield groups[query.by][query.name]
        elif query.by:
            yield from groups[query.by].values()
        else:
            yield self._history.whole
            yield from groups["queue"].values()

    def json(self) -> dict[str, Any]:
        """Return an object for JSON."""
        query, history = self._query, self._history
        answer: dict[str, Any] = {
            "range": self._range.name,
            "ranges": offered(history),
            "step": self._range.step,
            "began": history.began,
            "cursor": self._cursor,
            "complete": self._is_complete,
            "by": query.by or None,
            "name": query.name,
        }
        if query.by and query.name is None:
            return {**answer, "rows": self.rows()}
        answer |= {"first": self._times[0], "covered": self._covered(), "columns": self.columns()}
        if not query.by:
            lengths = {name: self._gauge(series, "length") for name, series in history.groups["queue"].items()}
            answer["queues"] = {name: numbers for name, numbers in lengths.items() if set(numbers) != {None}}
        first = self._times[0]
        answer["marks"] = [[mark.time, mark.kind, mark.number] for mark in history.marks if mark.time >= first]
        return answer

    def csv(self) -> str:
        """Return the same as text: a row for each slot, or for each task, worker or queue."""
        text = io.StringIO()
        writer = csv.writer(text)
        if self._query.by and self._query.name is None:
            rows = self.rows()
            header = ["name", "runs", "failed", "failed_percent", "mean_seconds", "worst_p95_seconds"]
            writer.writerow(header)
            for row in rows:
                writer.writerow(
                    [_cell(row[name]) for name in ("name", "runs", "failed", "failed_percent", "mean", "p95")]
                )
            return text.getvalue()
        columns = self.columns()
        writer.writerow(["time", "covered_seconds", *columns])
        for time, covered, *numbers in zip(self._times, self._covered(), *columns.values(), strict=True):
            moment = datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            writer.writerow([moment, covered, *map(_cell, numbers)])
        return text.getvalue()

    # Slots

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the whole cluster or of a series, with a number, or None, for each slot."""
        query = self._query
        series = self._history.groups[query.by][query.name] if query.name is not None else self._history.whole
        columns: dict[str, list[Any]] = {name: self._numbers(series, name) for name in EVENTS}
        columns["timed"] = self._numbers(series, "timed")
        columns["runtime"] = [number / 1000 for number in self._numbers(series, "runtime")]
        for name in QUANTILES:
            columns[name] = [_duration(bucket) for bucket in self._numbers(series, name)]
        for name in _GAUGES[query.by]:
            columns[name] = self._gauge(series, name)
        return columns

    def _numbers(self, series: Series, name: str) -> list[int]:
        column = series.columns.column(name)
        return [column[slot] for slot in self._slots]

    def _gauge(self, series: Series, name: str) -> list[int | None]:
        return [number - 1 if number else None for number in self._numbers(series, name)]

    def _covered(self) -> list[float]:
        return [round(number / 1000, 1) for number in self._numbers(self._history.whole, "covered")]

    # Tables

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each task name, worker or queue with runs in the range; those with most failures first."""
        group = self._history.groups[self._query.by]
        rows = [self._row(name, series) for name, series in group.items()]
        return sorted((row for row in rows if row["runs"]), key=lambda row: (-row["failed"], -row["runs"], row["name"]))

    def _row(self, name: str, series: Series) -> dict[str, Any]:
        succeeded, failed, retried = (self._numbers(series, event) for event in ("succeeded", "failed", "retried"))
        finished = [sum(numbers) for numbers in zip(succeeded, failed, retried, strict=True)]
        ended = sum(succeeded) + sum(failed)
        timed, runtime = sum(self._numbers(series, "timed")), sum(self._numbers(series, "runtime")) / 1000
        width = -(-len(finished) // _SPARK)
        return {
            "name": name,
            "runs": sum(finished),
            "failed": sum(failed),
            "failed_percent": round(100 * sum(failed) / ended, 2) if ended else None,
            "mean": _rounded(runtime / timed) if timed else None,
            "p95": _duration(max(self._numbers(series, "runtime_p95"))),
            "spark": [sum(finished[start : start + width]) for start in range(0, len(finished), width)],
        }


def offered(history: History) -> list[str]:
    """Return the names of the ranges that show more than the next shorter one."""
    slots = history.times(0)
    age = slots[-1] - (history.began or slots[-1])
    return [one.name for index, one in enumerate(RANGES) if not index or age >= RANGES[index - 1].span]


def _duration(bucket: int) -> float | None:
    return _rounded(duration_of(bucket)) if bucket else None


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
