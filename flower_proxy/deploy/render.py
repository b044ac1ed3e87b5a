"""Rendering of the files in ``templates``, which are Tornado templates."""

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
# A block or a comment on a line of its own must not leave an empty line
_LINE_OF_ITS_OWN = re.compile(r"^[ \t]*(\{[%#].*?[%#]\})\n", re.MULTILINE)


def render(target: Target, deployment: Deployment) -> str:
    """Return the configuration file.

    Its template has the fields of `Deployment` as names, `_yaml` as ``yaml``, `_indented` as ``indented``, and what
    `Target.context` adds.

    :raises DeploymentError: the target does not support the deployment.
    """
    names = {**vars(deployment), "yaml": _yaml, "indented": _indented, **target.context(deployment)}
    return _templates().load(target.template).generate(**names).decode()


def _yaml(text: str) -> str:
    """Quote a text for YAML; parsers differ in which plain words are texts."""
    return yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True).rstrip("\n")


def _indented(prefix: str) -> Callable[[bytes], str]:
    """Return the function for ``{% apply %}`` that puts the prefix before each line."""
    return lambda text: textwrap.indent(text.decode(), prefix)


@functools.cache
def _templates() -> DictLoader:
    texts = {file.name: file.read_text(encoding="utf-8") for file in _FOLDER.iterdir() if file.is_file()}
    prepared = {name: _LINE_OF_ITS_OWN.sub(r"\1", text) for name, text in texts.items()}
    return DictLoader(prepared, autoescape=None, whitespace="all")
