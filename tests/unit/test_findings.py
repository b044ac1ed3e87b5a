"""Findings of ``flower-proxy check`` from given responses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from flower_proxy import __version__
from flower_proxy.check.checks import CHECKS
from flower_proxy.check.client import Response, parse_target
from flower_proxy.check.evidence import CROSS_SITE_HEADERS, SPOOFED_HEADERS, Evidence, StaticFile
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.remedies import LINES, PROXIES, Advice, detect_proxy
from flower_proxy.check.report import Report, WorkerReport
from flower_proxy.check.unreached import not_reached
from flower_proxy.cli.check import show
from flower_proxy.events.task_events import TaskEvents

TARGET = parse_target("https://Example.com:443/flower/")
WORKER = WorkerReport(name="w1@host", alive=True, ahead=0.1, task_events=True, celery="5.7.0")
REPORT = Report(
    peer="127.0.0.1",
    peer_port=1,
    trusted=True,
    headers={"X-Forwarded-For": "198.51.100.7"},
    client="198.51.100.7",
    scheme="https",
    host="example.com",
    prefix="/flower",
    path="/-/check",
    trusted_proxies=("127.0.0.0/8",),
    asks=True,
    user_header=None,
    enable_events=True,
    broker=None,
    connected=True,
    workers=(WORKER,),
    time=1000.0,
    flower_proxy=__version__,
    flower="2.2.0",
    celery="5.7.0",
)
SCRIPT = StaticFile(
    "https://example.com/flower/static/js/flower.js?v=1",
    Response(200, {"content-type": "text/javascript", "content-encoding": "gzip", "cache-control": "max-age=1"}, b"x"),
)


def responding(report: Report, *, server: str = "nginx/1.22.1") -> Response:
    return Response(200, {"server": server}, json.dumps(asdict(report)).encode(), port=2)


def evidence(report: Report = REPORT, **changes: Any) -> Evidence:
    """Return the evidence of a healthy deployment with these changes."""
    rejected = Response(403)
    healthy = Evidence(
        target=TARGET,
        report=report,
        response=responding(report),
        now=1000.0,
        page=Response(200),
        without_slash=Response(308, {"location": "./flower/"}),
        static_files=(SCRIPT,),
        spoofed=dict.fromkeys(SPOOFED_HEADERS, responding(report)),
        encoded=responding(replace(report, path="/-/check/a%2Fb")),
        post=responding(report),
        same_origin=responding(report),
        cross_site=dict.fromkeys(CROSS_SITE_HEADERS, rejected),
        large_body=responding(report),
        anonymous=Response(401),
        spoofed_user=None,
        metrics=Response(401),
    )
    return replace(healthy, **changes)


def spoofed(header: str, report: Report) -> dict[str, Any]:
    return {"spoofed": {**dict.fromkeys(SPOOFED_HEADERS, responding(REPORT)), header: responding(report)}}


def with_worker(**changes: Any) -> Report:
    return replace(REPORT, workers=(replace(WORKER, **changes),))


def static(response: Response | None) -> dict[str, Any]:
    return {"static_files": (replace(SCRIPT, response=response),)}


def test_healthy_deployment_passes_all_checks() -> None:
    assert {finding.status for finding in CHECKS.examine(evidence())} == {Status.PASSED}


@pytest.mark.parametrize(
    ("found", "name", "status", "expected"),
    [
        pytest.param(
            evidence(replace(REPORT, time=1100.0)),
            "clocks",
            "failed",
            "100 seconds ahead of this machine's",
            id="local-clock-is-wrong",
        ),
        pytest.param(
            evidence(with_worker(ahead=-60.0)),
            "clocks",
            "failed",
            "w1@host is 60 seconds behind",
            id="worker-clock-is-wrong",
        ),
        pytest.param(
            evidence(replace(REPORT, time=1010.0)), "clocks", "passed", "agree within 16", id="small-clock-skew"
        ),
        pytest.param(
            evidence(with_worker(alive=False)), "workers", "failed", "no worker is online", id="all-workers-are-offline"
        ),
        pytest.param(
            evidence(replace(REPORT, workers=(WORKER, replace(WORKER, name="w2@host", alive=False)))),
            *("workers", "passed", "1 online, 1 offline: w2@host"),
            id="one-worker-is-offline",
        ),
        pytest.param(
            evidence(with_worker(task_events=None)), "events", "skipped", "no task has run", id="no-task-has-run"
        ),
        pytest.param(
            evidence(replace(REPORT, connected=False)),
            "broker",
            "failed",
            "cannot receive events",
            id="event-receiver-is-disconnected",
        ),
        pytest.param(
            evidence(with_worker(celery="4.4.7")), "versions", "warning", "4.4.7", id="celery-versions-differ"
        ),
        pytest.param(
            evidence(replace(REPORT, flower_proxy="0.0.1")),
            "versions",
            "warning",
            "checked with",
            id="flower-proxy-versions-differ",
        ),
        pytest.param(
            evidence(**static(replace(SCRIPT.response or Response(), problem="the response is incomplete"))),
            *("static", "failed", "does not load: the response is incomplete"),
            id="static-file-is-incomplete",
        ),
        pytest.param(
            evidence(**static(None)),
            "static",
            "failed",
            "is outside https://example.com/",
            id="static-file-outside-prefix",
        ),
        pytest.param(evidence(page=Response(500)), "static", "failed", "500 Internal Server Error", id="page-fails"),
        pytest.param(
            evidence(**static(replace(SCRIPT.response or Response(), headers={"content-type": "text/html"}))),
            *("static", "failed", "its Content-Type is text/html"),
            id="wrong-content-type",
        ),
        pytest.param(
            evidence(same_origin=Response(403)),
            "origin",
            "failed",
            "same-origin requests are rejected",
            id="origin-is-changed",
        ),
        pytest.param(
            evidence(encoded=Response(404)),
            "encoding",
            "warning",
            "(/a%2Fb: 404 Not Found)",
            id="encoded-slash-is-rejected",
        ),
        pytest.param(
            evidence(**spoofed("X-Forwarded-For", replace(REPORT, client="192.0.2.66", headers={}))),
            *("forwarded", "passed", "have no effect"),
            id="client-is-a-trusted-proxy",
        ),
        pytest.param(
            evidence(
                **spoofed(
                    "X-Forwarded-For",
                    replace(REPORT, client="192.0.2.66", headers={"X-Forwarded-For": "192.0.2.66"}),
                )
            ),
            *("forwarded", "failed", "can spoof X-Forwarded-For"),
            id="spoofed-client",
        ),
        pytest.param(
            evidence(**spoofed("Forwarded", replace(REPORT, client="192.0.2.66"))),
            *("forwarded", "failed", "can spoof Forwarded"),
            id="spoofed-forwarded",
        ),
        pytest.param(
            evidence(spoofed={**dict.fromkeys(SPOOFED_HEADERS, responding(REPORT)), "X-Forwarded-Host": Response(403)}),
            *("forwarded", "failed", "can spoof X-Forwarded-Host"),
            id="spoofed-host-is-rejected-by-flower",
        ),
        pytest.param(
            evidence(anonymous=responding(replace(REPORT, user_header="X-Forwarded-User")), spoofed_user=None),
            *("authentication", "failed", "the proxy adds credentials"),
            id="proxy-adds-credentials",
        ),
        pytest.param(
            evidence(replace(REPORT, user_header="X-Me"), anonymous=responding(REPORT)),
            *("authentication", "failed", "the proxy sets X-Me without authentication"),
            id="proxy-sets-user-header",
        ),
    ],
)
def test_defect_is_reported_by_one_check(found: Evidence, name: str, status: str, expected: str) -> None:
    findings = {finding.name: finding for finding in CHECKS.examine(found)}
    assert (findings[name].status.value, expected in findings[name].message) == (status, True), findings[name]
    others = {other.name: other.status for other in findings.values() if other.name != name}
    assert not {Status.FAILED, Status.WARNING} & set(others.values())
    assert all(status in ("failed", "skipped") or other is Status.PASSED for other in others.values())


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(
            Response(404, {}, b"Page not found: /flower/-/check"), "an unknown server answers 404", id="django"
        ),
        pytest.param(Response(200, {}, b"[]"), "answers 200 OK, but is not Flower", id="other-json"),
        pytest.param(Response(429, {"content-type": "text/plain"}, b"wait\n"), "429 Too Many Requests: wait", id="429"),
        pytest.param(Response(504, {"server": "awselb/2.0"}), "awselb answers 504 Gateway Timeout", id="504"),
        pytest.param(Response(520), "answers 520, but is not Flower", id="unknown-status"),
    ],
)
def test_response_of_another_server_is_explained(response: Response, expected: str) -> None:
    finding = not_reached(response, Response(404), TARGET, "me")
    assert (finding.status, expected in finding.message) == (Status.FAILED, True), finding


def test_control_characters_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("launcher", Status.FAILED, "\x1b[2J\rgone", "a\nb\x07")])
    assert capsys.readouterr().out.splitlines() == [
        "failed  launcher        ?[2J?gone",
        " " * 24 + "a",
        " " * 24 + "b?",
    ]


# Detection of missing task events


def heartbeat(processed: int | None) -> dict[str, Any]:
    return {"type": "worker-heartbeat", "hostname": "w1@host", "processed": processed}


TASK = {"type": "task-started", "hostname": "w1@host"}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([], None, id="no-events"),
        pytest.param([heartbeat(None), heartbeat(7), heartbeat(7), heartbeat(7)], None, id="idle"),
        pytest.param([heartbeat(7), heartbeat(8)], None, id="first-task-since-heartbeat"),
        pytest.param([heartbeat(7), heartbeat(8), heartbeat(8)], False, id="task-events-are-missing"),
        pytest.param([heartbeat(7), heartbeat(8), TASK, heartbeat(8), heartbeat(8)], True, id="task-events-arrive"),
        pytest.param([TASK, heartbeat(8), heartbeat(9), heartbeat(9)], False, id="task-events-stop"),
        pytest.param([heartbeat(7), heartbeat(0), heartbeat(0), heartbeat(0)], None, id="worker-restarts"),
        pytest.param(
            [heartbeat(7), heartbeat(8), heartbeat(8), {"type": "task-sent", "hostname": "w1@host"}],
            False,
            id="only-task-sent",
        ),
        pytest.param(
            [TASK, *({**TASK, "hostname": name} for name in ("w2@host", "w3@host"))], None, id="too-many-workers"
        ),
        pytest.param(
            [{**heartbeat(7), "hostname": "w2@host"}, {**TASK, "hostname": "w2@host"}], None, id="other-worker"
        ),
    ],
)
def test_workers_without_task_events_are_detected(events: Sequence[Mapping[str, Any]], expected: bool | None) -> None:
    task_events = TaskEvents(max_workers=2)
    for event in events:
        task_events.on_event(event)
    assert task_events.sends_task_events("w1@host") is expected


# Remedies


def test_proxies_are_detected_and_others_get_instructions() -> None:
    servers = ["nginx/1.22.1", "Apache/2.4.66 (Debian)", "Caddy"]
    assert tuple(detect_proxy(server) for server in servers) == PROXIES
    assert [detect_proxy(server) for server in ("openresty", "", "cloudflare")] == ["nginx", "", ""]
    advice = Advice("", "/flower")
    for key in LINES:
        assert advice.line(key)
    assert advice.set_headers("Forwarded") == "configure the proxy to remove Forwarded"


# Imports


def modules_loaded_by(name: str) -> set[str]:
    """Return the names of the modules that importing this one loads."""
    code = f"import sys, {name}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


def test_check_command_loads_neither_flower_nor_tornado_web() -> None:
    loaded = modules_loaded_by("flower_proxy.cli.check")
    assert "flower_proxy.check.checks" in loaded
    assert not {"flower", "tornado.web"} & loaded


def test_report_loads_no_other_module_of_check() -> None:
    loaded = {name for name in modules_loaded_by("flower_proxy.check.report") if name.startswith("flower_proxy")}
    assert loaded == {"flower_proxy", "flower_proxy.check", "flower_proxy.check.report"}
