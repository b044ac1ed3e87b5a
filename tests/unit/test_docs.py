"""The README says what is true."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from flower_proxy.settings.options import OPTIONS
from tests.support.processes import PROJECT

README = (PROJECT / "README.md").read_text()


def options_table() -> Iterator[str]:
    """The table of options, as the README has to have it."""
    group = None
    for option in OPTIONS.values():
        if option.name.startswith("log_"):
            continue
        if option.group != group:
            group = option.group
            yield f"| **{group}** | | |"
        default = f"`{option.shown_default}`" if option.shown_default else ""
        help_ = option.help.replace("|", "\\|").replace("*", "\\*")
        yield f"| `--{option.name}` | {default} | {help_} |"


def test_the_table_of_options() -> None:
    """Where this fails, put in what it expects."""
    _, _, rest = README.partition("<!-- options -->\n")
    table, _, _ = rest.partition("<!-- /options -->")
    assert table == "\n".join(["| option | default | |", "| --- | --- | --- |", *options_table(), ""])


@pytest.mark.parametrize("name", [option.name for option in OPTIONS.values() if option.own])
def test_each_option_of_ours_is_explained(name: str) -> None:
    assert README.count(f"`--{name}") >= 2


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (PROJECT / target).exists(), target


def test_the_two_commands_are_there() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
