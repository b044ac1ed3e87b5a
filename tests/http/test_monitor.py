"""The Monitor page and its API, at the public location."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from flower_proxy.app import FlowerProxy
from flower_proxy.metrics.exposition import render
from tests.http.conftest import Site

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def begun(app: FlowerProxy) -> None:
    app.history_keeper.advance()


@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
def test_each_page_links_to_the_monitor_page(site: Site) -> None:
    for path in ("/workers", "/tasks", "/broker", "/monitor"):
        links = re.findall(
            r'<a href="([^"]*)" class="nav-link(?: active)?"(?: aria-current="page")?>Monitor<', site.page(path)
        )
        assert links == [f"{site.links}/monitor"]
    page = site.page("/monitor")
    assert 'class="nav-link active" aria-current="page">Monitor<' in page
    scripts = re.findall(r'<script src="([^"?]*)', page)
    assert scripts[-2:] == [f"{site.links}/static/js/charts.js", f"{site.links}/static/js/monitor.js"]


def test_other_pages_have_no_weight_of_the_monitor_page(site: Site) -> None:
    for path in ("/workers", "/tasks", "/broker"):
        assert not re.search("charts.js|monitor.js|monitor.css", site.page(path))


def test_the_api_returns_what_was_counted(site: Site, event: Callable[..., None]) -> None:
    event("task-received", uuid="1", name=HOSTILE)
    event("task-started", uuid="1")
    event("task-failed", uuid="1", exception="ValueError()", traceback="")
    for query in (
        "",
        "?by=task&name=%3C/script%3E%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
        "?range=24h&by=worker&name=w1@host",
    ):
        columns = json.loads(site.page(f"/api/history{query}"))["columns"]
        assert {name: sum(columns[name]) for name in ("received", "started", "failed", "succeeded")} == {
            "received": 1,
            "started": 1,
            "failed": 1,
            "succeeded": 0,
        }
    (row,) = json.loads(site.page("/api/history?by=task"))["rows"]
    assert (row["name"], row["failed"]) == (HOSTILE, 1)
    response = site.fetch("/api/history?by=task&format=csv")
    assert response.headers["Content-Type"] == "text/csv; charset=UTF-8"
    assert response.headers["Content-Disposition"] == 'attachment; filename="history.csv"'
    assert f"{HOSTILE},1,1,100.0," in response.body.decode()


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("range=2h", 400, "range: expected one of 15m, 1h, 6h, 24h, got '2h'"),
        ("name=add", 400, "name requires by: one of task, worker, queue"),
        ("by=task&name=add", 404, "the history has no task 'add'"),
        ("by=task&name=%0d%0aX:1", 404, "the history has no task '\\r\\nX:1'"),
        ("since=0", 400, "since: expected the cursor of an earlier answer, got '0'"),
    ],
)
def test_bad_parameters_are_answered_with_one_line(site: Site, query: str, status: int, reason: str) -> None:
    response = site.fetch(f"/api/history?{query}")
    assert response.code == status
    assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert response.body.decode() == f"{reason}\n"


def test_answers_are_not_cached(site: Site) -> None:
    assert site.fetch("/api/history").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
@pytest.mark.parametrize("path", ["/monitor", "/api/history", "/api/history?format=csv"])
def test_nothing_is_shown_without_a_password(site: Site, path: str) -> None:
    assert site.fetch(path).code == 401
    assert site.fetch(path, auth_username="demo", auth_password="secret").code == 200


def test_the_history_counts_what_the_metrics_count(site: Site, app: FlowerProxy, event: Callable[..., None]) -> None:
    for number in range(30):
        event("task-received", uuid=str(number), name=f"task-{number % 3}", hostname=f"w{number % 2}@host")
        event("task-started", uuid=str(number), hostname=f"w{number % 2}@host")
        end = "task-failed" if number % 5 == 0 else "task-succeeded"
        event(end, uuid=str(number), hostname=f"w{number % 2}@host", runtime=0.1, exception="E()", traceback="")
    text = "".join(render(app.monitor.families(), openmetrics=False))
    for name in ("task-0", "task-1", "task-2"):
        columns = json.loads(site.page(f"/api/history?by=task&name={name}"))["columns"]
        for kind in ("received", "started", "succeeded", "failed"):
            counts = re.findall(
                rf'^flower_events_total\{{worker="[^"]*",type="task-{kind}",task="{name}"\}} (\S+)$', text, re.MULTILINE
            )
            assert sum(columns[kind]) == sum(map(float, counts)) > 0
