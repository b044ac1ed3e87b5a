"""What the Monitor page and scripts read: parameters, slots, tables, CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from flower_proxy.monitor.history import History
from flower_proxy.monitor.report import QueryError, Report, UnknownSeriesError, parse_query
from flower_proxy.monitor.series import RANGES

START = 1_800_000_000.0
WEEK = 7 * 86400


@pytest.fixture
def history() -> History:
    """Ten seconds, in which 3 of 10 tasks have failed, and an open slot."""
    history = History(generation=7)
    history.advance(START, 0.0, is_covered=True)
    for number in range(10):
        end, name = ("failed", "pay") if number < 3 else ("succeeded", "mail")
        history.count(f"task-{end}", name, "w1@h", "celery")
        history.observe_runtime(2.0, name, "w1@h", "celery")
    history.count("task-retried", "mail", "w1@h", "celery")
    history.measure({"w1@h": 2}, {"celery": 5, "=cmd": 0})
    history.advance(START + 5, 5.0, is_covered=True)
    history.advance(START + 10, 10.0, is_covered=True)
    return history


def answer(history: History, **parameters: str) -> Any:
    """Return what the page reads."""
    return json.loads(json.dumps(Report(history, parse_query(parameters)).json()))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"range": "2h"}, "range: expected one of 15m, 1h, 6h, 24h, got '2h'"),
        ({"by": "host"}, "by: expected one of task, worker, queue, got 'host'"),
        ({"by": ""}, None),
        ({"format": "xml"}, "format: expected one of json, csv, got 'xml'"),
        ({"name": "add"}, "name requires by: one of task, worker, queue"),
        ({"since": "yesterday"}, "since: expected the cursor of an earlier answer, got 'yesterday'"),
        ({"since": "1.2.3"}, "since: expected the cursor of an earlier answer, got '1.2.3'"),
        ({"range": "x" * 1000}, f"range: expected one of 15m, 1h, 6h, 24h, got {'x' * 50!r}"),
    ],
)
def test_invalid_parameters(parameters: dict[str, str], reason: str | None) -> None:
    if reason is None:
        parse_query(parameters)
        return
    with pytest.raises(QueryError) as error:
        parse_query(parameters)
    assert str(error.value) == reason


def test_a_range_has_all_slots(history: History) -> None:
    for one in RANGES:
        found = answer(history, range=one.name)
        assert (found["range"], found["step"], found["complete"]) == (one.name, one.step, True)
        columns = found["columns"]
        assert {len(column) for column in [found["covered"], *columns.values(), *found["queues"].values()]} == {
            one.slots
        }
        assert sum(columns["failed"]) == 3
        assert sum(columns["succeeded"]) == 7
        assert sum(columns["runtime"]) == pytest.approx(20.0)
        assert 5 in found["queues"]["celery"]


def test_a_cursor_returns_the_slots_that_may_have_changed(history: History) -> None:
    first = answer(history)
    history.count("task-failed", "pay", "w1@h", "celery")
    history.advance(START + 17, 17.0, is_covered=True)
    found = answer(history, since=str(first["cursor"]))
    assert found["complete"] is False
    assert found["first"] == START + 10
    assert found["columns"]["failed"] == [1, 0]
    assert len(json.dumps(found)) < 1500


@pytest.mark.parametrize("cursor", ["6.1800000005", "7.1799990000", "7.1900000000", "0.0"])
def test_other_cursors_return_all_slots(history: History, cursor: str) -> None:
    found = answer(history, since=cursor)
    assert found["complete"] is True
    assert len(found["covered"]) == 180


def test_only_ranges_with_data_are_offered(history: History) -> None:
    assert answer(history)["ranges"] == ["15m"]
    for now, ranges in ((901, 2), (3700, 3), (6 * 3600 + 60, 4), (WEEK, 4)):
        history.advance(START + now, 10.0 + now, is_covered=True)
        assert len(answer(history)["ranges"]) == ranges


def test_the_scope_selects_a_series(history: History) -> None:
    found = answer(history, by="task", name="pay")
    assert sum(found["columns"]["failed"]) == 3
    assert sum(found["columns"]["succeeded"]) == 0
    assert "queues" not in found
    assert max(value or 0 for value in answer(history, by="worker", name="w1@h")["columns"]["executing"]) == 2
    assert max(value or 0 for value in answer(history, by="queue", name="celery")["columns"]["longest"]) == 5


@pytest.mark.parametrize(("by", "name"), [("task", "w1@h"), ("queue", ""), ("worker", "<b>")])
def test_unknown_series(history: History, by: str, name: str) -> None:
    with pytest.raises(UnknownSeriesError, match=f"the history has no {by} "):
        answer(history, by=by, name=name)


def test_the_table_lists_most_failures_first(history: History) -> None:
    found = answer(history, by="task")
    assert [{key: value for key, value in row.items() if key != "spark"} for row in found["rows"]] == [
        {
            "name": "pay",
            "runs": 3,
            "failed": 3,
            "failed_percent": 100.0,
            "mean": 2.0,
            "p95": pytest.approx(2, rel=0.04),
        },
        {"name": "mail", "runs": 8, "failed": 0, "failed_percent": 0.0, "mean": 2.0, "p95": pytest.approx(2, rel=0.04)},
    ]
    assert [sum(row["spark"]) for row in found["rows"]] == [3, 8]
    assert {len(row["spark"]) for row in found["rows"]} == {30}
    assert [row["name"] for row in answer(history, by="queue")["rows"]] == ["celery"]


def rows_of(history: History, **parameters: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Report(history, parse_query({**parameters, "format": "csv"})).csv())))


def test_csv_has_the_same_numbers(history: History) -> None:
    rows = rows_of(history)
    assert len(rows) == 180
    assert sum(int(row["failed"]) for row in rows) == 3
    busy = next(row for row in rows if row["failed"] != "0")
    assert (busy["time"], busy["covered_seconds"], busy["online"]) == ("2027-01-15T08:00:00Z", "5.0", "1")
    assert rows[0]["runtime_p95"] == rows[0]["online"] == ""
    assert [row["name"] for row in rows_of(history, by="task")] == ["pay", "mail"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx"])
def test_csv_cells_are_no_formulas(history: History, name: str) -> None:
    """Spreadsheets run them (OWASP, CSV injection)."""
    history.count("task-failed", name, "w1@h", "celery")
    assert rows_of(history, by="task")[1]["name"] == f"'{name}"
