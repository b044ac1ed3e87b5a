"""Which metrics and labels a PromQL expression names: as much of PromQL as our rules and panels use."""

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
    """Return each metric in the order in which it is named, with the labels that are asked of it.

    These are the labels in its braces, those by which something around it is aggregated, and those on which what stands
    in the same parentheses is matched.

    :raises ValueError: the labels of an aggregation stand behind it; put them in front: ``sum by (job) (up)``.
    """
    tokens = [(match[0], match["name"]) for match in _TOKEN.finditer(expression)] + [("", None)]
    found: list[tuple[str, set[str]]] = []
    # of each open parenthesis: how much had been found before it, and the labels asked of what it holds
    scopes: list[tuple[int, set[str]]] = [(0, set())]
    aggregated: set[str] = set()
    index = 0

    def listed(end: str) -> set[str]:
        """Read to the end of the list that begins with the current token; what stands before a comma or operator."""
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
        for _, its in found[start:]:
            its |= labels

    while index < len(tokens) - 1:
        text, name = tokens[index]
        index += 1
        if name in _AGGREGATE:
            if tokens[index - 2][0] == ")":
                raise ValueError(f"{name} behind what it aggregates: {expression}")
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
