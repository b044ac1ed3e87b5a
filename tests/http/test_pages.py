"""Everything that Flower sends out carries the public location."""

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
@pytest.mark.parametrize("kind", ["kept", "stripped", "untold"], indirect=True)
def test_every_link_stays_below_the_prefix(site: Site, path: str) -> None:
    html = site.fetch(path).body.decode()
    shown_at = f"http://host.example{PREFIX}{path}"
    for link in links(html):
        target = urljoin(shown_at, link)
        assert target.startswith(f"http://host.example{PREFIX}/"), link
        below = target.removeprefix(f"http://host.example{PREFIX}")
        assert site.fetch(below).code == 200, link


@pytest.mark.parametrize(
    ("kind", "value"), [("kept", PREFIX), ("stripped", PREFIX), ("untold", "..")], indirect=["kind"]
)
def test_the_page_tells_its_script_the_prefix(site: Site, value: str) -> None:
    html = site.fetch("/worker/unknown").body.decode()
    assert f'value="{value}" id="url_prefix"' in html


@pytest.mark.parametrize("path", ["/", "/tasks", "/metrics", "/healthcheck", "/broker", "/static/css/flower.css"])
def test_head_is_answered_like_get(site: Site, path: str) -> None:
    """P20."""
    get, head = site.fetch(path), site.fetch(path, method="HEAD")
    assert (get.code, head.code) == (200, 200)
    assert head.body == b""
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_head_is_not_answered_where_get_is_not(site: Site) -> None:
    assert site.fetch("/api/worker/shutdown/w1", method="HEAD", headers={"Sec-Fetch-Site": "same-origin"}).code in (
        401,
        405,
    )


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_the_prefix_without_a_slash_leads_to_the_one_with_it(site: Site, method: str) -> None:
    """P1."""
    response = site.fetch("?state=FAILURE&x=%2F", method=method)
    assert response.code == 308
    assert response.headers["Location"] == "./flower/?state=FAILURE&x=%2F"
    # relative to where it was asked for, whatever stands in front of the prefix
    assert urljoin(f"https://host.example/outer{PREFIX}", response.headers["Location"]).startswith(
        f"https://host.example/outer{PREFIX}/?"
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_a_repeated_prefix_leads_to_the_single_one(site: Site, method: str) -> None:
    """What a proxy closes, such as /flower/metrics, must not be open with the prefix twice."""
    response = site.fetch(f"{PREFIX}/metrics?a=b", method=method)
    assert (response.code, response.headers["Location"]) == (307, f"{PREFIX}/metrics?a=b")
    assert response.body == b""
    assert site.fetch(f"{PREFIX}{PREFIX}//evil.example").headers["Location"] == f"{PREFIX}/evil.example"
    assert site.fetch("//metrics").headers["Location"] == f"{PREFIX}/metrics"


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_with_the_option_both_kinds_of_proxy_get_the_same_page(site: Site) -> None:
    """P2."""
    kept = site.page("/tasks")
    site.kind = "untold"
    stripped = site.page("/tasks")
    assert links(kept) == links(stripped)
    assert site.page("/healthcheck") == "OK"


def test_a_segment_that_only_begins_like_the_prefix_is_not_the_prefix(site: Site) -> None:
    site.kind = "untold"
    assert site.fetch(f"{PREFIX}x/tasks").code == 404


@pytest.mark.parametrize("kind", ["untold"], indirect=True)
def test_where_nobody_told_the_page_adds_a_missing_slash_by_itself(site: Site) -> None:
    """Rule 6 of the design; the browser tests see it happen."""
    assert "location.replace(url)" in site.page("/")
    site.kind = "stripped"
    assert "location.replace(url)" not in site.page("/")


def test_an_unknown_page_is_a_page_of_flowers(site: Site) -> None:
    response = site.fetch("/nothing")
    assert response.code == 404
    assert b"css/flower.css" in response.body


def test_no_answer_is_open_to_other_sites(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: stock Flower sends Access-Control-Allow-Origin: * on everything once its API is usable."""
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
def test_a_malformed_forwarded_header_is_a_400_that_names_it(site: Site, header: str, value: str, method: str) -> None:
    site.kind = "untold"
    response = site.fetch("/", headers={header: value}, method=method)
    assert response.code == 400
    assert response.body.decode().startswith(f"{header} is not ")
    assert value not in response.body.decode()


@pytest.mark.parametrize("kind", ["untold"], indirect=True)
@pytest.mark.parametrize("settings", [{**OPEN, "trusted_proxies": ["192.0.2.1"]}])
def test_headers_of_a_stranger_change_nothing_and_the_log_says_so_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    plain = site.page("/tasks")
    forged = {"X-Forwarded-Prefix": "/evil", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    for _ in range(3):
        assert links(site.page("/tasks", headers=forged)) == links(plain)
    warnings = [
        record.getMessage() for record in caplog.records if "--trusted_proxies=127.0.0.1" in record.getMessage()
    ]
    assert len(warnings) == 1


def test_a_worker_and_its_task_are_linked(site: Site, event: Callable[..., None]) -> None:
    event("worker-online")
    event("task-received", uuid="u/1", name="add")
    event("task-started", uuid="u/1")
    task = site.page("/task/u%2F1")
    assert f'href="{PREFIX}/worker/w1%40host"' in task
    assert f'href="{PREFIX}/tasks?name=add"' in task


@pytest.mark.parametrize("settings", [{"static_overrides": ""}])
def test_an_empty_folder_of_overrides_publishes_nothing(site: Site) -> None:
    assert site.fetch("/static/pyproject.toml").code == 404
    assert site.fetch("/static/js/flower.js").code == 200


@pytest.mark.parametrize("settings", [{**OPEN, "url_prefix": "/"}, {**OPEN, "url_prefix": "//"}])
@pytest.mark.parametrize("kind", ["untold"], indirect=True)
def test_a_prefix_of_a_slash_means_none(site: Site) -> None:
    """P18: stock Flower answers 404 and links to a host called "static"."""
    for link in links(site.page("/")):
        assert not urlsplit(link).netloc
