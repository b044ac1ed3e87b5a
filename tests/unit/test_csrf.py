"""CSRF protection and Host header validation, from headers alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from flower_proxy.auth.csrf import mask, parse_origin, site_refusal, unmask
from flower_proxy.auth.hosts import host_refusal, parse_allowed_host
from flower_proxy.proxy.addresses import UNIX
from flower_proxy.proxy.location import Location


def headers(*lines: tuple[str, str]) -> HTTPHeaders:
    sent = HTTPHeaders()
    for name, value in lines:
        sent.add(name, value)
    return sent


def location(peer: str = "127.0.0.1", *, host_forwarded: bool = False) -> Location:
    return Location(
        peer=peer,
        trusted=True,
        client=peer,
        scheme="http",
        host="host.example",
        host_forwarded=host_forwarded,
        prefix="",
        path="/",
    )


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        pytest.param("flower.example", True, id="name"),
        pytest.param("flower.example.", True, id="name-trailing-dot"),
        pytest.param("", False, id="none"),
        pytest.param("127.0.0.1", False, id="ipv4"),
        pytest.param("127.0.0.1.", False, id="ipv4-trailing-dot"),
        pytest.param("[::1]:80", False, id="ipv6"),
        pytest.param("[fe80::1%25eth0]", False, id="ipv6-with-zone"),
        pytest.param("127.1", True, id="short-ipv4"),
        pytest.param("0x7f000001", True, id="hexadecimal"),
        pytest.param("127.0.0.1:80:80", True, id="two-ports"),
        pytest.param("[evil.example]", True, id="name-in-brackets"),
        pytest.param("localhost", False, id="localhost"),
        pytest.param("a.b.localhost", False, id="subdomain-of-localhost"),
        pytest.param("localhost:x", True, id="localhost-invalid-port"),
        pytest.param(".localhost", False, id="localhost-leading-dot"),
        pytest.param("evil.example@localhost", True, id="userinfo"),
        pytest.param("l\xf6calhost", True, id="not-ascii"),
    ],
)
def test_host_header_validation(host: str, refused: bool) -> None:
    assert (host_refusal(headers(("Host", host)), location(), ()) is not None) is refused


def test_multiple_host_headers_are_refused() -> None:
    two = headers(("Host", "evil.example"), ("Host", "localhost"))
    assert host_refusal(two, location(), ["localhost"]) is not None


def test_any_host_is_allowed_on_a_unix_socket() -> None:
    assert host_refusal(headers(("Host", "flower.example")), location(UNIX), ()) is None


@pytest.mark.parametrize(
    ("connection", "refused"),
    [
        pytest.param([], False, id="none"),
        pytest.param(["close"], False, id="close"),
        pytest.param(["upgrade"], False, id="upgrade"),
        pytest.param(["keep-alive"], True, id="browser"),
        pytest.param(["Keep-Alive"], True, id="capitals"),
        pytest.param(["close", "keep-alive"], True, id="two-lines"),
    ],
)
def test_a_forwarded_host_allows_the_host_unless_a_browser_sent_it(connection: list[str], refused: bool) -> None:
    sent = headers(("Host", "evil.example"), *(("Connection", value) for value in connection))
    assert (host_refusal(sent, location(host_forwarded=True), ()) is not None) is refused
    assert host_refusal(sent, location(host_forwarded=False), ()) is not None


def test_the_refusal_truncates_the_host() -> None:
    reason = host_refusal(headers(("Host", "x" * 10_000)), location(), ())
    assert reason is not None
    assert len(reason) < 400


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
def test_cross_site_subresource_loads_are_refused(site: str) -> None:
    sent = headers(("Sec-Fetch-Site", site))
    assert site_refusal(sent, reads=True, cors_origins=()) is not None
    assert site_refusal(sent, reads=False, cors_origins=()) is not None


@pytest.mark.parametrize("reads", [True, False])
def test_only_refused_reads_mention_cors_origins(reads: bool) -> None:
    reason = site_refusal(headers(("Sec-Fetch-Site", "cross-site")), reads=reads, cors_origins=())
    assert reason is not None
    assert ("--cors_origins" in reason) is reads


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("flower.example", "flower.example"),
        (" Flower.EXAMPLE. ", "flower.example"),
        (".example.com", ".example.com"),
        ("upstream", "upstream"),
        ("my_service", "my_service"),
        ("xn--blmchen-n2a.example", "xn--blmchen-n2a.example"),
    ],
)
def test_allowed_hosts_are_normalized(text: str, name: str) -> None:
    assert parse_allowed_host(text) == name


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "..", "*", "*.example.com", "flower.example:5555", "https://flower.example", "a..b", "a b", "[::1]"],
)
def test_invalid_allowed_hosts_are_rejected_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"flower\.example\.com"):
        parse_allowed_host(text)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://dashboard.example", "https://dashboard.example"),
        (" HTTPS://Dashboard.Example:8443 ", "https://dashboard.example:8443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_cors_origins_are_normalized(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "null",
        "dashboard.example",
        "https://",
        "https://dashboard.example/",
        "https://dashboard.example/page",
        "https://*.example",
        "https://a, https://b",
        "https://user@dashboard.example",
        "file:///page",
    ],
)
def test_invalid_origins_are_rejected_with_an_example(text: str) -> None:
    """``null`` is the origin of every sandbox and local file; with ``*``, browsers send no credentials."""
    with pytest.raises(ValueError, match=r"https://dashboard\.example\.com"):
        parse_origin(text)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        pytest.param("https://dashboard.example:443", "https://dashboard.example", id="https"),
        pytest.param("http://dashboard.example:80", "http://dashboard.example", id="http"),
    ],
)
def test_the_default_port_is_removed_from_origins(text: str, sent: str) -> None:
    """Browsers omit the default port, so the option would silently have no effect."""
    assert parse_origin(text) == sent


@given(st.binary(max_size=300))
def test_a_masked_token_is_restored(token: bytes) -> None:
    masked = {mask(token) for _ in range(3)}
    assert {unmask(text) for text in masked} == {token.decode(errors="replace")}
    assert len(masked) == 3 or len(token) < 8


@pytest.mark.parametrize("text", ["", "a", "=", "\xe9", "2|1:0|10:1", "AAAA", "AA==", "A" * 401])
def test_unmasking_another_text_gives_no_valid_token(text: str) -> None:
    assert not unmask(text).strip("\0")
