"""``flower-proxy check`` against a hostile server: it ends in time, with one clear line."""

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
from flower_proxy.check.client import MAX_ANSWER, Client, parse_target
from flower_proxy.check.findings import Finding
from flower_proxy.check.report import MAX_DEPTH, PATH, Seen, SeenWorker, parse_json, read_seen
from flower_proxy.cli.check import run_checks, show
from tests.support.hostile import answering, forever, ok
from tests.unit.test_findings import SEEN, evidence, saying

# The first text that Hypothesis draws takes it a second or two
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
BODY = json.dumps(asdict(SEEN)).encode()


def looked_at(
    pieces: Callable[[bytes], Iterable[bytes]], *, scheme: str = "http", timeout: float = 30, pause: float = 0
) -> list[Finding]:
    with answering(pieces, pause=pause) as address:
        target = parse_target(f"{scheme}://{address}/flower/")
        return run_checks(Client(target, "", ssl.create_default_context(), timeout=timeout))


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "accepts-and-says-nothing": ([b""], 60),
    "drips-the-status": (forever(b"H"), 0.05),
    "drips-headers": (forever(b"a", after=HEAD + b"X: "), 0.05),
    "drips-the-body": (forever(b"a", after=HEAD + b"Content-Length: 100000\r\n\r\n"), 0.05),
    "drips-chunks": (forever(b"1\r\na\r\n", after=CHUNKED), 0.05),
    "drips-1xx": (forever(b"HTTP/1.1 100 Continue\r\n\r\n"), 0.05),
    "drips-trailers": (forever(b"X: y\r\n", after=CHUNKED + b"0\r\n"), 0.05),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_answers_end_at_the_deadline(name: str) -> None:
    pieces, pause = ENDLESS[name]
    (finding,) = looked_at(lambda _: pieces, timeout=0.5, pause=pause)
    assert finding.message.endswith("does not answer everything within 0.5 seconds")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://[fe80::abcd]/flower/", "[fe80::abcd]"),
        ("http://[::1]/", "[::1]"),
        ("http://example.com:80/", "example.com"),
    ],
)
def test_a_target_without_a_port_of_its_own(url: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """http.client takes the last group of an IPv6 address for a port."""
    requests = []

    def record(request: bytes) -> Iterable[bytes]:
        requests.append(request.decode())
        return [ok(b"")]

    with answering(record) as address:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", address.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        answer = Client(parse_target(url), "", ssl.create_default_context()).ask("/")
    assert (answer.status, answer.problem) == (200, "")
    assert f"\r\nHost: {host}\r\n" in requests[0]


def test_an_endless_handshake_ends_at_the_deadline() -> None:
    record = forever(b"x", after=b"\x16\x03\x03\x40\x00")
    (finding,) = looked_at(lambda _: record, scheme="https", timeout=0.5, pause=0.05)
    assert finding.message.endswith("does not answer everything within 0.5 seconds")


def test_the_deadline_is_for_all_requests_together() -> None:
    """Each answer takes a fifth of the time that all of them have, and there are more than twenty."""
    (finding,) = looked_at(lambda _: [ok(BODY)], timeout=1, pause=0.2)
    assert finding.message.endswith("does not answer everything within 1 seconds")


LARGE = f"answers with more than {MAX_ANSWER // 1_000_000} megabytes"
NO_HTTP = "does not speak HTTP"
NOT_FLOWER = "which is not Flower"
ODD = {
    "endless-1xx": (forever(1000 * b"HTTP/1.1 100 Continue\r\n\r\n"), LARGE),
    "endless-headers": (forever(1000 * b"X: y\r\n", after=HEAD), NO_HTTP),
    "endless-header-line": (forever(65536 * b"x", after=HEAD), NO_HTTP),
    "endless-body": (forever(65536 * b"x", after=HEAD + b"\r\n"), LARGE),
    "endless-chunks": (forever(b"10000\r\n" + 65536 * b"x" + b"\r\n", after=CHUNKED), LARGE),
    "endless-trailers": (forever(1000 * b"X: y\r\n", after=CHUNKED + b"0\r\n"), LARGE),
    "length-that-lies": ([HEAD + b"Content-Length: 1000\r\n\r\n{}"], "the answer is cut off"),
    "length-that-fits-no-memory": ([HEAD + b"Content-Length: " + b"9" * 18 + b"\r\n\r\n{}"], "the answer is cut off"),
    "length-of-many-digits": ([HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"], NOT_FLOWER),
    "length-below-zero": ([HEAD + b"Content-Length: -1\r\n\r\n{}"], NOT_FLOWER),
    "chunk-that-fits-no-memory": ([CHUNKED + b"f" * 15 + b"\r\n{}"], "the answer is cut off"),
    "chunk-of-no-size": ([CHUNKED + b"zz\r\n{}"], "the answer is cut off"),
    "chunk-below-zero": ([CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n"], ""),
    "no-status": ([b"\x00\xff\r\n\r\n"], NO_HTTP),
    "status-of-many-digits": ([b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n"], NO_HTTP),
    "nothing": ([], NO_HTTP),
    "redirect-to-garbage": ([b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"], "a page to log in at, http://[,"),
    "redirect-to-nowhere": ([b"HTTP/1.1 302 Found\r\n\r\n"], "a page to log in at"),
    "reason-that-steers": ([b"HTTP/1.1 200 \x1b[2J\r\nServer: \x1b[2J\r\n\r\n"], NOT_FLOWER),
    "unauthorized-by-garbage": ([b"HTTP/1.1 401 x\r\nWWW-Authenticate: \xff" + 9000 * b"x" + b"\r\n\r\n"], "password"),
    "deep-json": ([ok(b"[" * 100_000)], NOT_FLOWER),
    "wide-json": ([ok(b"[" + b"[]," * 1_000_000 + b"[]]")], NOT_FLOWER),
    "quotes": ([ok(b'"\\' * 2_000_000)], NOT_FLOWER),
    "huge-integer": ([ok(BODY.replace(b"1000.0", b"9" * 1_000_000))], NOT_FLOWER),
    "integer-that-is-no-float": ([ok(BODY.replace(b"1000.0", b"9" * 4000))], NOT_FLOWER),
    "nan": ([ok(BODY.replace(b"1000.0", b"NaN"))], NOT_FLOWER),
    "infinity": ([ok(BODY.replace(b"1000.0", b"1e999"))], NOT_FLOWER),
    "lone-surrogate": ([ok(BODY.replace(b'"w1@host"', b'"\\ud800"'))], NOT_FLOWER),
    "not-utf-8": ([ok(BODY.replace(b"w1@host", b"\xff"))], NOT_FLOWER),
    "utf-16": ([ok(BODY.decode().encode("utf-16"))], NOT_FLOWER),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_one_clear_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pieces, says = ODD[name]
    findings = looked_at(lambda _: pieces)
    assert len(findings) == 1
    assert says in findings[0].message
    show(findings)
    (line, *remedies) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert len(line) < 2100
    assert all(remedy.startswith(" " * 23) for remedy in remedies)


PAGES = {
    "link-that-is-no-url": (b'<script src="http://[">', "http://[ is not below"),
    "reference-of-many-digits": (b'<script src="&#' + b"9" * 5000 + b';">', "is not below"),
    "netloc-that-normalizes": ('<link href="http://a\u2100b/x.css">'.encode(), "is not below"),
    "spaces-and-controls": (b'<script src="static/a b\x00\xc3\xa9.js">', "is answered with"),
    "thousands-of-links": (b'<script src="static/x.js">' * 5000, "is answered with"),
    "different-links": (b"".join(b'<script src="static/%d.js">' % n for n in range(5000)), "is answered with"),
    "beginnings-of-tags": (b"<script " * 1_200_000, "is not Flower's"),
    "tag-without-end": (b"<script " + b"src =" * 1_900_000, "is not Flower's"),
    "quotes-without-end": (b'<script src="' * 700_000, "is answered with 404"),
}


@pytest.mark.parametrize("name", PAGES)
def test_an_odd_page_is_one_line_of_the_report(name: str) -> None:
    page, says = PAGES[name]

    def pieces(request: bytes) -> Iterable[bytes]:
        path = request.split(b" ")[1].decode()
        if path.startswith(f"/flower{PATH}"):
            seen = replace(SEEN, prefix="/flower", path=path.removeprefix("/flower"), headers={}, scheme="http")
            return [ok(json.dumps(asdict(seen)).encode())]
        return [ok(page)] if path == "/flower/" else [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]

    findings = {finding.name: finding for finding in looked_at(pieces)}
    assert says in findings["static"].message
    assert len(findings) > 20


# The report of the launcher, checked where it comes in


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from([field.name for field in fields(Seen)])
WORKER_FIELDS = st.sampled_from([field.name for field in fields(SeenWorker)])


@UNTIMED
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.dictionaries(WORKER_FIELDS, JSON, max_size=2))
def test_accepted_reports_can_be_examined_and_shown(of_all: Any, of_worker: Any) -> None:
    document = json.loads(BODY)
    document["workers"][0].update(of_worker)
    document.update(of_all)
    try:
        seen = read_seen(parse_json(json.dumps(document).encode()))
    except (TypeError, ValueError):
        return
    assert read_seen(json.loads(json.dumps(asdict(seen)))) == seen
    show(CHECKS.examine(evidence(seen, anonymous=saying(seen))))


@UNTIMED
@given(st.binary(max_size=200) | JSON.map(lambda document: json.dumps(document).encode()))
def test_other_documents_are_refused(body: bytes) -> None:
    with pytest.raises((TypeError, ValueError)):
        read_seen(parse_json(body))


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1])
def test_deep_json_is_refused(levels: int) -> None:
    body = b'["\\"[[[[' + b"[" * 100 + b'",' + b"[" * (levels - 1) + b"]" * levels
    if levels > MAX_DEPTH:
        with pytest.raises(ValueError, match="more than 64 levels"):
            parse_json(body)
    else:
        assert parse_json(body)


def test_an_answer_that_does_not_come_proves_nothing() -> None:
    silent = replace(saying(SEEN), status=0, body=b"", problem="no answer")
    found = {finding.name: finding for finding in CHECKS.examine(evidence(anonymous=silent, metrics=silent))}
    assert [found[name].message for name in ("authentication", "metrics")] == ["not known: no answer"] * 2
