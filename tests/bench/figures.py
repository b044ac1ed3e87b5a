"""Figures measured for stock Flower and flower-proxy, and their table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from tests.support.programs import COMMANDS

STOCK, OURS = COMMANDS
HEADINGS = ["figure", STOCK, OURS, "ratio", "target", ""]


@dataclass
class Figure:
    """Measured quantity.

    :ivar name: name with unit.
    :ivar target: maximum ratio of flower-proxy to stock Flower.
    :ivar values: one value per turn, by kind.
    """

    name: str
    target: float
    values: dict[str, list[float]] = field(default_factory=lambda: {STOCK: [], OURS: []})

    def row(self) -> list[str]:
        """Return the cells below `HEADINGS`; the ratio is the median of the ratios per turn."""
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
