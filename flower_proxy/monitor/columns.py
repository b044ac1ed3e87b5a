"""Rings of numbers, which take memory once a number is not 0, and as many bytes as their largest number requires."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import add
from typing import Final

BYTES: Final = "B"
COUNTS: Final = "H"
_WIDER: Final[Mapping[str, str]] = {"B": "H", "H": "I", "I": "Q"}


class Columns:
    """Named columns of unsigned numbers, each with one number per slot.

    :param slots: number of slots.
    :ivar arrays: the columns that have had a number other than 0.
    """

    __slots__ = ("arrays", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.arrays: dict[str, array[int]] = {}

    def add(self, name: str, slots: Sequence[int], number: int) -> None:
        """Add a number to some slots of a column."""
        for slot in slots:
            self.set(name, slot, self[name, slot] + number)

    def set(self, name: str, slot: int, number: int, kind: str = COUNTS) -> None:
        """Set a slot of a column.

        :param kind: the type code of a new column.
        """
        column = self.arrays.get(name)
        if column is None:
            if not number:
                return
            column = self.arrays[name] = zeros(kind, self.slots)
        while True:
            try:
                column[slot] = number
            except OverflowError:
                column = self.arrays[name] = array(_WIDER[column.typecode], column)
            else:
                return

    def __getitem__(self, place: tuple[str, int]) -> int:
        """Return the number in a slot of a column."""
        name, slot = place
        column = self.arrays.get(name)
        return column[slot] if column else 0

    def column(self, name: str) -> Sequence[int]:
        """Return the numbers of a column, by slot."""
        return self.arrays.get(name) or array(BYTES, bytes(self.slots))

    def clear(self, slots: Sequence[int]) -> None:
        """Set some slots of all columns to 0."""
        for column in self.arrays.values():
            for slot in slots:
                column[slot] = 0

    def add_all(self, other: Columns, names: Sequence[str]) -> None:
        """Add the numbers of some columns of another one with as many slots."""
        for name in names:
            added = other.arrays.get(name)
            if added:
                column = self.arrays.get(name) or zeros(added.typecode, self.slots)
                self.arrays[name] = _sums(column, added)


def zeros(kind: str, slots: int) -> array[int]:
    """Return an array of zeros.

    :param kind: type code.
    """
    return array(kind, bytes(array(kind).itemsize * slots))


def _sums(left: array[int], right: array[int]) -> array[int]:
    # In the order of their sizes
    kind: str = min(left.typecode, right.typecode, key="QIHB".index)
    while True:
        try:
            return array(kind, map(add, left, right))
        except OverflowError:
            kind = _WIDER[kind]
