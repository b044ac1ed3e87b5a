"""Figures measured for stock Flower and flower-proxy, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.support.programs import COMMANDS

STOCK, OURS = COMMANDS
HEADINGS = ["figure", STOCK, OURS, "ratio", "target", ""]
BAR_HEADINGS = ("case", STOCK, OURS, "ratio", "bar", "")
_WIDTHS = (58, 9, 9, 6, 7, 0)


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


@dataclass(frozen=True)
class Row:
    """Row of the table of bars.

    :ivar name: name with unit.
    :ivar ours: one value per turn, like `stock`, which is empty if stock Flower has no such figure.
    :ivar bar: maximum; None for a figure without one.
    :ivar is_ratio: the bar applies to the ratio of flower-proxy to stock Flower.
    :ivar summary: of the values of all turns.
    :ivar note: text behind the verdict.
    """

    name: str
    ours: Sequence[float] = ()
    stock: Sequence[float] = ()
    bar: float | None = None
    is_ratio: bool = True
    summary: Callable[[Sequence[float]], float] = median
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The median of the ratios per turn."""
        if not self.stock or not all(self.stock):
            return None
        return median(one / other for one, other in zip(self.ours, self.stock, strict=True))

    @property
    def is_met(self) -> bool:
        """Whether the bar is met."""
        figure = self.ratio if self.is_ratio else self.summary(self.ours)
        return self.bar is None or (figure is not None and figure <= self.bar)

    def __str__(self) -> str:
        """Return the line below `BAR_HEADINGS`."""
        ours = number(self.summary(self.ours)) if self.ours else "-"
        stock = number(self.summary(self.stock)) if self.stock else "-"
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        bar = "-" if self.bar is None else f"{self.bar:.2f}" if self.is_ratio else f"{self.bar:g}"
        verdict = "" if self.bar is None else "met" if self.is_met else "NOT MET"
        return line(self.name, stock, ours, ratio, bar, f"{verdict}  {self.note}".strip())


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def line(*cells: str) -> str:
    """Return a line of the table of bars."""
    texts = [
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return "  ".join(texts).rstrip()


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.2f} to {max(values):.2f})"


def table(figures: Iterable[Figure]) -> str:
    rows = [HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
