"""Findings of ``flower-proxy check`` from the answers it received."""

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
from flower_proxy.check.client import Answer, parse_target
from flower_proxy.check.evidence import CROSS_SITE_HEADERS, SPOOFED_HEADERS, Evidence, StaticFile
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.remedies import LINES, PROXIES, Advice, recognise
from flower_proxy.check.report import Seen, SeenWorker
from flower_proxy.check.unreached import not_reached
from flower_proxy.cli.check import show
from flower_proxy.events.task_events import TaskEvents

TARGET = parse_target("https://Example.com:443/flower/")
WORKER = SeenWorker(name="w1@host", alive=True, ahead=0.1, task_events=True, celery="5.7.0")
SEEN = Seen(
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
    Answer(200, {"content-type": "text/javascript", "content-encoding": "gzip", "cache-control": "max-age=1"}, b"x"),
)


def saying(seen: Seen, *, server: str = "nginx/1.22.1") -> Answer:
    return Answer(200, {"server": server}, json.dumps(asdict(seen)).encode(), port=2)


def evidence(seen: Seen = SEEN, **changes: Any) -> Evidence:
    """What comes back from a healthy deployment, but for the changes."""
    refused = Answer(403)
    healthy = Evidence(
        target=TARGET,
        seen=seen,
        answer=saying(seen),
        now=1000.0,
        page=Answer(200),
        without_slash=Answer(308, {"location": "./flower/"}),
        statics=(SCRIPT,),
        spoofed=dict.fromkeys(SPOOFED_HEADERS, saying(seen)),
        encoded=saying(replace(seen, path="/-/check/a%2Fb")),
        post=saying(seen),
        same_origin=saying(seen),
        cross_site=dict.fromkeys(CROSS_SITE_HEADERS, refused),
        large_body=saying(seen),
        anonymous=Answer(401),
        spoofed_user=None,
        metrics=Answer(401),
    )
    return replace(healthy, **changes)


def spoofed(header: str, seen: Seen) -> dict[str, Any]:
    return {"spoofed": {**dict.fromkeys(SPOOFED_HEADERS, saying(SEEN)), header: saying(seen)}}


def with_worker(**changes: Any) -> Seen:
    return replace(SEEN, workers=(replace(WORKER, **changes),))


def static(answer: Answer | None) -> dict[str, Any]:
    return {"statics": (replace(SCRIPT, answer=answer),)}


def test_what_is_healthy_passes() -> None:
    assert {finding.status for finding in CHECKS.examine(evidence())} == {Status.PASSED}


@pytest.mark.parametrize(
    ("found", "name", "status", "says"),
    [
        pytest.param(
            evidence(replace(SEEN, time=1100.0)),
            "clocks",
            "failed",
            "100 seconds ahead of that of this",
            id="our-clock",
        ),
        pytest.param(
            evidence(with_worker(ahead=-60.0)), "clocks", "failed", "w1@host is 60 seconds behind", id="clock"
        ),
        pytest.param(evidence(replace(SEEN, time=1010.0)), "clocks", "passed", "they agree", id="clock-near-enough"),
        pytest.param(
            evidence(with_worker(alive=False)), "workers", "failed", "none is heard of", id="all-workers-are-gone"
        ),
        pytest.param(
            evidence(replace(SEEN, workers=(WORKER, replace(WORKER, name="w2@host", alive=False)))),
            *("workers", "passed", "1 online; silent: w2@host"),
            id="one-worker-is-gone",
        ),
        pytest.param(evidence(with_worker(task_events=None)), "events", "skipped", "no task has run", id="no-task-yet"),
        pytest.param(evidence(replace(SEEN, connected=False)), "broker", "failed", "no events can", id="no-events"),
        pytest.param(evidence(with_worker(celery="4.4.7")), "versions", "warning", "4.4.7", id="old-celery"),
        pytest.param(evidence(replace(SEEN, flower_proxy="0.0.1")), "versions", "warning", "checked by", id="version"),
        pytest.param(
            evidence(**static(replace(SCRIPT.answer or Answer(), problem="the answer is cut off"))),
            *("static", "failed", "is answered with the answer is cut off"),
            id="cut-off",
        ),
        pytest.param(evidence(**static(None)), "static", "failed", "is not below https://example.com/", id="outside"),
        pytest.param(evidence(page=Answer(500)), "static", "failed", "500 Internal Server Error", id="no-page"),
        pytest.param(
            evidence(**static(replace(SCRIPT.answer or Answer(), headers={"content-type": "text/html"}))),
            *("static", "failed", "comes as text/html, and browsers refuse it"),
            id="type",
        ),
        pytest.param(
            evidence(same_origin=Answer(403)), "origin", "failed", "is taken for another site's", id="origin-is-changed"
        ),
        pytest.param(evidence(encoded=Answer(404)), "encoding", "warning", "comes to 404 Not Found", id="apache-slash"),
        pytest.param(
            evidence(**spoofed("X-Forwarded-For", replace(SEEN, client="192.0.2.66", headers={}))),
            *("forwarded", "passed", "does not count"),
            id="appended-behind-a-trusted-client",
        ),
        pytest.param(
            evidence(
                **spoofed(
                    "X-Forwarded-For",
                    replace(SEEN, client="192.0.2.66", headers={"X-Forwarded-For": "192.0.2.66"}),
                )
            ),
            *("forwarded", "failed", "counts: X-Forwarded-For"),
            id="made-up-client",
        ),
        pytest.param(
            evidence(**spoofed("Forwarded", replace(SEEN, client="192.0.2.66"))),
            *("forwarded", "failed", "counts: Forwarded"),
            id="made-up-forwarded",
        ),
        pytest.param(
            evidence(spoofed={**dict.fromkeys(SPOOFED_HEADERS, saying(SEEN)), "X-Forwarded-Host": Answer(403)}),
            *("forwarded", "failed", "counts: X-Forwarded-Host"),
            id="made-up-host-is-refused-further-in",
        ),
        pytest.param(
            evidence(anonymous=saying(replace(SEEN, user_header="X-Forwarded-User")), spoofed_user=None),
            *("authentication", "failed", "sends a password by itself"),
            id="password-of-the-proxy",
        ),
        pytest.param(
            evidence(replace(SEEN, user_header="X-Me"), anonymous=saying(SEEN)),
            *("authentication", "failed", "the proxy sends X-Me without asking"),
            id="user-of-the-proxy",
        ),
    ],
)
def test_what_is_made_of_what_came_back(found: Evidence, name: str, status: str, says: str) -> None:
    findings = {finding.name: finding for finding in CHECKS.examine(found)}
    assert (findings[name].status.value, says in findings[name].message) == (status, True), findings[name]
    others = {other.name: other.status for other in findings.values() if other.name != name}
    assert not {Status.FAILED, Status.WARNING} & set(others.values())
    assert all(status in ("failed", "skipped") or other is Status.PASSED for other in others.values())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(Answer(404, {}, b"Page not found: /flower/-/check"), "something answers 404", id="django"),
        pytest.param(Answer(200, {}, b"[]"), "something answers 200 OK, which is not Flower", id="another-json"),
        pytest.param(Answer(429, {"content-type": "text/plain"}, b"wait\n"), "429 Too Many Requests: wait", id="429"),
        pytest.param(Answer(504, {"server": "awselb/2.0"}), "awselb answers 504 Gateway Timeout", id="504"),
        pytest.param(Answer(520), "something answers 520, which is not Flower", id="no-such-status"),
    ],
)
def test_what_is_made_of_somebody_elses_answer(answer: Answer, says: str) -> None:
    finding = not_reached(answer, Answer(404), TARGET, "me")
    assert (finding.status, says in finding.message) == (Status.FAILED, True), finding


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("launcher", Status.FAILED, "\x1b[2J\rgone", "a\nb\x07")])
    assert capsys.readouterr().out.splitlines() == [
        "failed  launcher        ?[2J?gone",
        " " * 24 + "a",
        " " * 24 + "b?",
    ]


# Tasks of which nothing is heard


def beat(processed: int | None) -> dict[str, Any]:
    return {"type": "worker-heartbeat", "hostname": "w1@host", "processed": processed}


TASK = {"type": "task-started", "hostname": "w1@host"}


@pytest.mark.parametrize(
    ("events", "sends"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([beat(None), beat(7), beat(7), beat(7)], None, id="idle"),
        pytest.param([beat(7), beat(8)], None, id="events-may-still-come"),
        pytest.param([beat(7), beat(8), beat(8)], False, id="silent"),
        pytest.param([beat(7), beat(8), TASK, beat(8), beat(8)], True, id="heard"),
        pytest.param([TASK, beat(8), beat(9), beat(9)], False, id="switched-off"),
        pytest.param([beat(7), beat(0), beat(0), beat(0)], None, id="started-again"),
        pytest.param([beat(7), beat(8), beat(8), {"type": "task-sent", "hostname": "w1@host"}], False, id="a-producer"),
        pytest.param(
            [TASK, *({**TASK, "hostname": name} for name in ("w2@host", "w3@host"))], None, id="too-many-workers"
        ),
        pytest.param([{**beat(7), "hostname": "w2@host"}, {**TASK, "hostname": "w2@host"}], None, id="another"),
    ],
)
def test_whether_a_worker_sends_events_of_tasks(events: Sequence[Mapping[str, Any]], sends: bool | None) -> None:
    task_events = TaskEvents(max_workers=2)
    task_events.on_events(events)
    assert task_events.sends_task_events("w1@host") is sends


# Remedies


def test_every_proxy_is_recognised_and_others_get_words() -> None:
    said = ["nginx/1.22.1", "Apache/2.4.66 (Debian)", "Caddy"]
    assert tuple(recognise(server) for server in said) == PROXIES
    assert [recognise(server) for server in ("openresty", "", "cloudflare")] == ["nginx", "", ""]
    advice = Advice("", "/flower")
    for key in LINES:
        assert advice.line(key)
    assert advice.set_headers("Forwarded") == "let the proxy take Forwarded out of what clients send"


# Imports


def modules_after(name: str) -> set[str]:
    """Import a module in a fresh interpreter, and return the modules that are loaded then."""
    code = f"import sys, {name}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(ended.stdout.split())


def test_the_doctor_loads_neither_flower_nor_tornado_web() -> None:
    loaded = modules_after("flower_proxy.cli.check")
    assert "flower_proxy.check.checks" in loaded
    assert not {"flower", "tornado.web"} & loaded


def test_the_report_loads_nothing_else_of_the_doctor() -> None:
    loaded = {name for name in modules_after("flower_proxy.check.report") if name.startswith("flower_proxy")}
    assert loaded == {"flower_proxy", "flower_proxy.check", "flower_proxy.check.report"}
