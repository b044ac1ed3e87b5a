"""Length limits of modules and functions, which ruff does not check."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.processes import PROJECT

MAX_MODULE, MAX_FUNCTION = 350, 50  # lines
MODULES = sorted((PROJECT / "flower_proxy").rglob("*.py"))


def functions() -> Iterator[tuple[str, int]]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_modules_do_not_exceed_the_maximum_length() -> None:
    lengths = {str(module.relative_to(PROJECT)): len(module.read_text().splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > MAX_MODULE} == {}


def test_functions_do_not_exceed_the_maximum_length() -> None:
    assert {name: length for name, length in functions() if length > MAX_FUNCTION} == {}
