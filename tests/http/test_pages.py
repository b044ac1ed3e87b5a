"""Links, redirects and responses at the public location."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import pytest

from tests.http.conftest import OPEN, PREFIX, Site

PAGES = ["/", "/workers", "/tasks", "/broker", "/logout", "/nothing/here", "/task/unknown"]
LINK = re.compile(r"""(?:href|src|action)=["']([^"'#][^"']*)["']""")


def links(html: str) -> list[str]:
    found = [link for link in LINK.findall(html) if not link.startswith("https://")]
    assert found
    return found


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
def test_links_stay_below_the_prefix(site: Site, path: str) -> None:
    html = site.fetch(path).body.decode()
    shown_at = f"http://host.example{PREFIX}{path}"
    for link in links(html):
        target = urljoin(shown_at, link)
        assert target.startswith(f"http://host.example{PREFIX}/"), link
        below = target.removeprefix(f"http://host.example{PREFIX}")
        assert site.fetch(below).code == 200, link


@pytest.mark.parametrize(
    ("kind", "value"), [("kept", PREFIX), ("stripped", PREFIX), ("unforwarded", "..")], indirect=["kind"]
)
def test_page_contains_the_prefix_for_its_script(site: Site, value: str) -> None:
    html = site.fetch("/worker/unknown").body.decode()
    assert f'value="{value}" id="url_prefix"' in html


@pytest.mark.parametrize("path", ["/", "/tasks", "/metrics", "/healthcheck", "/broker", "/static/css/flower.css"])
def test_head_is_answered_like_get(site: Site, path: str) -> None:
    """Stock Flower answers 405, mher/flower#945."""
    get, head = site.fetch(path), site.fetch(path, method="HEAD")
    assert (get.code, head.code) == (200, 200)
    assert head.body == b""
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_head_is_refused_if_get_is_not_allowed(site: Site) -> None:
    assert site.fetch("/api/worker/shutdown/w1", method="HEAD", headers={"Sec-Fetch-Site": "same-origin"}).code in (
        401,
        405,
    )


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_prefix_without_trailing_slash_is_redirected(site: Site, method: str) -> None:
    """Stock Flower answers 404, mher/flower#1207."""
    response = site.fetch("?state=FAILURE&x=%2F", method=method)
    assert response.code == 308
    assert response.headers["Location"] == "./flower/?state=FAILURE&x=%2F"
    # The redirect is relative, so an outer prefix is kept
    assert urljoin(f"https://host.example/outer{PREFIX}", response.headers["Location"]).startswith(
        f"https://host.example/outer{PREFIX}/?"
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_repeated_prefix_is_redirected(site: Site, method: str) -> None:
    """A repeated prefix must not bypass a proxy's access rule, such as for /flower/metrics."""
    response = site.fetch(f"{PREFIX}/metrics?a=b", method=method)
    assert (response.code, response.headers["Location"]) == (307, f"{PREFIX}/metrics?a=b")
    assert response.body == b""
    assert site.fetch(f"{PREFIX}{PREFIX}//evil.example").headers["Location"] == f"{PREFIX}/evil.example"
    assert site.fetch("//metrics").headers["Location"] == f"{PREFIX}/metrics"


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_url_prefix_works_with_a_proxy_that_strips_it(site: Site) -> None:
    """Stock Flower answers 404 if the proxy strips the prefix, mher/flower#414."""
    kept = site.page("/tasks")
    site.kind = "unforwarded"
    stripped = site.page("/tasks")
    assert links(kept) == links(stripped)
    assert site.page("/healthcheck") == "OK"


def test_prefix_matches_whole_segments_only(site: Site) -> None:
    site.kind = "unforwarded"
    assert site.fetch(f"{PREFIX}x/tasks").code == 404


@pytest.mark.parametrize("kind", ["unforwarded"], indirect=True)
def test_page_with_unknown_prefix_has_the_script_that_adds_a_missing_slash(site: Site) -> None:
    """The browser tests run this script."""
    assert "location.replace(url)" in site.page("/")
    site.kind = "stripped"
    assert "location.replace(url)" not in site.page("/")


def test_unknown_page_is_flowers_404_page(site: Site) -> None:
    response = site.fetch("/nothing")
    assert response.code == 404
    assert b"css/flower.css" in response.body


def test_responses_have_no_cors_headers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock Flower sends Access-Control-Allow-Origin: * with every response if its API is enabled, mher/flower#1231."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    for path in ["/", "/api/workers", "/metrics", "/nothing", "/static/css/flower.css"]:
        headers = site.fetch(path, headers={"Origin": "https://evil.example"}).headers
        assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-Prefix", "//evil.example"),
        ("X-Forwarded-Host", "evil.example/x"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Port", "80x"),
        ("Forwarded", "proto=gopher"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_malformed_forwarded_header_gets_400_with_its_name(site: Site, header: str, value: str, method: str) -> None:
    site.kind = "unforwarded"
    response = site.fetch("/", headers={header: value}, method=method)
    assert response.code == 400
    assert response.body.decode().startswith(f"{header} is not ")
    assert value not in response.body.decode()


@pytest.mark.parametrize("kind", ["unforwarded"], indirect=True)
@pytest.mark.parametrize("settings", [{**OPEN, "trusted_proxies": ["192.0.2.1"]}])
def test_forwarded_headers_of_untrusted_peers_are_ignored_with_one_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    plain = site.page("/tasks")
    spoofed = {"X-Forwarded-Prefix": "/evil", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    for _ in range(3):
        assert links(site.page("/tasks", headers=spoofed)) == links(plain)
    warnings = [
        record.getMessage() for record in caplog.records if "--trusted_proxies=127.0.0.1" in record.getMessage()
    ]
    assert len(warnings) == 1


def test_task_page_links_to_worker_and_tasks(site: Site, event: Callable[..., None]) -> None:
    event("worker-online")
    event("task-received", uuid="u/1", name="add")
    event("task-started", uuid="u/1")
    task = site.page("/task/u%2F1")
    assert f'href="{PREFIX}/worker/w1%40host"' in task
    assert f'href="{PREFIX}/tasks?name=add"' in task


@pytest.mark.parametrize("settings", [{"static_overrides": ""}])
def test_empty_static_overrides_option_publishes_no_folder(site: Site) -> None:
    assert site.fetch("/static/pyproject.toml").code == 404
    assert site.fetch("/static/js/flower.js").code == 200


@pytest.mark.parametrize("settings", [{**OPEN, "url_prefix": "/"}, {**OPEN, "url_prefix": "//"}])
@pytest.mark.parametrize("kind", ["unforwarded"], indirect=True)
def test_slash_as_url_prefix_means_no_prefix(site: Site) -> None:
    """Stock Flower answers 404, with links to a host named "static"."""
    for link in links(site.page("/")):
        assert not urlsplit(link).netloc
