"""The metrics and labels of PromQL expressions, limited to the syntax of our rules and panels."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
      "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'       # a string
    | \[[^]]*\]                                   # a range
    | (?P<name> [a-zA-Z_:][a-zA-Z0-9_:]* )
    | \d[\w.]*                                    # a number, a duration
    | [=!<>]=? ~? | \S
    """,
    re.VERBOSE,
)
_AGGREGATE = {"by", "without"}
_MATCH = {"on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset"}


def named(expression: str) -> list[tuple[str, set[str]]]:
    """Return the metrics of an expression in order, each with the labels that it must have.

    These are the labels of its selector, of the aggregations around it, and of the vector matching in its parentheses.

    :raises ValueError: an aggregation has its labels at the end; put them in front: ``sum by (job) (up)``.
    """
    tokens = [(match[0], match["name"]) for match in _TOKEN.finditer(expression)] + [("", None)]
    found: list[tuple[str, set[str]]] = []
    # For each open parenthesis: the number of metrics before it, and the labels of those within
    scopes: list[tuple[int, set[str]]] = [(0, set())]
    aggregated: set[str] = set()
    index = 0

    def listed(end: str) -> set[str]:
        """Read a list of labels to its end, and return their names without the values."""
        nonlocal index
        names, value_follows = set(), False
        while tokens[index][0] != end:
            text, name = tokens[index]
            if name and not value_follows:
                names.add(name)
            value_follows = text[0] in "=!" or (value_follows and text != ",")
            index += 1
        return names

    def leave() -> None:
        start, labels = scopes.pop()
        for _, required in found[start:]:
            required |= labels

    while index < len(tokens) - 1:
        text, name = tokens[index]
        index += 1
        if name in _AGGREGATE:
            if tokens[index - 2][0] == ")":
                raise ValueError(f"{name} after the aggregated expression: {expression}")
            aggregated = listed(")")
            index += 1
        elif name in _MATCH:
            scopes[-1][1].update(listed(")"))
            index += 1
        elif text == "(":
            scopes.append((len(found), aggregated))
            aggregated = set()
        elif text == ")":
            leave()
        elif text == "{":
            found[-1][1].update(listed("}"))
            index += 1
        elif name and name not in _WORDS and tokens[index][0] != "(" and tokens[index][1] not in _AGGREGATE:
            found.append((name, set()))
    leave()
    return found
