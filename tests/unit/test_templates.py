"""The corrected templates: what is put in, that nothing else changes, and what they lean on in Flower's."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tornado.template import DictLoader, Loader

from flower_proxy._flower import FLOWER_JS, flower_settings
from flower_proxy.web.mixins import Proxied
from flower_proxy.web.templates import Page, TemplateError, add_nonces, corrected_templates, insert

FOLDER = Path(flower_settings["template_path"])
NAMES = sorted(path.name for path in FOLDER.iterdir())
ORIGINALS = {name: (FOLDER / name).read_text(encoding="utf-8") for name in NAMES}
ALL = "\n".join(ORIGINALS.values())

HEAD = "{% raw handler.page_head %}"
NONCE = ' nonce="{{ handler.csp_nonce }}"'
NAME = re.compile(r'\{% if handler\.who %\}<li class="nav-item">.*?</li>\{% end %\}')


def without_corrections(source: str) -> str:
    return NAME.sub("", source).replace(HEAD, "").replace(NONCE, "")


@pytest.fixture
def corrected() -> DictLoader:
    return corrected_templates(FOLDER)


# What is put in


def handler(who: str | None = None, may_control: bool = True) -> SimpleNamespace:
    application = SimpleNamespace(options=SimpleNamespace(auth=""))
    return SimpleNamespace(
        page_head='<meta name="mine">', csp_nonce="n0nce", who=who, may_control=may_control, application=application
    )


def render(loader: DictLoader, name: str, handler: SimpleNamespace, **variables: object) -> str:
    def link(name: str) -> str:
        return f"/{name}"

    modules = SimpleNamespace(Template=lambda name, **variables: render(loader, name, handler, **variables))
    namespace = {"handler": handler, "static_url": link, "reverse_url": link, "current_user": True, **variables}
    return loader.load(name).generate(_tt_modules=modules, url_prefix="", **namespace).decode()


def test_the_head_of_a_page_begins_with_ours(corrected: DictLoader) -> None:
    assert '<head><meta name="mine">' in render(corrected, "404.html", handler(), message="")


def test_the_script_of_a_page_carries_the_nonce(corrected: DictLoader) -> None:
    page = render(corrected, "workers.html", handler(), workers={}, autorefresh=1)
    assert re.findall(r"<script(?! src=)[^>]*>", page) == ['<script nonce="n0nce" type="text/javascript">']
    assert page.count("n0nce") == 1


@pytest.mark.parametrize(
    ("who", "may_control", "shown"),
    [
        pytest.param("bob", True, ["bob"], id="named"),
        pytest.param("bob", False, ["bob (may look only)"], id="may-look-only"),
        pytest.param("<b>&", True, ["&lt;b&gt;&amp;"], id="escaped"),
        pytest.param("", True, [], id="empty"),
        pytest.param(None, True, [], id="nobody"),
        pytest.param(None, False, [], id="nobody-may-look-only"),
    ],
)
def test_every_page_says_who_is_logged_in(
    corrected: DictLoader, who: str | None, may_control: bool, shown: list[str]
) -> None:
    page = render(corrected, "404.html", handler(who, may_control), message="")
    assert re.findall(r'<li class="nav-item"><span class="nav-link[^"]*">(.*?)</span></li>', page) == shown


def as_page(handler: Proxied) -> Page:
    """What mypy checks: every handler has what the corrected templates ask for."""
    return handler


def test_the_templates_ask_a_handler_for_no_more(corrected: DictLoader) -> None:
    asked = {attribute for name in NAMES for attribute in asked_of_handler(corrected, name)}
    assert asked == {name for name in vars(Page) if isinstance(vars(Page)[name], property)}
    assert all(hasattr(Proxied, name) for name in asked)


def asked_of_handler(corrected: DictLoader, name: str) -> set[str]:
    corrected.load(name)
    return set(re.findall(r"\bhandler\.(\w+)", corrected.dict[name])) - {"application"}


# Nothing else changes


@pytest.mark.parametrize("name", NAMES)
def test_only_the_corrections_differ(name: str, corrected: DictLoader) -> None:
    corrected.load(name)
    assert without_corrections(corrected.dict[name]) == ORIGINALS[name]


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_compiled_as_by_tornados_own_loader(name: str) -> None:
    assert DictLoader(ORIGINALS).load(name).code == Loader(str(FOLDER)).load(name).code


def test_exactly_three_files_are_corrected(corrected: DictLoader) -> None:
    changed = {name for name in NAMES if corrected.load(name) and corrected.dict[name] != ORIGINALS[name]}
    assert changed == {"base.html", "navbar.html", "workers.html"}


def test_a_login_provider_can_bring_a_page_of_its_own(corrected: DictLoader, tmp_path: Path) -> None:
    """By its whole path, as with Tornado's own loader; it can stand in Flower's layout."""
    own = tmp_path / "own.html"
    own.write_text('{% extends "base.html" %}{% block container %}<script>mine()</script>{% end %}')
    page = render(corrected, str(own), handler())
    assert '<script nonce="n0nce">mine()</script>' in page
    assert '<meta name="mine">' in page


# Where the installed Flower has no place for a correction


def test_what_has_no_place_is_left_out_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base.html").write_text("<head lang=en><script>flower()</script>")
    with caplog.at_level(logging.WARNING):
        loader = corrected_templates(tmp_path)
        page = render(loader, "base.html", handler("bob"))
    # A script of Flower's would not run without
    assert page == '<head lang=en><script nonce="n0nce">flower()</script>'
    base, navbar = [record.getMessage() for record in caplog.records]
    assert base.startswith("Cannot correct Flower's base.html: it has no places that match <head>; ")
    assert navbar.startswith("Cannot correct Flower's navbar.html: ")
    assert navbar.endswith("; it names nobody")


def test_flowers_templates_have_every_place(caplog: pytest.LogCaptureFixture) -> None:
    corrected_templates(FOLDER)
    assert not caplog.records


def test_a_piece_goes_behind_the_one_place() -> None:
    assert insert("a<b>c", re.compile("<b>"), "|") == "a<b>|c"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("ac", "no places that match <b>", id="none"),
        pytest.param("<b><b>", "2 places that match <b>", id="two"),
    ],
)
def test_a_piece_without_its_one_place(source: str, message: str) -> None:
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
def test_scripts_in_the_page_get_a_nonce_and_files_do_not(source: str, has_nonce: bool) -> None:
    changed = add_nonces(source)
    assert (changed.replace(NONCE, ""), changed.count(NONCE)) == (source, int(has_nonce))


# What they lean on in Flower's: what fails here tells what a release moved


def test_templates_are_html_in_one_folder() -> None:
    assert all((FOLDER / name).suffix == ".html" for name in NAMES)
    assert {"base.html", "navbar.html"} <= set(NAMES)


def test_every_page_has_the_layout_and_the_navigation_bar() -> None:
    pages = set(NAMES) - {"base.html", "navbar.html"}
    assert all(ORIGINALS[name].startswith('{% extends "base.html" %}') for name in pages)
    overriding = {name for name in NAMES if "{% block navbar %}" in ORIGINALS[name]}
    assert all('{% module Template("navbar.html"' in ORIGINALS[name] for name in overriding)
    assert "base.html" in overriding


def test_one_script_stands_in_a_page() -> None:
    inline = re.findall(r"<script(?![^>]*\ssrc=).*?</script>", ALL, re.DOTALL)
    assert [re.sub(r"\s+", " ", script) for script in inline] == [
        '<script type="text/javascript"> var autorefresh = {{ autorefresh }}; </script>'
    ]


def test_scripts_come_from_flower_itself() -> None:
    sources = re.findall(r'<script[^>]*\ssrc="([^"]*)"', ALL)
    assert sources
    assert all(source.startswith("{{ static_url(") for source in sources)


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(r"<\w[^>]*\son\w+\s*=", id="handlers-in-attributes"),
        pytest.param(r"javascript:", id="javascript-links"),
        pytest.param(r"<(style|iframe|object|embed|base)\b", id="elements"),
        pytest.param(r"<form[^>]*\saction\s*=", id="forms-sent-elsewhere"),
        pytest.param(r"<meta[^>]*http-equiv", id="policies-of-their-own"),
        pytest.param(r"xsrf_form_html|set_resources", id="what-tornado-would-embed"),
    ],
)
def test_nothing_that_the_policy_forbids(forbidden: str) -> None:
    script = (Path(flower_settings["static_path"]) / FLOWER_JS).read_text()
    assert not re.findall(forbidden, ALL + script, re.IGNORECASE)


def test_one_style_attribute() -> None:
    assert re.findall(r'\sstyle="[^"]*"', ALL) == [' style="width: 125px;"']
