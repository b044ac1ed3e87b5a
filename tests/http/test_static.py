"""Static files: precedence of the user's, flower-proxy's and Flower's files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from flower_proxy._flower import FLOWER_JS, flower_settings
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


def test_corrected_file_supports_range_and_conditional_requests(site: Site) -> None:
    whole = site.fetch("/static/js/flower.js")
    part = site.fetch("/static/js/flower.js", headers={"Range": "bytes=10-19"})
    assert (part.code, part.body) == (206, whole.body[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole.body)}"
    assert site.fetch("/static/js/flower.js", headers={"If-None-Match": whole.headers["Etag"]}).code == 304
    fresh = site.fetch("/static/js/flower.js", headers={"If-Modified-Since": whole.headers["Last-Modified"]})
    assert fresh.code == 304
    assert whole.headers["Content-Type"].endswith("/javascript")


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
        "css",
        "",
        "link",
    ],
)
def test_paths_outside_the_folders_are_refused(site: Site, path: str) -> None:
    response = site.fetch(f"/static/{path}")
    assert response.code in (403, 404)
    assert b"not to be served" not in response.body
