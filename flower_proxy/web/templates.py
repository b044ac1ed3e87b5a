"""Flower's templates, patched in memory at start-up."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Protocol

from tornado.template import DictLoader

from flower_proxy._flower import NAVIGATION, PAGE_HEAD, TASK_STATE, USER_MENU, WORKERS_PAGE

logger = logging.getLogger(__name__)


class Page(Protocol):
    """The attributes of a request handler that the patched templates use."""

    @property
    def page_head(self) -> str:
        """HTML inserted at the start of the page's head."""

    @property
    def csp_nonce(self) -> str:
        """The nonce of the page's inline scripts."""

    @property
    def user_name(self) -> str | None:
        """The name of the authenticated user; it must not raise, because error pages read it too."""

    @property
    def may_control(self) -> bool:
        """Whether the user may perform control actions."""

    @property
    def missed_note(self) -> str:
        """A note about tasks whose events did not arrive, as plain text; may be empty."""

    @property
    def end_note(self) -> str:
        """A note about the end of the page's task, as plain text; may be empty."""


_HEAD = "{% raw handler.page_head %}"
_NONCE = ' nonce="{{ handler.csp_nonce }}"'
_USER = (
    '{% if handler.user_name %}<li class="nav-item"><span class="nav-link pe-none text-break">{{ handler.user_name }}'
    "{% if not handler.may_control %} (read-only){% end %}</span></li>{% end %}"
)
_MISSED = (
    '{% if handler.missed_note %}<p class="alert alert-warning" role="status">{{ handler.missed_note }}</p>{% end %}'
)
_END = '{% if handler.end_note %}<span class="text-body-secondary">{{ handler.end_note }}</span>{% end %}'
_MONITOR = (
    '<li class="nav-item"><a href="{{ reverse_url("monitor") }}" '
    """{% if active_tab == "monitor" %}class="nav-link active" aria-current="page"{% else %}class="nav-link"{% end %}"""
    ">Monitor</a></li>"
)
_INSERTIONS = [
    (*PAGE_HEAD, _HEAD, "control actions and relative links may fail"),
    (*NAVIGATION, _MONITOR, "pages have no link to the Monitor page"),
    (*USER_MENU, _USER, "pages do not show the user"),
    (*WORKERS_PAGE, _MISSED, "the workers page does not mention missed tasks"),
    (*TASK_STATE, _END, "the page of a task does not mention that its end was not seen"),
]
_PAGES = Path(__file__).parent / "pages"
# Nonces are added to the template sources: in a rendered page, a script could come from the name of a task
_INLINE_SCRIPT = re.compile(r"<script(?=[\s>])(?![^>]*\ssrc\s*=)", re.IGNORECASE)


class TemplateError(ValueError):
    """A template of Flower that cannot be corrected."""


def corrected_templates(folder: Path) -> DictLoader:
    """Return a loader of Flower's templates with the corrections applied.

    A correction that cannot be applied is logged and skipped.

    :param folder: Flower's template folder.
    """
    sources = _Sources(folder)
    for name, place, piece, consequence in _INSERTIONS:
        try:
            sources[name] = insert(sources[name], place, piece)
        except (OSError, TemplateError) as error:
            logger.warning("Cannot correct Flower's %s: %s; %s", name, error, consequence)
    return DictLoader(sources)


def insert(source: str, place: re.Pattern[str], piece: str) -> str:
    """Insert a piece after the only match of a pattern.

    :raises TemplateError: there is not exactly one match.
    """
    matches = list(place.finditer(source))
    if len(matches) != 1:
        raise TemplateError(f"expected one match of {place.pattern}, found {len(matches)}")
    return source[: matches[0].end()] + piece + source[matches[0].end() :]


def add_nonces(source: str) -> str:
    """Add the page's nonce to each inline script."""
    return _INLINE_SCRIPT.sub(lambda match: match[0] + _NONCE, source)


class _Sources(dict[str, str]):
    """Template sources by name, read on first use; those of flower-proxy come first.

    A name can be an absolute path, as for Tornado's loader, because a login provider may have its own template.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> str:
        own = _PAGES / name
        source = (own if own.is_file() else self._folder / name).read_text(encoding="utf-8")
        source = self[name] = add_nonces(source)
        return source
