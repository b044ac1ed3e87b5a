"""Static files: precedence of the user's, flower-proxy's and Flower's files."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
from tornado.httpclient import HTTPResponse

from flower_proxy._flower import FLOWER_JS, TIME_ZONES, flower_settings
from flower_proxy.web.compression import MAX_COMPRESSED
from flower_proxy.web.static import packaged_overrides
from tests.http.conftest import OPEN, PREFIX, Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a logo and a stylesheet."""
    folder = tmp_path / "mine"
    (folder / "css").mkdir(parents=True)
    (folder / "favicon.ico").write_bytes(b"logo")
    (folder / "css" / "flower.css").write_bytes(b"body { color: red }")
    (folder / "js").mkdir()
    (folder / "js" / "theme.js").write_text("// mine")
    (folder / "large.txt").write_text("a" * (MAX_COMPRESSED + 1))
    (folder / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("not to be served")
    return folder


@pytest.fixture
def settings(folder: Path) -> dict[str, Any]:
    return {**OPEN, "static_overrides": str(folder)}


def test_flower_js_is_corrected(site: Site) -> None:
    script = site.page("/static/js/flower.js")
    installed = Path(flower_settings["static_path"], FLOWER_JS).read_text()
    assert "new URL(prefix, document.baseURI)" in script
    assert "new URL(prefix, document.baseURI)" not in installed
    assert "encodeURIComponent(workername)" in script
    assert script.count("function url_prefix(") == 1


def test_version_in_static_urls_is_the_hash_of_the_served_file(site: Site) -> None:
    html = site.page("/")
    for path in (FLOWER_JS, "css/flower.css", "js/theme.js"):
        content = site.fetch(f"/static/{path}").body
        assert f'"{PREFIX}/static/{path}?v={hashlib.sha512(content).hexdigest()}"' in html


def test_user_folder_takes_precedence(site: Site) -> None:
    assert site.page("/static/css/flower.css") == "body { color: red }"
    assert site.page("/static/favicon.ico") == "logo"
    assert site.fetch("/static/css/bootstrap.min.css").code == 200
    assert site.page("/static/js/theme.js") == "// mine"


SCRIPT = f"/static/{FLOWER_JS}"
TEXTS = [FLOWER_JS, "css/bootstrap.min.css", "css/flower.css", "js/theme.js"]
DECODERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, "gzip": gzip.decompress, "br": brotli.decompress}


def ask(site: Site, path: str, coding: str, **kwargs: str) -> HTTPResponse:
    """Request a file in a coding; return the response as it was sent."""
    # A browser that accepts Brotli accepts gzip, too
    return site.raw(path, "gzip, br" if coding == "br" else coding, **kwargs)


@pytest.mark.parametrize("coding", DECODERS)
def test_files_support_range_and_conditional_requests_in_each_coding(site: Site, coding: str) -> None:
    whole = ask(site, SCRIPT, coding)
    etag, date = whole.headers["Etag"], whole.headers["Last-Modified"]
    for condition in ({}, {"If_Range": etag}, {"If_Range": date}):
        part = ask(site, SCRIPT, coding, Range="bytes=10-19", **condition)
        assert (part.code, part.body) == (206, whole.body[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole.body)}"
        assert part.headers.get("Content-Encoding", "") == coding
    assert ask(site, SCRIPT, coding, If_None_Match=etag).code == 304
    assert ask(site, SCRIPT, coding, If_Modified_Since=date).code == 304
    assert whole.headers["Content-Type"].endswith("/javascript")


def test_a_range_of_another_representation_is_ignored(site: Site) -> None:
    """A client that resumes with another coding would join parts that do not belong together."""
    etags = {coding: ask(site, SCRIPT, coding).headers["Etag"] for coding in DECODERS}
    assert len(set(etags.values())) == len(DECODERS)
    response = ask(site, SCRIPT, "gzip", Range="bytes=10-19", If_Range=etags["br"])
    assert (response.code, response.headers["Etag"]) == (200, etags["gzip"])
    assert ask(site, SCRIPT, "gzip", If_None_Match=etags["br"]).code == 200


def test_moment_timezone_is_replaced_by_the_rules_of_the_browser(site: Site) -> None:
    assert site.page(f"/static/{TIME_ZONES}") == (packaged_overrides() / "js" / "time_zones.js").read_text()


@pytest.mark.parametrize("coding", DECODERS)
@pytest.mark.parametrize("path", TEXTS)
def test_text_is_sent_in_the_accepted_coding(site: Site, path: str, coding: str) -> None:
    plain, coded, again = (ask(site, f"/static/{path}", accepted) for accepted in ("", coding, coding))
    head = ask(site, f"/static/{path}", coding, method="HEAD")
    assert coded.headers.get("Content-Encoding", "") == coding
    assert DECODERS[coding](coded.body) == plain.body
    assert coded.body == again.body
    assert not coding or len(coded.body) < max(len(plain.body) * 0.4, 100)
    for response in (plain, coded, head):
        assert response.headers["Vary"] == "Accept-Encoding"
    for name in ("Content-Length", "Content-Encoding", "Content-Type", "Etag"):
        assert head.headers.get(name) == coded.headers.get(name)
    assert coded.headers["Content-Length"] == str(len(coded.body))


def test_images_and_large_files_are_not_compressed(site: Site) -> None:
    for path in ("favicon.ico", "large.txt"):
        response = ask(site, f"/static/{path}", "gzip", Range="bytes=1-2")
        assert response.code == 206
        assert "Content-Encoding" not in response.headers


def test_only_the_current_version_is_cached_without_revalidation(site: Site) -> None:
    version = hashlib.sha512(ask(site, SCRIPT, "").body).hexdigest()
    for coding in DECODERS:
        current = ask(site, f"{SCRIPT}?v={version}", coding)
        assert current.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert "Expires" not in current.headers
        # Another replica may have another version
        for query in ("", "?v=", "?v=0", f"?x={version}"):
            assert ask(site, SCRIPT + query, coding).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "..%2Fsecret",
        "css/../../secret",
        "%2e%2e/secret",
        "..%5Csecret",
        "/etc/hostname",
        "%00",
        "js/flower.js%00gzip",
        "css",
        "",
        "link",
    ],
)
def test_paths_outside_the_folders_are_refused(site: Site, path: str) -> None:
    response = site.fetch(f"/static/{path}")
    assert response.code in (403, 404)
    assert b"not to be served" not in response.body
