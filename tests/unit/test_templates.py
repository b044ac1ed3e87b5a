"""The patched templates: the corrections, and the parts of Flower's templates that they depend on."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tornado.escape import xhtml_escape
from tornado.template import DictLoader, Loader

from flower_proxy._flower import FLOWER_JS, flower_settings
from flower_proxy.web.mixins import ProxyMixin
from flower_proxy.web.templates import Page, TemplateError, add_nonces, corrected_templates, insert

FOLDER = Path(flower_settings["template_path"])
NAMES = sorted(path.name for path in FOLDER.iterdir())
ORIGINALS = {name: (FOLDER / name).read_text(encoding="utf-8") for name in NAMES}
ALL = "\n".join(ORIGINALS.values())

HEAD = "{% raw handler.page_head %}"
NONCE = ' nonce="{{ handler.csp_nonce }}"'
USER = re.compile(r'\{% if handler\.user_name %\}<li class="nav-item">.*?</li>\{% end %\}')


MONITOR = re.compile(r'<li class="nav-item"><a href="\{\{ reverse_url\("monitor"\) \}\}" .*?</li>')
NOTES = re.compile(r"\{% if handler\.(missed|end)_note %\}.*?\{% end %\}")


def without_corrections(source: str) -> str:
    for insertion in (MONITOR, NOTES, USER):
        source = insertion.sub("", source)
    return source.replace(HEAD, "").replace(NONCE, "")


@pytest.fixture
def corrected() -> DictLoader:
    return corrected_templates(FOLDER)


# Corrections


def handler(user_name: str | None = None, may_control: bool = True, note: str = "") -> SimpleNamespace:
    return SimpleNamespace(
        page_head='<meta name="mine">',
        csp_nonce="n0nce",
        user_name=user_name,
        may_control=may_control,
        missed_note=note,
        end_note=note,
        application=SimpleNamespace(options=SimpleNamespace(auth="")),
    )


def render(loader: DictLoader, name: str, handler: SimpleNamespace, **variables: object) -> str:
    def link(name: str) -> str:
        return f"/{name}"

    modules = SimpleNamespace(Template=lambda name, **variables: render(loader, name, handler, **variables))
    namespace = {"handler": handler, "static_url": link, "reverse_url": link, "current_user": True, **variables}
    return loader.load(name).generate(_tt_modules=modules, url_prefix="", **namespace).decode()


def test_page_head_is_inserted(corrected: DictLoader) -> None:
    assert '<head><meta name="mine">' in render(corrected, "404.html", handler(), message="")


def test_inline_script_carries_the_nonce(corrected: DictLoader) -> None:
    page = render(corrected, "workers.html", handler(), workers={}, autorefresh=1)
    assert re.findall(r"<script(?! src=)[^>]*>", page) == ['<script nonce="n0nce" type="text/javascript">']
    assert page.count("n0nce") == 1


@pytest.mark.parametrize(
    ("user_name", "may_control", "shown"),
    [
        pytest.param("bob", True, ["bob"], id="operator"),
        pytest.param("bob", False, ["bob (read-only)"], id="viewer"),
        pytest.param("<b>&", True, ["&lt;b&gt;&amp;"], id="escaped"),
        pytest.param("", True, [], id="empty"),
        pytest.param(None, True, [], id="anonymous"),
        pytest.param(None, False, [], id="anonymous-viewer"),
    ],
)
def test_pages_show_the_authenticated_user(
    corrected: DictLoader, user_name: str | None, may_control: bool, shown: list[str]
) -> None:
    page = render(corrected, "404.html", handler(user_name, may_control), message="")
    assert re.findall(r'<li class="nav-item"><span class="nav-link[^"]*">(.*?)</span></li>', page) == shown


@pytest.mark.parametrize("note", ["", "5 of <b>&"], ids=["none", "escaped"])
def test_the_workers_page_mentions_missed_tasks(corrected: DictLoader, note: str) -> None:
    page = render(corrected, "workers.html", handler(note=note), workers={}, autorefresh=1)
    shown = [xhtml_escape(note)] if note else []
    assert re.findall(r'<p class="alert alert-warning" role="status">(.*?)</p>', page) == shown


@pytest.mark.parametrize("note", ["", "<b>&"], ids=["none", "escaped"])
def test_the_page_of_a_task_mentions_how_its_end_is_known(corrected: DictLoader, note: str) -> None:
    task = SimpleNamespace(name="add", uuid="id", state="STARTED", args="", kwargs="", _fields=[])
    page = render(corrected, "task.html", handler(note=note), task=task, read_only=False, url_escape=str)
    shown = re.findall(r">STARTED</span>\s*<span class=\"text-body-secondary\">(.*?)</span>", page)
    assert shown == ([xhtml_escape(note)] if note else [])


def as_page(handler: ProxyMixin) -> Page:
    """Let mypy check that handlers implement the protocol."""
    return handler


def test_templates_use_only_handler_attributes_of_the_protocol(corrected: DictLoader) -> None:
    used = {attribute for name in NAMES for attribute in handler_attributes(corrected, name)}
    assert used == {name for name in vars(Page) if isinstance(vars(Page)[name], property)}
    assert all(hasattr(ProxyMixin, name) for name in used)


def handler_attributes(corrected: DictLoader, name: str) -> set[str]:
    corrected.load(name)
    return set(re.findall(r"\bhandler\.(\w+)", corrected.dict[name])) - {"application"}


# Unchanged parts


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_otherwise_unchanged(name: str, corrected: DictLoader) -> None:
    corrected.load(name)
    assert without_corrections(corrected.dict[name]) == ORIGINALS[name]


@pytest.mark.parametrize("name", NAMES)
def test_templates_compile_as_with_tornados_loader(name: str) -> None:
    assert DictLoader(ORIGINALS).load(name).code == Loader(str(FOLDER)).load(name).code


def test_four_templates_are_corrected(corrected: DictLoader) -> None:
    changed = {name for name in NAMES if corrected.load(name) and corrected.dict[name] != ORIGINALS[name]}
    assert changed == {"base.html", "navbar.html", "task.html", "workers.html"}


def test_template_of_a_login_provider_can_extend_flowers_layout(corrected: DictLoader, tmp_path: Path) -> None:
    template = tmp_path / "own.html"
    template.write_text('{% extends "base.html" %}{% block container %}<script>mine()</script>{% end %}')
    page = render(corrected, str(template), handler())
    assert '<script nonce="n0nce">mine()</script>' in page
    assert '<meta name="mine">' in page


# Corrections that cannot be applied


def test_inapplicable_correction_is_skipped_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base.html").write_text("<head lang=en><script>flower()</script>")
    with caplog.at_level(logging.WARNING):
        loader = corrected_templates(tmp_path)
        page = render(loader, "base.html", handler("bob"))
    # Without the nonce, the browser would block Flower's script
    assert page == '<head lang=en><script nonce="n0nce">flower()</script>'
    base, navigation, navbar, workers, task = [record.getMessage() for record in caplog.records]
    assert base.startswith("Cannot correct Flower's base.html: expected one match of <head>, found 0; ")
    assert navbar.startswith("Cannot correct Flower's navbar.html: ")
    assert navigation.endswith("; pages have no link to the Monitor page")
    assert navbar.endswith("; pages do not show the user")
    assert workers.endswith("; the workers page does not mention missed tasks")
    assert task.endswith("; the page of a task does not mention that its end was not seen")


def test_every_correction_applies_to_installed_templates(caplog: pytest.LogCaptureFixture) -> None:
    corrected_templates(FOLDER)
    assert not caplog.records


def test_piece_is_inserted_after_the_only_match() -> None:
    assert insert("a<b>c", re.compile("<b>"), "|") == "a<b>|c"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("ac", "expected one match of <b>, found 0", id="none"),
        pytest.param("<b><b>", "expected one match of <b>, found 2", id="two"),
    ],
)
def test_zero_or_several_matches_are_an_error(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        insert(source, re.compile("<b>"), "|")


@pytest.mark.parametrize(
    ("source", "has_nonce"),
    [
        pytest.param("<script>", True, id="plain"),
        pytest.param('<script type="module">', True, id="attribute"),
        pytest.param("<SCRIPT\n  defer>", True, id="capitals-and-lines"),
        pytest.param('<script data-src="x">', True, id="attribute-that-ends-with-src"),
        pytest.param("""<script src="{{ static_url('js/flower.js') }}">""", False, id="src"),
        pytest.param('<script defer\n  SRC = "x.js">', False, id="src-later"),
        pytest.param("</script>", False, id="end"),
        pytest.param("<scripted>", False, id="another-element"),
    ],
)
def test_only_inline_scripts_get_a_nonce(source: str, has_nonce: bool) -> None:
    changed = add_nonces(source)
    assert (changed.replace(NONCE, ""), changed.count(NONCE)) == (source, int(has_nonce))


# Assumptions about Flower's templates


def test_templates_are_html_files_in_one_folder() -> None:
    assert all((FOLDER / name).suffix == ".html" for name in NAMES)
    assert {"base.html", "navbar.html"} <= set(NAMES)


def test_every_page_has_the_layout_and_navigation_bar() -> None:
    pages = set(NAMES) - {"base.html", "navbar.html"}
    assert all(ORIGINALS[name].startswith('{% extends "base.html" %}') for name in pages)
    overriding = {name for name in NAMES if "{% block navbar %}" in ORIGINALS[name]}
    assert all('{% module Template("navbar.html"' in ORIGINALS[name] for name in overriding)
    assert "base.html" in overriding


def test_templates_have_one_inline_script() -> None:
    inline = re.findall(r"<script(?![^>]*\ssrc=).*?</script>", ALL, re.DOTALL)
    assert [re.sub(r"\s+", " ", script) for script in inline] == [
        '<script type="text/javascript"> var autorefresh = {{ autorefresh }}; </script>'
    ]


def test_script_files_are_served_by_flower() -> None:
    sources = re.findall(r'<script[^>]*\ssrc="([^"]*)"', ALL)
    assert sources
    assert all(source.startswith("{{ static_url(") for source in sources)


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(r"<\w[^>]*\son\w+\s*=", id="event-handler-attributes"),
        pytest.param(r"javascript:", id="javascript-links"),
        pytest.param(r"<(style|iframe|object|embed|base)\b", id="elements"),
        pytest.param(r"<form[^>]*\saction\s*=", id="form-actions"),
        pytest.param(r"<meta[^>]*http-equiv", id="meta-http-equiv"),
        pytest.param(r"xsrf_form_html|set_resources", id="tornado-embedded-resources"),
    ],
)
def test_templates_contain_nothing_that_the_policy_blocks(forbidden: str) -> None:
    script = (Path(flower_settings["static_path"]) / FLOWER_JS).read_text()
    assert not re.findall(forbidden, ALL + script, re.IGNORECASE)


def test_templates_have_one_style_attribute() -> None:
    assert re.findall(r'\sstyle="[^"]*"', ALL) == [' style="width: 125px;"']
