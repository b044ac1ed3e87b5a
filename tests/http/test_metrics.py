"""The metrics endpoint and the readiness probe."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tornado.httpclient import HTTPResponse

from flower_proxy.app import FlowerProxy
from tests.http.conftest import OPEN, Site
from tests.support.processes import PROJECT

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
README = (PROJECT / "examples" / "prometheus" / "README.md").read_text()


@pytest.fixture(autouse=True)
def processed_events(event: Callable[..., None]) -> None:
    event("worker-online")
    event("task-received", uuid="u1", name="add")
    event("task-started", uuid="u1")
    event("task-succeeded", uuid="u1", runtime=0.25, result="3")


def scrape(site: Site, query: str = "", **headers: str) -> HTTPResponse:
    response = site.fetch(
        f"/metrics{query}",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        decompress_response=False,
    )
    assert response.code == 200
    return response


def samples(text: str) -> dict[str, float]:
    """Return the samples by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        pytest.param("", "text/plain; version=0.0.4; charset=utf-8", id="no-accept"),
        pytest.param("*/*", "text/plain; version=0.0.4; charset=utf-8", id="curl"),
        pytest.param(OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8", id="prometheus"),
    ],
)
def test_metrics_format_is_negotiated(site: Site, accept: str, type_: str) -> None:
    """Stock Flower sends neither version nor charset, which Prometheus 3 expects."""
    response = scrape(site, Accept=accept)
    # prometheus_client 0.22 and later append an escaping scheme
    assert response.headers["Content-Type"].startswith(type_)
    text = response.body.decode()
    parse: Callable[[str], Any] = parse_openmetrics if "openmetrics" in type_ else parse_text
    names = {family.name for family in parse(text)}
    assert {"flower_events", "celery_task_received", "flower_proxy_build_info", "python_info"} <= names
    assert "_created" not in text
    assert text.count("# EOF") == ("openmetrics" in type_)


def test_metrics_are_compressed_if_accepted(site: Site) -> None:
    plain, packed = scrape(site), scrape(site, Accept_Encoding="gzip")
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["Vary"]
    assert "flower_events_total" in gzip.decompress(packed.body).decode()


def test_metrics_answer_head(site: Site) -> None:
    """Stock Flower answers 405, mher/flower#945."""
    response = site.fetch("/metrics", method="HEAD")
    assert (response.code, response.body) == (200, b"")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_metrics_are_selected_by_name(site: Site, accept: str) -> None:
    names = ("flower_worker_online", "celery_task_runtime_count", "process_cpu_seconds_total", "no_such")
    text = scrape(site, "?" + "&".join(f"name[]={name}" for name in names), Accept=accept).body.decode()
    found = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert found == set(names) - {"no_such"}


@pytest.mark.parametrize("settings", [{**OPEN, "metrics": ["celery"]}])
def test_metrics_are_selected_by_group(site: Site) -> None:
    names = {name.partition("_")[0] for name in re.findall(r"^# TYPE (\w+)", scrape(site).body.decode(), re.MULTILINE)}
    assert names == {"celery"}


def test_metrics_include_processed_events(site: Site) -> None:
    values = samples(scrape(site).body.decode())
    worker, task = ("worker", "w1@host"), ("task", "add")
    assert values[f"flower_events_total{sorted([worker, task, ('type', 'task-started')])}"] == 1
    assert values[f"flower_task_runtime_seconds_sum{sorted([worker, task])}"] == 0.25
    assert values[f"flower_worker_prefetched_tasks{sorted([worker, task])}"] == 0
    celery = sorted([("name", "add"), ("hostname", "w1@host"), ("queue_name", "celery")])
    assert values[f"celery_task_succeeded_total{celery}"] == 1


def test_requests_are_counted_by_route(site: Site) -> None:
    site.fetch("/worker/w1@host")
    site.fetch("/task/u1")
    site.fetch("/nothing/at/all")
    counts = samples(scrape(site, "?name[]=flower_proxy_requests_total").body.decode())
    routes = {key for key in counts if "'GET'" in key}
    assert any("'/task/(.+)'" in key and "'200'" in key for key in routes)
    assert any("'other'" in key and "'404'" in key for key in routes)
    assert "nothing" not in str(routes)


def test_not_ready_before_the_broker_has_responded(site: Site) -> None:
    response = site.fetch("/ready")
    assert response.code == 503
    assert json.loads(response.body) == {
        "ready": False,
        "reasons": ["not connected to the broker for events", "the broker has not answered yet"],
    }
    assert site.fetch("/ready", method="HEAD").code == 503


def rows(app: FlowerProxy) -> Iterator[str]:
    """Yield the rows of the README's table of metrics."""
    families = [(family.name, family.type, family.labels, family.help) for family in app.monitor.families()]
    for metric in app.monitor.own.collect():
        if metric.name.startswith("flower_proxy_"):
            names = {name for sample in metric.samples for name in sample.labels if name != "le"}
            labels = {"flower_proxy_requests": ("route", "method", "status")}
            families.append(
                (metric.name, metric.type, labels.get(metric.name, tuple(sorted(names))), metric.documentation)
            )
    for name, type_, label_names, help_ in families:
        shown = f"{name}_total" if type_ == "counter" else name
        yield f"| `{shown}` | {type_} | {', '.join(label_names)} | {help_} |"


@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_the_readme_lists_every_metric(app: FlowerProxy) -> None:
    """If this fails, put the expected table into the README."""
    _, _, rest = README.partition("<!-- metrics -->\n")
    table, _, _ = rest.partition("<!-- /metrics -->")
    assert table == "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows(app), ""])
