"""Rows and floods of ``make bench``."""

from __future__ import annotations

import pytest

from tests.bench.figures import Row
from tests.bench.generator import STEPS, Flood


@pytest.mark.parametrize(
    ("row", "is_met", "shown"),
    [
        pytest.param(Row("a", [1, 3, 9], [10, 10, 10], 0.3), True, ["10", "3", "0.30", "0.30", "met"], id="ratio"),
        pytest.param(Row("a", [4], [10], 0.3), False, ["10", "4", "0.40", "0.30", "NOT", "MET"], id="over"),
        pytest.param(Row("a", [0, 5], [0, 0], 0, is_ratio=False, summary=max), False, ["0", "5"], id="absolute"),
        pytest.param(Row("a", [2], bar=0.3), False, ["-", "2", "-"], id="no ratio"),
        pytest.param(Row("a", [2]), True, ["-", "2", "-", "-"], id="no bar"),
    ],
)
def test_rows_show_whether_the_bar_is_met(row: Row, is_met: bool, shown: list[str]) -> None:
    assert row.is_met is is_met
    assert str(row).split()[1:][: len(shown)] == shown


@pytest.mark.parametrize("batch", [1, 24])
def test_a_flood_has_whole_tasks_with_unique_ids(batch: int) -> None:
    flood = Flood(1000, 1000, batch=batch).scaled(0.5)
    events = [event for message in flood.messages() for event in message]
    assert len(events) == flood.events
    assert [event["type"] for event in events] == [*STEPS] * (len(events) // len(STEPS))
    assert len({event["uuid"] for event in events}) == len(events) // len(STEPS)
