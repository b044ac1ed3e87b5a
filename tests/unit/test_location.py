"""Tables of cases for the rules of the public location."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from flower_proxy.proxy.addresses import UNIX, TrustedProxies, normalize_peer, parse_address
from flower_proxy.proxy.headers import ForwardedHeaderError
from flower_proxy.proxy.location import Location, Locator, PublicURL
from flower_proxy.proxy.paths import parse_mount, parse_next, strip_prefix

PAGES = {"/", "/workers", "/tasks", "/tasks/datatable", "/healthcheck"}


def is_page(path: str) -> bool:
    return path in PAGES or path.startswith(("/worker/", "/task/", "/static/", "/api/"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request from a trusted proxy by default."""

    path: str = "/tasks"
    headers: list[tuple[str, str]] = field(default_factory=list)
    mount: str = ""
    peer: str = "127.0.0.1"
    host: str = "127.0.0.1:5555"
    scheme: str = "http"
    trusted: tuple[str, ...] = ("127.0.0.0/8", "::1", "unix")
    xheaders: bool = False

    def locate(self) -> Location:
        headers = HTTPHeaders()
        for name, value in self.headers:
            headers.add(name, value)
        locator = Locator(
            mount=parse_mount(self.mount),
            trusted=TrustedProxies(self.trusted),
            is_page=is_page,
            xheaders=self.xheaders,
        )
        return locator.locate(peer=self.peer, scheme=self.scheme, host=self.host, path=self.path, headers=headers)


@pytest.mark.parametrize(
    ("request_", "prefix", "path"),
    [
        # no forwarded prefix, no option
        pytest.param(Request(path="/tasks"), None, "/tasks", id="unknown"),
        pytest.param(Request(path="//tasks"), None, "/tasks", id="unknown-leading-double-slash"),
        # option only
        pytest.param(Request(mount="flower", path="/flower/tasks"), "/flower", "/tasks", id="kept"),
        pytest.param(Request(mount="flower", path="/tasks"), "/flower", "/tasks", id="stripped"),
        pytest.param(Request(mount="flower", path="//tasks"), "/flower", "/tasks", id="stripped-leading-double-slash"),
        pytest.param(Request(mount="flower", path="/flower/"), "/flower", "/", id="kept-root"),
        pytest.param(Request(mount="flower", path="/flower"), "/flower", "", id="kept-without-slash"),
        pytest.param(Request(mount="flower", path="/flower//tasks"), "/flower", "/tasks", id="kept-double-slash"),
        pytest.param(
            Request(mount="flower", path="/flowerx/tasks"), "/flower", "/flowerx/tasks", id="segment-boundary"
        ),
        pytest.param(Request(mount="flower", path="/flower/flower/tasks"), "/flower", "/tasks", id="doubled"),
        pytest.param(Request(mount="flower", path="/flower/flower"), "/flower", "", id="doubled-without-slash"),
        pytest.param(
            Request(mount="fl\xf6wer", path="/fl%C3%B6wer/tasks", headers=[("X-Forwarded-Prefix", "/fl%c3%b6wer")]),
            "/fl%c3%b6wer",
            "/tasks",
            id="encoded-differently",
        ),
        pytest.param(
            Request(mount="a%2Bb", path="/a+b/tasks", headers=[("X-Forwarded-Prefix", "/a+b")]),
            "/a+b",
            "/tasks",
            id="encoded-in-one-only",
        ),
        pytest.param(Request(mount="a/b/flower", path="/a/b/flower/tasks"), "/a/b/flower", "/tasks", id="nested-kept"),
        pytest.param(Request(mount="a/b/flower", path="/tasks"), "/a/b/flower", "/tasks", id="nested-stripped"),
        pytest.param(Request(mount="a/b/flower", path="/a/b/tasks"), "/a/b/flower", "/a/b/tasks", id="nested-partly"),
        pytest.param(Request(mount="flower", path="/healthcheck"), "/flower", "/healthcheck", id="health-unprefixed"),
        pytest.param(Request(mount="flower", path="/%66lower/tasks"), "/flower", "/tasks", id="encoded-path"),
        pytest.param(
            Request(mount="my flower", path="/my%20flower/tasks"), "/my%20flower", "/tasks", id="encoded-both"
        ),
        pytest.param(
            Request(mount="flower", path="/flower/worker/a%2Fb"), "/flower", "/worker/a%2Fb", id="slash-in-name"
        ),
        pytest.param(
            Request(mount="flower", path="/a%2Fflower/tasks"),
            "/flower",
            "/a%2Fflower/tasks",
            id="encoded-slash-is-no-boundary",
        ),
        # prefix named like a page: the option has precedence without the header, the page with it
        pytest.param(Request(mount="tasks", path="/tasks"), "/tasks", "", id="page-name-kept-without-slash"),
        pytest.param(Request(mount="tasks", path="/tasks/"), "/tasks", "/", id="page-name-kept-root"),
        pytest.param(Request(mount="tasks", path="/tasks/tasks"), "/tasks", "/tasks", id="page-name-kept-page"),
        pytest.param(
            Request(mount="tasks", path="/tasks/tasks/datatable"),
            "/tasks",
            "/tasks/datatable",
            id="page-name-kept-below",
        ),
        pytest.param(
            Request(path="/tasks", headers=[("X-Forwarded-Prefix", "/tasks")]),
            "/tasks",
            "/tasks",
            id="page-name-header",
        ),
        pytest.param(
            Request(path="/tasks/datatable", headers=[("X-Forwarded-Prefix", "/tasks")]),
            "/tasks",
            "/tasks/datatable",
            id="page-name-header-below",
        ),
        # header only
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "/flower")]), "/flower", "/tasks", id="header-stripped"),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "/flower/")]), "/flower", "/tasks", id="header-slash"),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "flower")]), "/flower", "/tasks", id="header-bare"),
        pytest.param(
            Request(path="/flower/tasks", headers=[("X-Forwarded-Prefix", "/flower")]),
            "/flower",
            "/tasks",
            id="header-kept",
        ),
        pytest.param(
            Request(path="/flower", headers=[("X-Forwarded-Prefix", "/flower")]),
            "/flower",
            "",
            id="header-kept-no-slash",
        ),
        pytest.param(Request(headers=[("X-Script-Name", "/flower")]), "/flower", "/tasks", id="script-name"),
        pytest.param(
            Request(headers=[("X-Script-Name", "/no"), ("X-Forwarded-Prefix", "/flower")]),
            "/flower",
            "/tasks",
            id="prefix-before-script-name",
        ),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "")]), None, "/tasks", id="header-empty"),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", ",")]), None, "/tasks", id="header-empty-values"),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "/")]), "", "/tasks", id="header-root"),
        pytest.param(Request(headers=[("X-Forwarded-Prefix", "/a, /b")]), "/a/b", "/tasks", id="header-values-joined"),
        pytest.param(
            Request(headers=[("X-Forwarded-Prefix", "/a"), ("X-Forwarded-Prefix", "/b/")]),
            "/a/b",
            "/tasks",
            id="header-lines-joined",
        ),
        pytest.param(
            Request(headers=[("X-Forwarded-Prefix", "/caf%C3%A9")]), "/caf%C3%A9", "/tasks", id="header-percent-encoded"
        ),
        # option and header
        pytest.param(
            Request(mount="flower", headers=[("X-Forwarded-Prefix", "/flower")]),
            "/flower",
            "/tasks",
            id="both-stripped",
        ),
        pytest.param(
            Request(mount="flower", path="/flower/tasks", headers=[("X-Forwarded-Prefix", "/outer")]),
            "/outer/flower",
            "/tasks",
            id="outer-stripped-inner-kept",
        ),
        pytest.param(
            Request(mount="flower", path="/flower/tasks", headers=[("X-Forwarded-Prefix", "/outer/flower")]),
            "/outer/flower",
            "/tasks",
            id="header-ends-with-the-kept-prefix",
        ),
        pytest.param(
            Request(mount="b", path="/a/b/tasks", headers=[("X-Forwarded-Prefix", "/a/b")]),
            "/a/b",
            "/tasks",
            id="longer-match-is-stripped",
        ),
        pytest.param(
            Request(mount="flower", headers=[("X-Forwarded-Prefix", "/other")]), "/other", "/tasks", id="header-wins"
        ),
        # headers of untrusted peers are ignored
        pytest.param(
            Request(peer="192.0.2.9", headers=[("X-Forwarded-Prefix", "/evil")]), None, "/tasks", id="untrusted-header"
        ),
        pytest.param(
            Request(peer="192.0.2.9", headers=[("X-Forwarded-Prefix", "//evil")]),
            None,
            "/tasks",
            id="untrusted-garbage",
        ),
        pytest.param(
            Request(peer=UNIX, trusted=("10.0.0.0/8",), headers=[("X-Forwarded-Prefix", "/evil")]),
            None,
            "/tasks",
            id="untrusted-unix",
        ),
        pytest.param(
            Request(peer=UNIX, headers=[("X-Forwarded-Prefix", "/flower")]), "/flower", "/tasks", id="trusted-unix"
        ),
    ],
)
def test_prefix_and_path_of_a_request(request_: Request, prefix: str | None, path: str) -> None:
    location = request_.locate()
    assert (location.prefix, location.path) == (prefix, path)


@pytest.mark.parametrize(
    ("request_", "client"),
    [
        pytest.param(Request(), "127.0.0.1", id="no-header"),
        pytest.param(Request(headers=[("X-Forwarded-For", "192.0.2.1")]), "192.0.2.1", id="one"),
        pytest.param(Request(headers=[("X-Forwarded-For", "6.6.6.6, 192.0.2.1")]), "192.0.2.1", id="first-untrusted"),
        pytest.param(
            Request(headers=[("X-Forwarded-For", "192.0.2.1, 10.0.0.2")], trusted=("127.0.0.1", "10.0.0.0/8")),
            "192.0.2.1",
            id="trusted-hops-are-skipped",
        ),
        pytest.param(
            Request(headers=[("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "127.0.0.9")]),
            "192.0.2.1",
            id="several-lines",
        ),
        pytest.param(Request(headers=[("X-Forwarded-For", "127.0.0.3, 127.0.0.2")]), "127.0.0.3", id="all-trusted"),
        pytest.param(
            Request(headers=[("X-Forwarded-For", "6.6.6.6, what?, 127.0.0.2")]),
            "127.0.0.2",
            id="malformed-address-ends-the-walk",
        ),
        pytest.param(Request(headers=[("X-Forwarded-For", "fe80::1%eth0")]), "fe80::1", id="zone-of-another-host"),
        pytest.param(Request(headers=[("X-Forwarded-For", "::ffff:192.0.2.1")]), "192.0.2.1", id="ipv4-mapped"),
        pytest.param(Request(headers=[("X-Forwarded-For", "::FFFF:c000:201")]), "192.0.2.1", id="ipv4-mapped-in-hex"),
        pytest.param(Request(headers=[("X-Forwarded-For", "unknown")]), "127.0.0.1", id="unknown"),
        pytest.param(Request(headers=[("X-Forwarded-For", "")]), "127.0.0.1", id="empty"),
        pytest.param(Request(headers=[("X-Forwarded-For", "192.0.2.1:4711")]), "192.0.2.1", id="port"),
        pytest.param(Request(headers=[("X-Forwarded-For", "[2001:db8::1]:4711")]), "2001:db8::1", id="ipv6-port"),
        pytest.param(Request(headers=[("X-Forwarded-For", "2001:db8::1")]), "2001:db8::1", id="ipv6"),
        pytest.param(Request(peer="::1", headers=[("X-Forwarded-For", "192.0.2.1")]), "192.0.2.1", id="ipv6-peer"),
        pytest.param(
            Request(peer="::ffff:127.0.0.1", headers=[("X-Forwarded-For", "192.0.2.1")]), "192.0.2.1", id="mapped-peer"
        ),
        pytest.param(Request(peer=UNIX, headers=[("X-Forwarded-For", "192.0.2.1")]), "192.0.2.1", id="unix"),
        pytest.param(Request(peer="192.0.2.9", headers=[("X-Forwarded-For", "6.6.6.6")]), "192.0.2.9", id="untrusted"),
        pytest.param(Request(headers=[("Forwarded", "for=192.0.2.1")]), "192.0.2.1", id="forwarded"),
        pytest.param(
            Request(headers=[("Forwarded", 'for=6.6.6.6, For="[2001:db8::7]:80";proto=https')]),
            "2001:db8::7",
            id="forwarded-ipv6",
        ),
        pytest.param(Request(headers=[("Forwarded", "for=_hidden")]), "127.0.0.1", id="forwarded-obfuscated"),
        pytest.param(Request(headers=[("Forwarded", "for=;proto=https")]), "127.0.0.1", id="forwarded-empty"),
        pytest.param(
            Request(headers=[("Forwarded", "for=6.6.6.6"), ("X-Forwarded-For", "192.0.2.1")]),
            "192.0.2.1",
            id="x-header-wins",
        ),
        pytest.param(Request(headers=[("X-Real-Ip", "192.0.2.1")]), "127.0.0.1", id="real-ip-without-xheaders"),
        pytest.param(Request(headers=[("X-Real-Ip", "192.0.2.1")], xheaders=True), "192.0.2.1", id="real-ip-xheaders"),
        pytest.param(
            Request(peer="192.0.2.9", headers=[("X-Real-Ip", "6.6.6.6")], xheaders=True),
            "192.0.2.9",
            id="real-ip-untrusted",
        ),
    ],
)
def test_client_of_a_request(request_: Request, client: str) -> None:
    assert request_.locate().client == client


@pytest.mark.parametrize(
    ("request_", "origin"),
    [
        pytest.param(Request(), "http://127.0.0.1:5555", id="host-header"),
        pytest.param(Request(host="Example.COM"), "http://example.com", id="lower-case"),
        pytest.param(Request(host="example.com:80"), "http://example.com", id="default-port"),
        pytest.param(Request(host="example.com:443", scheme="https"), "https://example.com", id="default-port-tls"),
        pytest.param(Request(host="[::1]:8080"), "http://[::1]:8080", id="ipv6-literal"),
        pytest.param(Request(host="[::1]"), "http://[::1]", id="ipv6-literal-no-port"),
        pytest.param(Request(headers=[("X-Forwarded-Host", "a.example:8443")]), "http://a.example:8443", id="host"),
        pytest.param(
            Request(headers=[("X-Forwarded-Host", "a.example, b.example")]), "http://a.example", id="first-host"
        ),
        pytest.param(Request(headers=[("X-Forwarded-Proto", "https")]), "https://127.0.0.1:5555", id="proto"),
        pytest.param(
            Request(headers=[("X-Forwarded-Proto", "HTTPS, http")]), "https://127.0.0.1:5555", id="first-proto"
        ),
        pytest.param(
            Request(host="a.example", headers=[("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "443")]),
            "https://a.example",
            id="port-default",
        ),
        pytest.param(
            Request(host="a.example", headers=[("X-Forwarded-Port", "8080")]), "http://a.example:8080", id="port-added"
        ),
        pytest.param(
            Request(headers=[("X-Forwarded-Host", "a.example:81"), ("X-Forwarded-Port", "8080")]),
            "http://a.example:81",
            id="port-of-the-host-is-kept",
        ),
        pytest.param(
            Request(headers=[("X-Forwarded-Host", "[2001:db8::1]"), ("X-Forwarded-Port", "81")]),
            "http://[2001:db8::1]:81",
            id="port-added-to-ipv6",
        ),
        pytest.param(
            Request(headers=[("Forwarded", 'proto=https;host="a.example:8443"')]),
            "https://a.example:8443",
            id="forwarded",
        ),
        pytest.param(
            Request(headers=[("Forwarded", "proto=https;host=a.example, proto=http;host=b.example")]),
            "https://a.example",
            id="forwarded-first",
        ),
        pytest.param(
            Request(headers=[("Forwarded", "host=evil.example"), ("X-Forwarded-Proto", "https")]),
            "https://127.0.0.1:5555",
            id="forwarded-not-beside-x-headers",
        ),
        pytest.param(Request(headers=[("X-Scheme", "https")], xheaders=True), "https://127.0.0.1:5555", id="x-scheme"),
        pytest.param(Request(headers=[("X-Scheme", "https")]), "http://127.0.0.1:5555", id="x-scheme-without-xheaders"),
        pytest.param(
            Request(peer="192.0.2.9", headers=[("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https")]),
            "http://127.0.0.1:5555",
            id="untrusted",
        ),
    ],
)
def test_origin_of_a_request(request_: Request, origin: str) -> None:
    """Flower's `--xheaders` trusts every peer."""
    assert request_.locate().origin == origin


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-Host", "a b"),
        ("X-Forwarded-Host", "a.example/x"),
        ("X-Forwarded-Host", "a.example@evil.example"),
        ("X-Forwarded-Host", "a.example:0"),
        ("X-Forwarded-Host", "a.example:99999"),
        ("X-Forwarded-Host", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"),
        ("X-Forwarded-Proto", "ftp"),
        ("X-Forwarded-Proto", "javascript"),
        ("X-Forwarded-Port", "0"),
        ("X-Forwarded-Port", "70000"),
        ("X-Forwarded-Port", "80a"),
        ("X-Forwarded-Port", "-1"),
        ("X-Forwarded-Prefix", "//evil.example"),
        ("X-Forwarded-Prefix", "/a//b"),
        ("X-Forwarded-Prefix", "/\\evil.example"),
        ("X-Forwarded-Prefix", "/a/../b"),
        ("X-Forwarded-Prefix", "/a/%2e%2e/b"),
        ("X-Forwarded-Prefix", "/a%2Fb"),
        ("X-Forwarded-Prefix", "/%5Cevil.example"),
        ("X-Forwarded-Prefix", "/a%0d%0aSet-Cookie:x"),
        ("X-Forwarded-Prefix", "/a b"),
        ("X-Forwarded-Prefix", "/a;Domain=evil.example"),
        ("X-Forwarded-Prefix", '/"><script>'),
        ("X-Forwarded-Prefix", "https://evil.example"),
        ("X-Forwarded-Prefix", "/a%"),
        ("X-Script-Name", "//evil.example"),
        ("Forwarded", "for"),
        ("Forwarded", "proto=ftp"),
        ("Forwarded", 'host="a b"'),
        ("Forwarded", 'for="unclosed'),
        ("Forwarded", "for=192.0.2.1 proto=https"),
        # A quadratic parser takes 46 s for this value
        ("Forwarded", "a=1;" + " " * 60_000 + "!"),
    ],
)
def test_a_malformed_header_of_a_trusted_peer_is_rejected_by_name(name: str, value: str) -> None:
    with pytest.raises(ForwardedHeaderError) as raised:
        Request(headers=[(name, value)]).locate()
    assert raised.value.answer.startswith(f"{name} is not ")
    Request(headers=[(name, value)], peer="192.0.2.9").locate()


@pytest.mark.parametrize(
    ("path", "link"),
    [
        pytest.param("/", "./tasks", id="root"),
        pytest.param("/tasks", "./tasks", id="page"),
        pytest.param("/worker/celery@a", "../tasks", id="below"),
        pytest.param("/worker/a%2Fb", "../tasks", id="encoded-slash-is-no-level"),
        pytest.param("/api/task/info/1", "../../../tasks", id="deep"),
    ],
)
def test_links_are_relative_if_the_prefix_is_unknown(path: str, link: str) -> None:
    assert Request(path=path).locate().url("/tasks") == link


@pytest.mark.parametrize(
    ("path", "repeated"),
    [
        ("/flower/tasks", False),
        ("/flower/flower/tasks", True),
        ("/flower//tasks", True),
        ("//tasks", False),
        ("/", False),
    ],
)
def test_a_repeated_prefix_or_slash_is_reported(path: str, repeated: bool) -> None:
    assert Request(mount="flower", path=path).locate().repeated == repeated


def test_the_prefix_is_added_to_a_url_only_once() -> None:
    location = Request(mount="flower").locate()
    once = location.url("/login")
    assert once == "/flower/login"
    assert location.url(once) == "/flower/login"
    assert location.url(once + "?next=%2F") == "/flower/login?next=%2F"
    assert isinstance(once + "?next=%2F", PublicURL)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("", ""),
        ("/", ""),
        ("//", ""),
        (" / ", ""),
        ("flower", "/flower"),
        ("/flower", "/flower"),
        ("flower/", "/flower"),
        ("/flower/", "/flower"),
        ("//a//b/flower//", "/a/b/flower"),
        ("my flower", "/my%20flower"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "/caf%C3%A9"),
        ("/caf%C3%A9", "/caf%C3%A9"),
    ],
)
def test_url_prefix_is_normalized(text: str, mount: str) -> None:
    """A slash (apache/airflow#27402) and several segments (mher/flower#799) broke Flower."""
    assert parse_mount(text) == mount
    assert parse_mount(mount) == mount


@pytest.mark.parametrize("text", ["https://host/flower", "a/../b", "a?b", "a#b", "a\\b", "%2F", "%zz", "a;b", 'a"b'])
def test_an_invalid_url_prefix_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="a path such as /flower"):
        parse_mount(text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("::ffff:10.0.0.1", "IPv4-mapped address as IPv4"),
        ("fe80::1%eth0", "omit the zone"),
        ("proxy", "'proxy' is not an IP address"),
        ("10.0.0.0/99", "'10.0.0.0/99' is not"),
        ("*", "is not an IP address"),
    ],
)
def test_invalid_trusted_proxies_are_rejected(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustedProxies([entry])


def test_membership_of_trusted_proxies() -> None:
    trusted = TrustedProxies([" 10.0.0.0/8", "2001:db8::/32", "192.0.2.1", ""])
    assert "10.1.2.3" in trusted
    assert "::ffff:10.1.2.3" in trusted
    assert "2001:db8:1::1" in trusted
    assert "192.0.2.1" in trusted
    assert "192.0.2.2" not in trusted
    assert "11.0.0.1" not in trusted
    assert UNIX not in trusted
    assert "nonsense" not in trusted
    assert "127.0.0.1" not in TrustedProxies([])


@pytest.mark.parametrize(
    "target",
    [
        "",
        "tasks",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\tevil",
        "\t//evil.example",
        "/\t/evil.example",
        "/a\r\nSet-Cookie: x=y",
        "/a b",
        "/\x00",
        "/..//evil.example",
        "/a//b",
        "/./%2fevil",
        "/%2e%2e/admin",
        "/" + "a" * 1000,
    ],
)
def test_redirects_after_login_stay_on_the_site(target: str) -> None:
    assert parse_next(target) is None


def test_the_target_of_the_redirect_after_login_is_kept() -> None:
    assert parse_next("/tasks?state=FAILURE&name=a%2Fb") == "/tasks?state=FAILURE&name=a%2Fb"


@pytest.mark.parametrize(
    ("remote", "peer", "entry"),
    [
        pytest.param("192.0.2.2", "192.0.2.2", "192.0.2.0/24", id="ipv4"),
        pytest.param("::ffff:192.0.2.2", "192.0.2.2", "192.0.2.0/24", id="ipv4-mapped"),
        pytest.param("2001:db8::2", "2001:db8::2", "2001:db8::/32", id="ipv6"),
        pytest.param("fe80::1%eth0", "fe80::1", "fe80::/10", id="link-local"),
        pytest.param("fe80::1%2", "fe80::1", "fe80::1", id="link-local-with-a-number"),
        pytest.param(UNIX, UNIX, UNIX, id="unix-socket"),
    ],
)
def test_peers_are_spelled_as_in_trusted_proxies(remote: str, peer: str, entry: str) -> None:
    assert normalize_peer(remote) == peer
    assert peer in TrustedProxies([entry])
    assert peer in TrustedProxies([peer]), "the option that the log suggests is valid and effective"


@given(st.text())
def test_any_text_can_be_parsed_as_an_address(text: str) -> None:
    address = parse_address(text)
    assert address is None or str(parse_address(str(address))) == str(address)


@given(st.lists(st.sampled_from(["flower", "a", "%66lower", "a%2Fb", ""]), max_size=4).map("/".join))
def test_a_prefix_is_stripped_only_at_a_segment_boundary(rest: str) -> None:
    path = f"/flower/{rest}"
    assert strip_prefix(path, "/flower") == f"/{rest}"
    assert strip_prefix(f"/flowerx/{rest}", "/flower") is None
