"""README.md, CHANGELOG.md and the README files of the examples, compared with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_proxy.settings.options import OPTIONS
from tests.support.processes import PROJECT

README = (PROJECT / "README.md").read_text()
PAGES = {
    str(page.relative_to(PROJECT)): page.read_text()
    for page in [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "examples").rglob("README.md"))]
}
OWN_OPTIONS = [option for option in OPTIONS.values() if option.own]
MAX_README_LINES = 280


def options_table() -> Iterator[str]:
    """Return the lines of the options table."""
    for option in OWN_OPTIONS:
        default = f"`{option.shown_default}`" if option.shown_default else ""
        help_ = option.help.replace("|", "\\|").replace("*", "\\*")
        yield f"| `--{option.name}` | {default} | {help_} |"


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings outside code blocks."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_options_table_lists_every_own_option() -> None:
    """If this fails, copy the expected table into README.md."""
    _, _, rest = README.partition("<!-- options -->\n")
    table, _, _ = rest.partition("<!-- /options -->")
    assert table == "\n".join(["| option | default | |", "| --- | --- | --- |", *options_table(), ""])


@pytest.mark.parametrize("name", [option.name for option in OWN_OPTIONS])
def test_own_options_are_explained_outside_the_table(name: str) -> None:
    text = "\n".join(PAGES[page] for page in PAGES if page != "CHANGELOG.md")
    outside = re.sub(r"<!-- options -->.*<!-- /options -->", "", text, flags=re.DOTALL)
    assert re.search(rf"`--{name}\b", outside)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", PAGES[page])):
        path = (PROJECT / page).parent / target if target else PROJECT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def test_table_of_contents_lists_every_section() -> None:
    contents, _, _ = README.partition("\n## ")
    sections = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert re.findall(r"\[([^\]]+)\]\(#", contents) == [section.replace("`", "") for section in sections]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_every_example_is_in_the_index() -> None:
    names = {path.name for path in (PROJECT / "examples").iterdir() if path.suffix not in {".md", ".png"}}
    names -= {"__pycache__"}
    assert names <= {Path(target).name for target in re.findall(r"\]\(([^)#]+)\)", PAGES["examples/README.md"])}


def test_make_targets_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    text = "\n".join(PAGES.values())
    for target in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page: str) -> None:
    """Except in tables and code, whose lines cannot be broken."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
