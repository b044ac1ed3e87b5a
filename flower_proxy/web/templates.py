"""Flower's templates, corrected in memory before anything of a request stands in them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Protocol

from tornado.template import DictLoader

from flower_proxy._flower import PAGE_HEAD, USER_MENU

logger = logging.getLogger(__name__)


class Page(Protocol):
    """What the corrected templates ask the request's handler for."""

    @property
    def page_head(self) -> str:
        """Safe HTML for the beginning of the page's head."""

    @property
    def csp_nonce(self) -> str:
        """What lets the scripts run that stand in the page itself."""

    @property
    def who(self) -> str | None:
        """The name of who is logged in, if there is one; asked on error pages too, so it must not raise."""

    @property
    def may_control(self) -> bool:
        """Whether they may do more than look."""


_HEAD = "{% raw handler.page_head %}"
_NONCE = ' nonce="{{ handler.csp_nonce }}"'
_WHO = (
    '{% if handler.who %}<li class="nav-item"><span class="nav-link pe-none text-break">{{ handler.who }}'
    "{% if not handler.may_control %} (may look only){% end %}</span></li>{% end %}"
)
_INSERTIONS = [
    (*PAGE_HEAD, _HEAD, "its pages are told neither their address nor their token"),
    (*USER_MENU, _WHO, "it names nobody"),
]
# In the sources, because at the end nobody can tell a script of Flower's from one that a task's name brought along
_INLINE_SCRIPT = re.compile(r"<script(?=[\s>])(?![^>]*\ssrc\s*=)", re.IGNORECASE)


class TemplateError(ValueError):
    """A template of the installed Flower has no place for a correction."""


def corrected_templates(folder: Path) -> DictLoader:
    """Return a loader of Flower's templates that are corrected.

    A correction that has no place in them is left out, and the log says so once; the others are made.

    :param folder: Flower's folder of templates.
    """
    sources = _Sources(folder)
    for name, place, piece, otherwise in _INSERTIONS:
        try:
            sources[name] = insert(sources[name], place, piece)
        except (OSError, TemplateError) as error:
            logger.warning("Cannot correct Flower's %s: %s; %s", name, error, otherwise)
    return DictLoader(sources)


def insert(source: str, place: re.Pattern[str], piece: str) -> str:
    """Put a piece right behind the one place that matches.

    :raises TemplateError: there is no such place, or more than one.
    """
    matches = list(place.finditer(source))
    if len(matches) != 1:
        raise TemplateError(f"it has {len(matches) or 'no'} places that match {place.pattern}")
    return source[: matches[0].end()] + piece + source[matches[0].end() :]


def add_nonces(source: str) -> str:
    """Let each script that stands in the page itself carry the page's nonce."""
    return _INLINE_SCRIPT.sub(lambda match: match[0] + _NONCE, source)


class _Sources(dict[str, str]):
    """Templates by name, read when they are asked for.

    As with Tornado's own loader a name can be a whole path: a login provider may bring a page of its own.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> str:
        source = self[name] = add_nonces((self._folder / name).read_text(encoding="utf-8"))
        return source
