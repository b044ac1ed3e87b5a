"""Compressed pages and JSON: what is compressed, validators, and the page's token."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

import pytest
from tornado.httpclient import HTTPResponse

from flower_proxy.auth.csrf import unmask
from flower_proxy.web.compression import MAX_COMPRESSED
from tests.http.conftest import Site

PAGES = ["/", "/tasks", "/broker", "/nothing"]
JSON = "/api/tasks"


@pytest.fixture
def tasks(event: Callable[..., None]) -> None:
    """Tasks, so that the JSON is not small."""
    for number in range(10):
        event("task-received", uuid=str(number), name="add", args="(1, 2)")


def text(response: HTTPResponse) -> str:
    coded = response.headers.get("Content-Encoding") == "gzip"
    return (gzip.decompress(response.body) if coded else response.body).decode()


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("path", [*PAGES, JSON])
def test_pages_and_json_are_compressed_if_accepted(site: Site, path: str) -> None:
    plain, packed = site.raw(path, ""), site.raw(path, "gzip")
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) < 0.6 * len(plain.body)
    assert packed.headers["Content-Length"] == str(len(packed.body))
    for response in (plain, packed):
        assert response.headers.get_list("Vary") == ["Accept-Encoding"]
    if path == JSON:
        assert text(packed) == text(plain)
        head = site.raw(path, "gzip", method="HEAD")
        assert not head.body
        for name in ("Content-Encoding", "Content-Length", "Etag"):
            assert head.headers[name] == packed.headers[name]


@pytest.mark.parametrize("accepted", ["gzip;q=0", "gzip;q=0, br", "br", "deflate", "identity, gzip;q=0.5"])
def test_pages_are_not_compressed_if_gzip_is_not_accepted(site: Site, accepted: str) -> None:
    assert "Content-Encoding" not in site.raw("/", accepted).headers


@pytest.mark.parametrize("path", ["/healthcheck", "/ready"])
def test_short_responses_are_not_compressed(site: Site, path: str) -> None:
    assert "Content-Encoding" not in site.raw(path, "gzip").headers


def test_long_responses_are_not_compressed(site: Site, event: Callable[..., None]) -> None:
    """Compressing the whole API's answer would hold the event loop."""
    result = "a" * 10_000
    for number in range(MAX_COMPRESSED // len(result) + 1):
        event("task-succeeded", uuid=str(number), result=result)
    response = site.raw(JSON, "gzip")
    assert len(response.body) > MAX_COMPRESSED
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept-Encoding"


@pytest.mark.usefixtures("tasks")
def test_validators_are_weak_and_hold_for_both_codings(site: Site) -> None:
    """A strong ETag would claim that the compressed response has the same bytes."""
    etags = {site.raw(JSON, accepted).headers["Etag"] for accepted in ("", "gzip")}
    (etag,) = etags
    assert etag.startswith('W/"')
    for accepted in ("", "gzip"):
        unchanged = site.raw(JSON, accepted, If_None_Match=etag)
        assert (unchanged.code, unchanged.body) == (304, b"")
        assert unchanged.headers["Vary"] == "Accept-Encoding"


def test_heartbeats_do_not_change_the_validator_of_the_workers(site: Site, event: Callable[..., None]) -> None:
    def etag() -> str:
        return str(site.raw("/workers?json=1", "gzip").headers["Etag"])

    event("worker-online")
    event("worker-heartbeat", active=0, processed=0, loadavg=[0.1, 0.1, 0.1])
    first = etag()
    event("worker-heartbeat", active=0, processed=0, loadavg=[0.1, 0.1, 0.1])
    assert etag() == first
    assert site.raw("/workers?json=1", "gzip", If_None_Match=first).code == 304
    event("worker-heartbeat", active=1, processed=0, loadavg=[0.1, 0.1, 0.1])
    assert etag() != first


def test_the_page_token_is_masked_anew_in_each_page(site: Site) -> None:
    """Otherwise the size of a compressed page would disclose it (BREACH)."""
    pages = [text(site.raw("/", "gzip")) for _ in range(2)]
    masked = [re.findall(r'name="flower-token" content="([^"]+)"', page)[0] for page in pages]
    assert masked[0] != masked[1]
    for token in masked:
        headers = {"Origin": "http://other.example", "X-XSRFToken": token}
        assert site.fetch("/api/task/revoke/1", method="POST", headers=headers).code != 403
        refused = site.fetch("/api/task/revoke/1", method="POST", headers={**headers, "X-XSRFToken": unmask(token)})
        assert refused.code == 403
        for page in pages:
            assert unmask(token) not in page
            assert unmask(token).rpartition("|")[2] not in page
    # No fragment of one page's token that an attacker could guess is in the other's
    fragments = {masked[0][start : start + 8] for start in range(len(masked[0]) - 8)}
    assert not any(fragment in masked[1] for fragment in fragments)


def test_nonces_of_pages_differ(site: Site) -> None:
    nonces = [set(re.findall(r'nonce="([^"]+)"', text(site.raw("/", "gzip")))) for _ in range(2)]
    assert [len(found) for found in nonces] == [1, 1]
    assert nonces[0] != nonces[1]
