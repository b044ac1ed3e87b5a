"""Code blocks and tables of Markdown files."""

from __future__ import annotations

import re
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """Return all fenced code blocks, in order."""
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)]


def rows(markdown: str, first: str) -> list[list[str]]:
    """Return the cells of a table, without its header.

    :param first: heading of the table's first column.
    """
    _, heading, rest = markdown.partition(f"\n| {first} |")
    assert heading, f"no table begins with {first}"
    table, _, _ = rest.partition("\n\n")
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
