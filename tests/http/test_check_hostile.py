"""``flower-proxy check`` against hostile servers."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_proxy.check.checks import CHECKS
from flower_proxy.check.client import MAX_RESPONSE_SIZE, Client, parse_target
from flower_proxy.check.findings import Finding
from flower_proxy.check.report import MAX_DEPTH, PATH, Report, WorkerReport, parse_json, validate_report
from flower_proxy.cli.check import run_checks, show
from tests.support.hostile import answering, forever, ok
from tests.unit.test_findings import REPORT, evidence, responding

# Hypothesis takes a second or two to draw its first text
SLOW_EXAMPLES = settings(suppress_health_check=[HealthCheck.too_slow])
BODY = json.dumps(asdict(REPORT)).encode()


def findings_for(
    pieces: Callable[[bytes], Iterable[bytes]], *, scheme: str = "http", timeout: float = 30, pause: float = 0
) -> list[Finding]:
    with answering(pieces, pause=pause) as address:
        target = parse_target(f"{scheme}://{address}/flower/")
        return run_checks(Client(target, "", ssl.create_default_context(), timeout=timeout))


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "sends-nothing": ([b""], 60),
    "slow-status-line": (forever(b"H"), 0.05),
    "slow-headers": (forever(b"a", after=HEAD + b"X: "), 0.05),
    "slow-body": (forever(b"a", after=HEAD + b"Content-Length: 100000\r\n\r\n"), 0.05),
    "slow-chunks": (forever(b"1\r\na\r\n", after=CHUNKED), 0.05),
    "slow-1xx": (forever(b"HTTP/1.1 100 Continue\r\n\r\n"), 0.05),
    "slow-trailers": (forever(b"X: y\r\n", after=CHUNKED + b"0\r\n"), 0.05),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_slow_responses_end_at_deadline(name: str) -> None:
    pieces, pause = ENDLESS[name]
    (finding,) = findings_for(lambda _: pieces, timeout=0.5, pause=pause)
    assert finding.message.endswith("does not answer all requests within 0.5 seconds")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://[fe80::abcd]/flower/", "[fe80::abcd]"),
        ("http://[::1]/", "[::1]"),
        ("http://example.com:80/", "example.com"),
    ],
)
def test_default_port_is_omitted_from_host_header(url: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """http.client parses the last group of an IPv6 address as a port."""
    requests = []

    def record(request: bytes) -> Iterable[bytes]:
        requests.append(request.decode())
        return [ok(b"")]

    with answering(record) as address:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", address.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        answer = Client(parse_target(url), "", ssl.create_default_context()).request("/")
    assert (answer.status, answer.problem) == (200, "")
    assert f"\r\nHost: {host}\r\n" in requests[0]


def test_slow_tls_handshake_ends_at_deadline() -> None:
    record = forever(b"x", after=b"\x16\x03\x03\x40\x00")
    (finding,) = findings_for(lambda _: record, scheme="https", timeout=0.5, pause=0.05)
    assert finding.message.endswith("does not answer all requests within 0.5 seconds")


def test_deadline_covers_all_requests() -> None:
    """Each of more than 20 responses takes a fifth of the timeout."""
    (finding,) = findings_for(lambda _: [ok(BODY)], timeout=1, pause=0.2)
    assert finding.message.endswith("does not answer all requests within 1 seconds")


LARGE = f"a response of more than {MAX_RESPONSE_SIZE // 1_000_000} MB"
NO_HTTP = "does not answer in HTTP"
NOT_FLOWER = "but is not Flower"
INCOMPLETE = "the response is incomplete"
MALFORMED = {
    "endless-1xx": (forever(1000 * b"HTTP/1.1 100 Continue\r\n\r\n"), LARGE),
    "endless-headers": (forever(1000 * b"X: y\r\n", after=HEAD), NO_HTTP),
    "endless-header-line": (forever(65536 * b"x", after=HEAD), NO_HTTP),
    "endless-body": (forever(65536 * b"x", after=HEAD + b"\r\n"), LARGE),
    "endless-chunks": (forever(b"10000\r\n" + 65536 * b"x" + b"\r\n", after=CHUNKED), LARGE),
    "endless-trailers": (forever(1000 * b"X: y\r\n", after=CHUNKED + b"0\r\n"), LARGE),
    "wrong-length": ([HEAD + b"Content-Length: 1000\r\n\r\n{}"], INCOMPLETE),
    "length-exceeds-memory": ([HEAD + b"Content-Length: " + b"9" * 18 + b"\r\n\r\n{}"], INCOMPLETE),
    "length-of-many-digits": ([HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"], NOT_FLOWER),
    "negative-length": ([HEAD + b"Content-Length: -1\r\n\r\n{}"], NOT_FLOWER),
    "chunk-size-exceeds-memory": ([CHUNKED + b"f" * 15 + b"\r\n{}"], INCOMPLETE),
    "invalid-chunk-size": ([CHUNKED + b"zz\r\n{}"], INCOMPLETE),
    "negative-chunk-size": ([CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n"], ""),
    "no-status": ([b"\x00\xff\r\n\r\n"], NO_HTTP),
    "status-of-many-digits": ([b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n"], NO_HTTP),
    "empty": ([], NO_HTTP),
    "redirect-to-invalid-url": (
        [b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"],
        "redirects to a login page, http://[",
    ),
    "redirect-without-location": ([b"HTTP/1.1 302 Found\r\n\r\n"], "redirects to a login page"),
    "control-characters-in-reason": ([b"HTTP/1.1 200 \x1b[2J\r\nServer: \x1b[2J\r\n\r\n"], NOT_FLOWER),
    "invalid-challenge": (
        [b"HTTP/1.1 401 x\r\nWWW-Authenticate: \xff" + 9000 * b"x" + b"\r\n\r\n"],
        "requires authentication",
    ),
    "deep-json": ([ok(b"[" * 100_000)], NOT_FLOWER),
    "wide-json": ([ok(b"[" + b"[]," * 1_000_000 + b"[]]")], NOT_FLOWER),
    "quotes": ([ok(b'"\\' * 2_000_000)], NOT_FLOWER),
    "huge-integer": ([ok(BODY.replace(b"1000.0", b"9" * 1_000_000))], NOT_FLOWER),
    "integer-exceeds-float": ([ok(BODY.replace(b"1000.0", b"9" * 4000))], NOT_FLOWER),
    "nan": ([ok(BODY.replace(b"1000.0", b"NaN"))], NOT_FLOWER),
    "infinity": ([ok(BODY.replace(b"1000.0", b"1e999"))], NOT_FLOWER),
    "lone-surrogate": ([ok(BODY.replace(b'"w1@host"', b'"\\ud800"'))], NOT_FLOWER),
    "not-utf-8": ([ok(BODY.replace(b"w1@host", b"\xff"))], NOT_FLOWER),
    "utf-16": ([ok(BODY.decode().encode("utf-16"))], NOT_FLOWER),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_response_gives_one_printable_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pieces, expected = MALFORMED[name]
    findings = findings_for(lambda _: pieces)
    assert len(findings) == 1
    assert expected in findings[0].message
    show(findings)
    (line, *remedies) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert len(line) < 2100
    assert all(remedy.startswith(" " * 23) for remedy in remedies)


PAGES = {
    "invalid-url": (b'<script src="http://[">', "http://[, which is outside"),
    "character-reference-of-many-digits": (b'<script src="&#' + b"9" * 5000 + b';">', "is outside"),
    "netloc-that-normalizes": ('<link href="http://a\u2100b/x.css">'.encode(), "is outside"),
    "spaces-and-controls": (b'<script src="static/a b\x00\xc3\xa9.js">', "does not load"),
    "many-equal-links": (b'<script src="static/x.js">' * 5000, "does not load"),
    "many-different-links": (b"".join(b'<script src="static/%d.js">' % n for n in range(5000)), "does not load"),
    "unclosed-tags": (b"<script " * 1_200_000, "is not Flower's"),
    "unclosed-attributes": (b"<script " + b"src =" * 1_900_000, "is not Flower's"),
    "unclosed-quotes": (b'<script src="' * 700_000, "does not load: 404"),
}


@pytest.mark.parametrize("name", PAGES)
def test_malformed_page_fails_static_check(name: str) -> None:
    page, expected = PAGES[name]

    def pieces(request: bytes) -> Iterable[bytes]:
        path = request.split(b" ")[1].decode()
        if path.startswith(f"/flower{PATH}"):
            report = replace(REPORT, prefix="/flower", path=path.removeprefix("/flower"), headers={}, scheme="http")
            return [ok(json.dumps(asdict(report)).encode())]
        return [ok(page)] if path == "/flower/" else [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]

    findings = {finding.name: finding for finding in findings_for(pieces)}
    assert expected in findings["static"].message
    assert len(findings) > 20


# Validation of the report


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from([field.name for field in fields(Report)])
WORKER_FIELDS = st.sampled_from([field.name for field in fields(WorkerReport)])


@SLOW_EXAMPLES
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.dictionaries(WORKER_FIELDS, JSON, max_size=2))
def test_valid_reports_can_be_examined_and_printed(changes: Any, worker_changes: Any) -> None:
    document = json.loads(BODY)
    document["workers"][0].update(worker_changes)
    document.update(changes)
    try:
        report = validate_report(parse_json(json.dumps(document).encode()))
    except (TypeError, ValueError):
        return
    assert validate_report(json.loads(json.dumps(asdict(report)))) == report
    show(CHECKS.examine(evidence(report, anonymous=responding(report))))


@SLOW_EXAMPLES
@given(st.binary(max_size=200) | JSON.map(lambda document: json.dumps(document).encode()))
def test_other_documents_are_rejected(body: bytes) -> None:
    with pytest.raises((TypeError, ValueError)):
        validate_report(parse_json(body))


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1])
def test_deeply_nested_json_is_rejected(levels: int) -> None:
    body = b'["\\"[[[[' + b"[" * 100 + b'",' + b"[" * (levels - 1) + b"]" * levels
    if levels > MAX_DEPTH:
        with pytest.raises(ValueError, match="more than 64 levels"):
            parse_json(body)
    else:
        assert parse_json(body)


def test_missing_response_leaves_finding_unknown() -> None:
    missing = replace(responding(REPORT), status=0, body=b"", problem="no answer")
    found = {finding.name: finding for finding in CHECKS.examine(evidence(anonymous=missing, metrics=missing))}
    assert [found[name].message for name in ("authentication", "metrics")] == ["unknown: no answer"] * 2
