"""Validity of ``examples/prometheus`` and ``examples/grafana``, and of the metrics and labels that they use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.processes import PROJECT
from tests.support.prometheus import Prometheus, promtool, remembering
from tests.support.promql import named

PROMETHEUS = PROJECT / "examples" / "prometheus"
GRAFANA = PROJECT / "examples" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "celery.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}

# Labels that Prometheus adds to each series of a target
TARGET = {"job", "instance"}
_TASK = {"name", "hostname", "queue_name"}
# Metrics of flower-proxy and their labels; histograms without _bucket, _sum and _count
FAMILIES = {
    "flower_events_total": {"worker", "type", "task"},
    "flower_task_prefetch_time_seconds": {"worker", "task"},
    "flower_worker_prefetched_tasks": {"worker", "task"},
    "flower_worker_online": {"worker"},
    "flower_worker_number_of_currently_executing_tasks": {"worker"},
    "celery_task_sent_total": _TASK,
    "celery_task_received_total": _TASK,
    "celery_task_started_total": _TASK,
    "celery_task_succeeded_total": _TASK,
    "celery_task_failed_total": _TASK | {"exception"},
    "celery_task_rejected_total": _TASK,
    "celery_task_revoked_total": _TASK,
    "celery_task_retried_total": _TASK,
    "celery_worker_up": {"hostname"},
    "celery_worker_tasks_active": {"hostname"},
    "celery_queue_length": {"queue_name"},
    "celery_active_consumer_count": {"queue_name"},
    "celery_active_worker_count": {"queue_name"},
    "celery_active_process_count": {"queue_name"},
    "flower_proxy_build_info": {"version", "flower", "celery", "python"},
    "flower_proxy_broker_connected": set[str](),
    "flower_proxy_seconds_since_last_event": set[str](),
    "flower_proxy_events_received_total": set[str](),
    "flower_proxy_events_dropped_total": set[str](),
    "flower_proxy_events_rejected_total": {"reason"},
    "flower_proxy_event_reconnects_total": set[str](),
    "flower_proxy_tasks_in_memory": set[str](),
    "flower_proxy_workers_in_memory": set[str](),
    "flower_proxy_requests_total": {"route", "method", "status"},
    "flower_proxy_login_failures_total": {"reason"},
    "flower_proxy_task_names_overflow_total": set[str](),
    "flower_proxy_replies_rejected_total": {"reason"},
    "flower_proxy_tasks_missed_total": {"worker"},
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
}
HISTOGRAMS = {
    "flower_task_runtime_seconds": {"worker", "task"},
    "celery_task_runtime": _TASK,
    "celery_task_queue_wait_time": _TASK,
    "flower_proxy_event_delay_seconds": set[str](),
    "flower_proxy_event_loop_delay_seconds": set[str](),
}
SAMPLES = FAMILIES | {
    name + suffix: labels | ({"le"} if suffix == "_bucket" else set())
    for name, labels in HISTOGRAMS.items()
    for suffix in ("_bucket", "_sum", "_count")
}
COUNTERS = {name for name in SAMPLES if name not in FAMILIES or name.endswith("_total")}

# The time of the last sample
NOW = 1_700_000_000


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, including those in collapsed rows."""
    return [inner for panel in DASHBOARD["panels"] for inner in (panel, *panel.get("panels", []))]


class Query(NamedTuple):
    """A query of the dashboard, as Grafana sends it with all variables set to All."""

    panel: str
    letter: str
    expression: str
    legend: str


def queries() -> list[Query]:
    values = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*"}
    return [
        Query(
            panel["title"],
            target["refId"],
            re.sub(r"\$\w+", lambda match: values[match[0]], target["expr"]),
            target.get("legendFormat", ""),
        )
        for panel in panels()
        for target in panel.get("targets", [])
    ]


each_query = pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel} {query.letter}")


def _references() -> Iterator[list[tuple[str, set[str]]]]:
    """Metrics and labels in each rule, query and variable; labels in its texts belong to the first metric."""
    for rule in RULES:
        metrics = named(rule["expr"])
        texts = " ".join(rule.get("annotations", {}).values())
        metrics[0][1].update(re.findall(r"\$labels\.(\w+)", texts))
        yield metrics
    for query in queries():
        metrics = named(query.expression)
        metrics[0][1].update(re.findall(r"{{\s*(\w+)\s*}}", query.legend))
        yield metrics
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            (call,) = re.findall(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            metrics = named(call[0])
            metrics[0][1].add(call[1])
            yield metrics


def used_metrics() -> dict[str, set[str]]:
    """The scraped metrics that the rules and the dashboard use, and the labels that they use."""
    used: dict[str, set[str]] = {}
    for metrics in _references():
        for name, labels in metrics:
            used.setdefault(name, set()).update(labels - TARGET)
    recorded = {rule.get("record") for rule in RULES}
    return {name: labels for name, labels in used.items() if name not in recorded and name != "up"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("up", [("up", set())], id="a metric"),
        pytest.param('a{b=~"c{d}|e", f!="g, h=i"} == 1', [("a", {"b", "f"})], id="matchers"),
        pytest.param("sum by (b) (rate(a[5m])) / c", [("a", {"b"}), ("c", set())], id="aggregated"),
        pytest.param("sum by (b) (a + sum by (c) (d))", [("a", {"b"}), ("d", {"b", "c"})], id="nested"),
        pytest.param("x(a unless on (b) c offset 10m) or d", [("a", {"b"}), ("c", {"b"}), ("d", set())], id="matched"),
        pytest.param("quantile(0.95, a{b='c'}) >= bool 1e3", [("a", {"b"})], id="numbers"),
        pytest.param("sum by (job) (a) > 1 and absent(b)", [("a", {"job"}), ("b", set())], id="words"),
    ],
)
def test_metrics_and_labels_of_an_expression(expression: str, expected: list[tuple[str, set[str]]]) -> None:
    assert named(expression) == expected


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("check config", "prometheus.yml"),
        ("check config", "over-proxy.yml"),
        ("check config", "own-port.yml"),
        ("check rules", "rules.yml"),
        ("test rules", "rules_test.yml"),
    ],
)
def test_promtool_accepts_the_examples(command: str, file: str) -> None:
    output = promtool(*command.split(), str(PROMETHEUS / file))
    assert "SUCCESS" in output
    assert "FAILED" not in output


def test_prometheus_can_parse_each_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"query:{index}", "expr": query.expression} for index, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


@pytest.mark.parametrize("fires", [True, False], ids=["firing", "not-firing"])
@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_both_test_cases(alert: str, fires: bool) -> None:
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    tests = [test for case in cases for test in case.get("alert_rule_test", []) if test["alertname"] == alert]
    assert fires in {bool(test["exp_alerts"]) for test in tests}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_severity_and_annotations(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert "{{ $labels." in rule["annotations"]["summary"] or "absent(" in rule["expr"]


def test_rules_and_panels_use_only_existing_metrics_and_labels() -> None:
    used = used_metrics()
    assert used.keys() - SAMPLES.keys() == set()
    assert {name: labels - SAMPLES[name] for name, labels in used.items() if labels - SAMPLES[name]} == {}


def test_rules_use_only_previously_recorded_metrics() -> None:
    """Rules of a group are evaluated in order."""
    recorded: dict[str, set[str]] = {}
    for rule, metrics in zip(RULES, _references(), strict=False):
        for name, labels in metrics:
            if ":" in name:
                assert labels <= recorded[name], name
        if "record" in rule:
            name, labels = metrics[0]
            removed = {"le", *re.findall(r"without \((\w+)\)", rule["expr"])}
            recorded[rule["record"]] = recorded.get(name, labels - removed)
            assert rule["record"].startswith("_".join(sorted(recorded[rule["record"]], key=rule["record"].find)) + ":")


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) is panel["title"], f"{panel['title']} on {taken[cell]}"


def test_the_overview_comes_first() -> None:
    """On a phone Grafana shows the panels in this order."""
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in DASHBOARD["panels"]]
    assert places == sorted(places)
    first = [panel["title"] for panel in DASHBOARD["panels"] if panel["gridPos"]["y"] == 0]
    assert first == ["Workers online", "Failing", "Waiting in queues", "Longest wait", "Last event", "Broker"]


def test_the_dashboard_follows_grafanas_schema() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    assert DASHBOARD["uid"] == "flower-proxy"
    # The schema of Grafana 10.0, which newer versions convert
    assert DASHBOARD["schemaVersion"] >= 38
    for panel in panels():
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert "unit" in panel["fieldConfig"]["defaults"], panel["title"]
            letters = [target["refId"] for target in panel["targets"] if target["expr"]]
            assert letters == sorted(set(letters)), panel["title"]
            assert len(letters) == len(panel["targets"]) > 0, panel["title"]


def test_the_dashboard_uses_the_selected_data_source() -> None:
    users = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    users += [panel for panel in panels() if panel["type"] != "row"]
    users += [target for panel in panels() for target in panel.get("targets", [])]
    for user in users:
        assert user["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_dashboard_uses_its_variables() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    built_in = {"__rate_interval", "__range"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([DASHBOARD["panels"], DASHBOARD["templating"]])))
    assert used - {"__all"} - built_in == defined == {"datasource", "job", "instance"}
    for query in queries():
        for name, labels in named(query.expression):
            assert labels >= TARGET, f"{query}: {name} is not filtered by the selected job and instance"


def test_grafanas_time_interval_is_the_scrape_interval() -> None:
    (source,) = yaml.safe_load((GRAFANA / "datasource.yml").read_text())["datasources"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def history(value: Callable[[str, int], float], names: Collection[str] = SAMPLES) -> str:
    """OpenMetrics text with one sample per minute for an hour, one series per name and histogram bucket.

    :param value: returns the value for a name at a minute.
    """
    lines = []
    for name in names:
        for bound in ("1", "10", "+Inf") if "le" in SAMPLES[name] else ("",):
            labels = {label: f"a {label}" for label in SAMPLES[name]} | {"job": "celery", "instance": "a:5555"}
            labels |= {label: text for label, text in (("le", bound), ("type", "task-failed")) if label in labels}
            series = name + "{" + ",".join(f'{label}="{text}"' for label, text in labels.items()) + "}"
            lines += [f"{series} {value(name, minute)} {NOW - 3600 + 60 * minute}" for minute in range(61)]
    return "\n".join([*lines, "# EOF", ""])


def idle_value(name: str, minute: int) -> float:
    return float(name == "flower_proxy_broker_connected")


def fresh_value(name: str, minute: int) -> float:
    return math.nan if name == "flower_proxy_seconds_since_last_event" else idle_value(name, minute)


def busy_value(name: str, minute: int) -> float:
    return 60 * minute if name in COUNTERS else 1


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with an hour of samples in which all counters increase."""
    with remembering(history(busy_value), tmp_path_factory.mktemp("prometheus") / "busy") as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with an hour of constant samples."""
    with remembering(history(idle_value), tmp_path_factory.mktemp("prometheus") / "idle") as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with samples of a flower-proxy that has received no events."""
    ours = [name for name in SAMPLES if name.startswith("flower_proxy_")]
    with remembering(history(fresh_value, ours), tmp_path_factory.mktemp("prometheus") / "fresh") as prometheus:
        yield prometheus


@each_query
def test_panels_have_values_if_tasks_run(busy: Prometheus, query: Query) -> None:
    found = busy.query(query.expression, at=NOW)
    assert found
    assert all(math.isfinite(value) for _, value in found)


@pytest.mark.parametrize("state", ["idle", "fresh"])
@each_query
def test_panels_do_not_divide_by_zero(request: pytest.FixtureRequest, state: str, query: Query) -> None:
    prometheus: Prometheus = request.getfixturevalue(state)
    assert all(math.isfinite(value) for _, value in prometheus.query(query.expression, at=NOW))


OVERVIEW = {"Workers online": 0, "Failing": 0, "Waiting in queues": 0, "Broker": 1}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param("idle", OVERVIEW | {"Longest wait": 0, "Last event": 0}, id="idle"),
        pytest.param("fresh", OVERVIEW, id="no-events-yet"),
    ],
)
def test_the_overview_without_tasks(request: pytest.FixtureRequest, state: str, expected: dict[str, float]) -> None:
    prometheus: Prometheus = request.getfixturevalue(state)
    found = {query.panel: prometheus.query(query.expression, at=NOW) for query in queries()[:6]}
    assert {panel: series[0][1] for panel, series in found.items() if series} == expected
