"""What is measured of stock Flower and of ours by turns, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from tests.support.programs import COMMANDS

STOCK, OURS = COMMANDS
HEADINGS = ["figure", STOCK, OURS, "ratio", "target", ""]


@dataclass
class Figure:
    """One measured quantity.

    :ivar name: what it is, with its unit.
    :ivar target: the ratio of ours to stock that is not to be exceeded.
    :ivar values: of each kind, one for each turn.
    """

    name: str
    target: float
    values: dict[str, list[float]] = field(default_factory=lambda: {STOCK: [], OURS: []})

    def row(self) -> list[str]:
        """The figure in the order of `HEADINGS`. A ratio is taken within each turn; their median counts."""
        stock, ours = self.values[STOCK], self.values[OURS]
        ratios = [one / other for one, other in zip(ours, stock, strict=True)]
        verdict = "within" if median(ratios) <= self.target else "over"
        return [self.name, spread(stock), spread(ours), spread(ratios), f"{self.target:.2f}", verdict]


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.2f} to {max(values):.2f})"


def table(figures: Iterable[Figure]) -> str:
    rows = [HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
