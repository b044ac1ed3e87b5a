"""The Content-Security-Policy and its frame ancestors."""

from __future__ import annotations

import pytest

from flower_proxy.settings.validators import parse_frame_ancestor, parse_frame_ancestors
from flower_proxy.web.security_headers import content_security_policy


def directives(policy: str) -> dict[str, str]:
    return dict(directive.split(" ", 1) for directive in policy.split("; "))


def test_the_content_security_policy_of_pages() -> None:
    assert directives(content_security_policy("bm9uY2U", ["'self'", "https://portal.example"])) == {
        "default-src": "'self'",
        "script-src": "'self' 'nonce-bm9uY2U'",
        "style-src": "'self'",
        "style-src-attr": "'unsafe-inline'",
        "img-src": "'self' data:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'self' https://portal.example",
    }


def test_the_policy_without_a_nonce_blocks_inline_scripts() -> None:
    assert directives(content_security_policy("", ["'self'"]))["script-src"] == "'self'"


@pytest.mark.parametrize(
    ("text", "ancestor"),
    [
        pytest.param("self", "'self'", id="self"),
        pytest.param("'self'", "'self'", id="self-quoted"),
        pytest.param("none", "'none'", id="none"),
        pytest.param("'none'", "'none'", id="none-quoted"),
        pytest.param("Self", "'self'", id="self-capital"),
        pytest.param("https://portal.example", "https://portal.example", id="origin"),
        pytest.param("https://portal.example:8443", "https://portal.example:8443", id="origin-port"),
        pytest.param("http://portal.example", "http://portal.example", id="origin-http"),
        pytest.param("https://*.example.com", "https://*.example.com", id="origin-subdomains"),
        pytest.param("https://*.example.com:8443", "https://*.example.com:8443", id="origin-subdomains-port"),
        pytest.param("http://localhost:3000", "http://localhost:3000", id="origin-one-label"),
        pytest.param("https://192.0.2.1", "https://192.0.2.1", id="origin-address"),
        pytest.param("HTTPS://Portal.Example", "https://portal.example", id="origin-capitals"),
    ],
)
def test_frame_ancestors_are_normalized(text: str, ancestor: str) -> None:
    assert parse_frame_ancestor(text) == ancestor


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("*", id="wildcard"),
        pytest.param("portal.example", id="no-scheme"),
        pytest.param("https:", id="scheme-alone"),
        pytest.param("https://", id="no-host"),
        pytest.param("data:", id="data"),
        pytest.param("ftp://portal.example", id="other-scheme"),
        pytest.param("https://portal.example/", id="slash"),
        pytest.param("https://portal.example/flower", id="path"),
        pytest.param("https://portal.example?x", id="query"),
        pytest.param("https://user@portal.example", id="user"),
        pytest.param("https://*", id="any-host"),
        pytest.param("https://portal.*", id="trailing-wildcard"),
        pytest.param("https://*portal.example", id="wildcard-without-dot"),
        pytest.param("https://portal..example", id="two-dots"),
        pytest.param("https://portal.example:", id="no-port"),
        pytest.param("https://portal.example:*", id="any-port"),
        pytest.param("https://portal.example:0", id="port-0"),
        pytest.param("https://portal.example:65536", id="port-too-high"),
        pytest.param("https://portal.example:\u0663", id="port-in-non-ascii-digits"),
        pytest.param("https://portal.example; script-src *", id="another-directive"),
        pytest.param("https://a.example https://b.example", id="two"),
        pytest.param("https://a.example,https://b.example", id="two-with-a-comma"),
        pytest.param("https://portal.example\n", id="newline"),
        pytest.param("https://bücher.example", id="not-ascii"),
        pytest.param("'self", id="unbalanced-quote"),
        pytest.param("'https://portal.example'", id="origin-quoted"),
        pytest.param("'unsafe-inline'", id="another-keyword"),
    ],
)
def test_invalid_frame_ancestors_are_rejected_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not self, none, or an origin") as raised:
        parse_frame_ancestor(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("texts", "ancestors"),
    [
        pytest.param(["self"], ("'self'",), id="self"),
        pytest.param(["none"], ("'none'",), id="none"),
        pytest.param(["self", "https://a.example"], ("'self'", "https://a.example"), id="several"),
    ],
)
def test_lists_of_frame_ancestors_are_parsed(texts: list[str], ancestors: tuple[str, ...]) -> None:
    assert parse_frame_ancestors(texts) == ancestors


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        pytest.param([], "the list is empty", id="empty"),
        pytest.param(["none", "self"], "cannot be combined", id="none-and-self"),
        pytest.param(["https://a.example", "'none'"], "cannot be combined", id="origin-and-none"),
        pytest.param(["self", "*"], r"'\*' is not", id="one-invalid"),
    ],
)
def test_empty_or_contradictory_frame_ancestors_are_rejected(texts: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_frame_ancestors(texts)
