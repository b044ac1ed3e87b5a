"""Search for tasks without an index: each search tests all tasks."""

from __future__ import annotations

import ast
import asyncio
import heapq
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kombu.utils.encoding import safe_str

from flower_proxy._flower import And, MatchAll, Or, SearchPage, Term, parse_query
from flower_proxy.events.task import Task

Test = Callable[[Task], bool]

_STEP = 250  # tasks between two yields
_RUN = 5000  # values sorted between two yields
_FIELDS = ("uuid", "name", "state", "worker", "args", "kwargs", "result")
_NAMES = frozenset(("name", "state", "worker"))
_NUMBERS = frozenset(("received", "started", "runtime"))
# In links of the Monitor page, in seconds since the epoch
_ENDED = re.compile(r"ended:(?P<start>\d{1,12})\.\.(?P<end>\d{1,12})", re.ASCII)
_ENDS = frozenset(("SUCCESS", "FAILURE", "RETRY", "REVOKED", "REJECTED"))
# In stock Flower, a query that contains this character may match across fields
_SEPARATOR = "\0"


@dataclass(frozen=True)
class TaskQuery:
    """The arguments of a search, by the names of Flower's search engine.

    :ivar query: the text of the query, in Flower's syntax; a term ``ended:START..END``, in seconds since the epoch,
        matches tasks that ended then, by the clock of their worker.
    :ivar task_type: name of the tasks; None for all, as for the following fields.
    :ivar received_start: earliest time of reception in seconds since the epoch; tasks without one match.
    :ivar sort_by: field of the task; None for the newest tasks first.
    :ivar offset: number of skipped tasks.
    :ivar limit: maximum number of tasks; None for all.
    :raises ValueError: the query is malformed.
    """

    query: str = ""
    task_type: str | None = None
    worker: str | None = None
    state: str | None = None
    received_start: float | None = None
    received_end: float | None = None
    sort_by: str | None = None
    descending: bool = False
    offset: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        parse_query(self.query)

    def search(self, tasks: Sequence[Task]) -> Generator[None, None, SearchPage]:
        """Search tasks, for `flower_proxy._slices.in_slices`.

        :returns: the ids of a page, the number of matching tasks and that of all tasks.
        """
        tests, key = list(self._tests()), _sort_key(self.sort_by)
        by_key: dict[Any, str | list[str]] = {}
        without_key: list[str] = []
        count = 0
        for start in range(0, len(tasks), _STEP):
            for task in tasks[start : start + _STEP]:
                for test in tests:
                    if not test(task):
                        break
                else:
                    count += 1
                    value = key(task)
                    if value is None:
                        without_key.append(task.uuid)
                    elif (ids := by_key.setdefault(value, task.uuid)) is not task.uuid:
                        # No list for a single id, since many new lists cause garbage collections, which take long
                        if isinstance(ids, list):
                            ids.append(task.uuid)
                        else:
                            by_key[value] = [ids, task.uuid]
            yield
        offset = max(self.offset, 0)
        end = count if self.limit is None else offset + max(self.limit, 0)
        page = yield from _ordered(by_key, without_key, end, self.descending or not self.sort_by)
        return SearchPage(page[offset:end], count, len(tasks))

    def _tests(self) -> Iterator[Test]:
        for field, value in (("name", self.task_type), ("worker", self.worker), ("state", self.state)):
            if value:
                yield _equals(field, _folded(value))
        if self.received_start is not None or self.received_end is not None:
            yield self._is_in_time
        expression = parse_query(self.query)
        if not isinstance(expression, MatchAll):
            yield _test(expression)

    def _is_in_time(self, task: Task) -> bool:
        received, start, end = task.received, self.received_start, self.received_end
        return received is None or ((start is None or received >= start) and (end is None or received <= end))


class PendingSearchError(Exception):
    """Flower's handler needs the result of a search.

    :ivar query: the arguments of the search.
    """

    def __init__(self, query: TaskQuery) -> None:
        super().__init__(query)
        self.query = query


class SearchResults:
    """Stands in for Flower's search engine, which its handlers call; it returns the result of a finished search.

    :ivar page: the result for the current call of a handler; None before the search.
    :ivar lock: held during a search.

    :ivar page: the result for the current call of a handler; None before the search.
    """

    def __init__(self) -> None:
        self.page: SearchPage | None = None
        self.lock = asyncio.Lock()

    def search(self, tasks: Any, query: str = "", **conditions: Any) -> SearchPage:
        """Return the result.

        :param conditions: the other fields of `TaskQuery`.
        :raises PendingSearchError: there is none yet.
        :raises ValueError: the query is malformed.
        """
        wanted = TaskQuery(query, **conditions)
        if self.page is None:
            raise PendingSearchError(wanted)
        return self.page


def _ordered(
    by_key: dict[Any, str | list[str]], without_key: list[str], end: int, descending: bool
) -> Generator[None, None, list[str]]:
    """Return the first ids, at least `end` of them; equal keys are sorted by id, and a missing key comes first."""
    ordered: list[str] = []
    keys = yield from _first(list(by_key), end, descending)
    groups: list[str | list[str]] = [by_key[key] for key in keys]
    groups.insert(len(groups) if descending else 0, without_key)
    for number, group in enumerate(groups):
        if len(ordered) >= end:
            break
        if isinstance(group, str):
            ordered.append(group)
        else:
            ordered += yield from _first(group, end - len(ordered), descending)
        if number % _STEP == 0:
            yield
    return ordered


def _first(values: list[Any], count: int, descending: bool) -> Generator[None, None, list[Any]]:
    """Return the first `count` values in order; if they are many, all values."""
    if count < len(values) // 10:
        return (heapq.nlargest if descending else heapq.nsmallest)(count, values)
    runs: list[Any] = []
    for start in range(0, len(values), _RUN):
        runs += sorted(values[start : start + _RUN], reverse=descending)
        yield
    # Fast, since the sort finds the sorted runs
    return sorted(runs, reverse=descending)


def _sort_key(sort_by: str | None) -> Callable[[Task], Any]:
    """Return a function that returns the key of a task; None if the field is missing."""
    if not sort_by:
        return lambda task: float(task.timestamp or 0)
    if sort_by == "worker":
        # Flower sorts by the representation, which takes long
        fold = lru_cache(maxsize=None)(_folded)
        return lambda task: task.worker and fold(task.worker)
    convert = float if sort_by in _NUMBERS else _folded

    def key(task: Task) -> Any:
        value = getattr(task, sort_by, None)
        return None if value is None else convert(value)

    return key


# Tests of the expressions of a query


def _test(expression: Any) -> Test:
    if isinstance(expression, Term):
        return _test_of_term(expression.field, _folded(expression.value))
    # Terms of short fields first, since they are tested faster
    tests = [_test(child) for child in sorted(expression.children, key=_cost)]
    if isinstance(expression, And):
        return lambda task: all(test(task) for test in tests)
    assert isinstance(expression, Or)
    return lambda task: any(test(task) for test in tests)


def _cost(expression: Any) -> int:
    if isinstance(expression, Term):
        return 0 if expression.field in _NAMES else 1
    return 1 + sum(map(_cost, expression.children))


def _test_of_term(field: str | None, value: str) -> Test:
    if field == "state":
        return _equals(field, value)
    if field == "kwargs" and "=" in value:
        return _has_keyword_argument(value)
    if field is not None:
        return lambda task: value in _text(task, field)
    if window := _ENDED.fullmatch(value):
        return _has_ended(float(window["start"]), float(window["end"]))
    if _SEPARATOR in value:
        return lambda task: value in _SEPARATOR.join(_text(task, field) for field in _FIELDS)

    def is_in_any(task: Task) -> bool:
        # Without calls for the fields that are longest
        args, kwargs, result = task.args, task.kwargs, task.result
        return (
            value in task.uuid.casefold()
            or any(value in _text(task, field) for field in _NAMES)
            or (args is not None and value in args.casefold())
            or (kwargs is not None and value in kwargs.casefold())
            or (result is not None and value in result.casefold())
        )

    return is_in_any


def _has_ended(start: float, end: float) -> Test:
    def test(task: Task) -> bool:
        return task.state in _ENDS and task.timestamp is not None and start <= task.timestamp <= end

    return test


def _equals(field: str, value: str) -> Test:
    return lambda task: _text(task, field) == value


def _has_keyword_argument(term: str) -> Test:
    name, _, value = (part.strip() for part in term.partition("="))
    pair = f"{name}={value}"

    def test(task: Task) -> bool:
        text = _text(task, "kwargs")
        # Parsing takes long; in a representation, both occur as they are unless escaped
        if "\\" not in text and not (name in text and value in text):
            return False
        return pair in _keyword_arguments(task.kwargs)

    return test


def _keyword_arguments(representation: Any) -> Iterator[str]:
    """Yield ``name=value`` for each keyword argument, if the representation can be parsed."""
    try:
        arguments = ast.literal_eval(representation)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return
    if isinstance(arguments, dict):
        for name, value in arguments.items():
            yield f"{_folded(name)}={_folded(value)}"


def _text(task: Task, field: str) -> str:
    if field in _NAMES:
        name = task.worker.hostname if field == "worker" and task.worker else getattr(task, field)
        return _folded_name(name) if name else ""
    value: str | None = getattr(task, field)
    return "" if value is None else value.casefold()


def _folded(value: Any) -> str:
    """Return a value as text without distinctions of case."""
    return "" if value is None else str(safe_str(value)).casefold()


_folded_name = lru_cache(maxsize=4096)(_folded)
