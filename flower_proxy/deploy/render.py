"""Rendering of the Tornado templates in ``templates``."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import yaml
from tornado.template import DictLoader

from flower_proxy.deploy.plan import Deployment, Target

_FOLDER = Path(__file__).with_name("templates")
# A block or comment alone on a line must not leave an empty line
_STANDALONE_BLOCK = re.compile(r"^[ \t]*(\{[%#].*?[%#]\})\n", re.MULTILINE)


def render(target: Target, deployment: Deployment) -> str:
    """Return the configuration file.

    The variables of a template are the fields of `Deployment`, ``yaml`` and ``indented`` (see `_yaml` and `_indented`),
    and those from `Target.context`.

    :raises DeploymentError: the target does not support the deployment.
    """
    names = {**vars(deployment), "yaml": _yaml, "indented": _indented, **target.context(deployment)}
    return _templates().load(target.template).generate(**names).decode()


def _yaml(text: str) -> str:
    """Quote a string for YAML, as parsers differ in which plain scalars are strings."""
    return yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True).rstrip("\n")


def _indented(prefix: str) -> Callable[[bytes], str]:
    """Return a function for ``{% apply %}`` that indents each line with a prefix."""
    return lambda text: textwrap.indent(text.decode(), prefix)


@functools.cache
def _templates() -> DictLoader:
    texts = {file.name: file.read_text(encoding="utf-8") for file in _FOLDER.iterdir() if file.is_file()}
    prepared = {name: _STANDALONE_BLOCK.sub(r"\1", text) for name, text in texts.items()}
    return DictLoader(prepared, autoescape=None, whitespace="all")
