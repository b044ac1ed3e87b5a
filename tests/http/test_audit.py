"""The audit and access logs; Flower has neither."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from tornado.web import HTTPError

from flower_proxy.web.audit import OneLineFormatter
from tests.http.conftest import OPEN, PREFIX, Site
from tests.http.test_access_policy import HEADER, OAUTH, basic
from tests.http.test_login import Jar, Provider

SETTINGS = {"basic_auth": ["alice:right", "bob:right"], "viewers": ["bob"]}
ALICE, BOB = basic("alice:right"), basic("bob:right")
VALUE = re.compile(r' ([a-z]+)=("(?:[^"\\]|\\.)*"|\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\}|[0-9.]+)')
EVIL = {
    "newline": '\nlogin refused: user="bob"',
    "carriage-return": '\r\ncontrol action: user="bob" client="127.0.0.1"',
    "quotes": '" client="198.51.100.1" path="/api/worker/shutdown/w1" status=200 x="',
    "braces": '{"n": 1} status=200',
    "backslash": '\\" status=200 x=\\',
    "ansi": "\x1b[2K\x1b[1A\x1b[31mgone",
    "line-separators": "a\u2028b\u2029c\x85d\x0be",
    "bidi": "\u202eecila",
    "not-ascii": "J\xf6rg \u041e\u043b\u044c\u0433\u0430 \U0001f33b",
}
evil = pytest.mark.parametrize("text", EVIL.values(), ids=EVIL)


@pytest.fixture
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
def audited(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    """Parse the audit log: the fields of each line of one event."""
    caplog.set_level(logging.INFO)

    def read(event: str) -> list[dict[str, Any]]:
        lines = [record.getMessage() for record in caplog.records if record.name == "flower_proxy.web.audit"]
        assert all(line.isascii() and line.isprintable() for line in lines), lines
        return [parse(line) for line in lines if line.startswith(f"{event}: ")]

    return read


def parse(line: str) -> dict[str, Any]:
    fields = line.partition(":")[2]
    assert re.fullmatch(f"(?:{VALUE.pattern})+", fields), line
    pairs = [(match[1], json.loads(match[2])) for match in VALUE.finditer(fields)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def revoke(site: Site, task: str = "t1", query: str = "", **headers: str) -> int:
    return int(site.fetch(f"/api/task/revoke/{quote(task, safe='')}{query}", method="POST", headers=headers).code)


Read = Callable[[str], list[dict[str, Any]]]


# Control actions


def test_a_control_action_is_logged_in_one_line(site: Site, audited: Read) -> None:
    assert revoke(site, query="?terminate=true&signal=SIGKILL", **ALICE, **{"X-Forwarded-For": "203.0.113.7"}) == 200
    assert audited("control action") == [
        {
            "user": "alice",
            "client": "203.0.113.7",
            "path": "/api/task/revoke/t1",
            "arguments": {"signal": "SIGKILL", "terminate": "true"},
            "status": 200,
        }
    ]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(BOB, 403, id="viewer"),
        pytest.param({**ALICE, "Origin": "https://evil.example"}, 403, id="forged"),
    ],
)
def test_a_refused_control_action_is_logged(site: Site, audited: Read, headers: dict[str, str], status: int) -> None:
    assert revoke(site, **headers) == status
    (line,) = audited("control action")
    assert (line["path"], line["status"]) == ("/api/task/revoke/t1", status)


def test_a_failed_control_action_is_logged(site: Site, audited: Read) -> None:
    site.fetch("/api/worker/pool/grow/w1@host?n=3", method="POST", headers=ALICE)
    (line,) = audited("control action")
    assert (line["path"], line["arguments"], line["status"]) == ("/api/worker/pool/grow/w1@host", {"n": "3"}, 404)


@pytest.mark.parametrize("path", ["/tasks", "/api/workers", "/metrics", "/nothing"])
def test_read_requests_are_not_control_actions(site: Site, audited: Read, path: str) -> None:
    site.fetch(path, headers=ALICE)
    assert audited("control action") == []


def test_task_arguments_are_not_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = json.dumps({"args": ["PLANTED-1"], "kwargs": {"password": "PLANTED-2"}})
    for path in ("/api/task/send-task/add", "/api/task/send-task/add?args=PLANTED-3"):
        assert site.fetch(path, method="POST", headers=ALICE, body=body).code == 200
    assert "control action: " in caplog.text
    assert "PLANTED" not in caplog.text


@pytest.mark.parametrize("argument", ["type", "n"])
def test_control_actions_with_malformed_arguments_are_logged(site: Site, audited: Read, argument: str) -> None:
    assert revoke(site, query=f"?{argument}=%ff", **ALICE) == 200
    assert [line["status"] for line in audited("control action")] == [200]


def test_the_length_of_a_line_is_limited(site: Site, audited: Read, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a user could flush a log that is rotated by size."""
    body = "signal=" + "9" * 60_000
    headers = {**ALICE, "Content-Type": "application/x-www-form-urlencoded"}
    site.fetch("/api/task/revoke/t1", method="POST", headers=headers, body=body)
    assert len(audited("control action")) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "flower_proxy.web.audit"]
    assert max(map(len, lines)) < 10_000


# Refused logins and requests


@pytest.mark.parametrize(
    ("headers", "user", "reason", "status"),
    [
        pytest.param(basic("alice:wrong"), "alice", "wrong user or password", 401, id="wrong"),
        pytest.param(basic("eve:x"), "eve", "wrong user or password", 401, id="unknown-user"),
        pytest.param({"Authorization": "Basic ="}, "", "Authorization: not base64", 401, id="malformed"),
    ],
)
def test_a_refused_login_is_logged_in_one_line(
    site: Site, audited: Read, headers: dict[str, str], user: str, reason: str, status: int
) -> None:
    """Flower does not log failed logins."""
    client = "203.0.113.9"
    assert site.fetch("/api/workers", headers={**headers, "X-Forwarded-For": client}).code == status
    line = {"user": user, "client": client, "method": "GET", "path": "/api/workers", "reason": reason, "status": status}
    assert audited("login refused") == [line]


def test_rate_limited_logins_are_logged(site: Site, audited: Read) -> None:
    for i in range(11):
        site.fetch("/", headers=basic(f"alice:{i}"))
    assert [line["status"] for line in audited("login refused")] == [401] * 10 + [429]


def test_requests_without_credentials_are_not_logged_as_refused(site: Site, audited: Read) -> None:
    """Browsers send the first request without credentials."""
    assert site.fetch("/tasks").code == 401
    assert audited("login refused") == audited("request refused") == []


@pytest.mark.parametrize("settings", [{"no_auth": True}])
def test_requests_with_a_foreign_host_are_logged(site: Site, audited: Read) -> None:
    site.fetch("/tasks", headers={"Host": "evil.example"})
    (line,) = audited("request refused")
    assert (line["client"], line["method"], line["path"]) == ("127.0.0.1", "GET", "/tasks")
    assert "evil.example" in line["reason"]


def test_refused_cross_site_requests_are_logged(site: Site, audited: Read) -> None:
    site.fetch("/api/workers", headers={"Sec-Fetch-Site": "cross-site"})
    (line,) = audited("request refused")
    assert "cross-site request refused" in line["reason"]


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        pytest.param("203.0.113.7", "203.0.113.7", id="one-proxy"),
        pytest.param("198.51.100.9, 203.0.113.7", "203.0.113.7", id="spoofed-by-the-client"),
        pytest.param("203.0.113.7, 10.1.2.3", "203.0.113.7", id="two-trusted-proxies"),
        pytest.param("2001:db8::7", "2001:db8::7", id="ipv6"),
        pytest.param("garbage", "127.0.0.1", id="malformed"),
    ],
)
@pytest.mark.parametrize("settings", [{**SETTINGS, "trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}])
def test_the_logged_client_is_the_first_untrusted_address(
    site: Site, audited: Read, forwarded: str, client: str
) -> None:
    """Flower's `--xheaders` trusts every peer."""
    revoke(site, **ALICE, **{"X-Forwarded-For": forwarded})
    site.fetch("/", headers={**basic("alice:wrong"), "X-Forwarded-For": forwarded})
    assert [line["client"] for event in ("control action", "login refused") for line in audited(event)] == [client] * 2


# Log injection


@evil
def test_the_target_of_an_action_cannot_forge_a_line(site: Site, audited: Read, text: str) -> None:
    revoke(site, task=text, query=f"?signal={quote(text, safe='')}", **ALICE)
    (line,) = audited("control action")
    assert line["path"] == f"/api/task/revoke/{text}"
    assert line["arguments"] == {"signal": text}
    assert line["user"] == "alice"


# The other texts contain a control character or a colon, which no user name can contain
@pytest.mark.parametrize("name", ["quotes", "backslash", "bidi", "not-ascii"])
def test_a_user_name_cannot_forge_a_line(site: Site, audited: Read, name: str) -> None:
    assert site.fetch("/", headers=basic(f"{EVIL[name]}:x")).code == 401
    (line,) = audited("login refused")
    assert (line["user"], line["client"]) == (EVIL[name], "127.0.0.1")


@pytest.mark.parametrize("settings", [{**HEADER, "allowed_hosts": ["host.example"]}])
def test_a_forwarded_user_name_cannot_forge_a_line(site: Site, audited: Read) -> None:
    revoke(site, **{"X-Forwarded-User": EVIL["quotes"]})
    (line,) = audited("control action")
    assert (line["user"], line["status"]) == (EVIL["quotes"].strip(), 200)


@evil
def test_a_request_path_cannot_forge_a_line(site: Site, audited: Read, text: str) -> None:
    site.fetch(f"/task/{quote(text, safe='')}", headers=ALICE)
    site.fetch(f"/task/{quote(text, safe='')}", headers=basic("alice:wrong"))
    assert len(audited("login refused")) == 1
    assert [line["reason"] for line in audited("request refused")] == [f"Unknown task '{text}'"]


@pytest.mark.parametrize("name", ["newline", "carriage-return", "ansi"])
def test_log_lines_of_flower_cannot_be_forged(site: Site, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """Flower logs names of workers and tasks unescaped."""
    caplog.set_level(logging.DEBUG)
    revoke(site, task=EVIL[name], **ALICE)
    site.fetch(f"/api/worker/shutdown/{quote(EVIL[name], safe='')}", method="POST", headers=ALICE)
    shown = [OneLineFormatter(color=False).format(record) for record in caplog.records]
    assert shown
    for line in "\n".join(shown).split("\n"):
        assert line.isprintable(), line
        assert re.match(r"\[[DIWE] |    ", line), line


# The access log


@pytest.mark.parametrize("settings", [{**SETTINGS, "access_log": True}])
def test_the_access_log_contains_every_request(site: Site, audited: Read) -> None:
    client = {"X-Forwarded-For": "203.0.113.7"}
    site.fetch("/tasks?state=FAILURE", headers={**ALICE, **client})
    site.fetch("/tasks", headers=client)
    site.fetch("/healthcheck", method="HEAD", headers=client)
    site.fetch("/static/css/flower.css", headers=client)
    lines = audited("request")
    assert [(line["user"], line["client"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("alice", "203.0.113.7", "GET", "/tasks", 200),
        ("", "203.0.113.7", "GET", "/tasks", 401),
        ("", "203.0.113.7", "HEAD", "/healthcheck", 200),
        ("", "203.0.113.7", "GET", "/static/css/flower.css", 200),
    ]
    assert all(isinstance(line["milliseconds"], float) for line in lines)


@pytest.mark.parametrize("settings", [{**SETTINGS, "access_log": True}])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_the_access_log_contains_requests_answered_before_the_access_policy(site: Site, audited: Read) -> None:
    site.fetch(PREFIX + "/metrics")
    site.fetch("/tasks", headers={"X-Forwarded-Proto": "gopher"})
    assert [line["status"] for line in audited("request")] == [307, 400]


@pytest.mark.parametrize("settings", [SETTINGS, OPEN])
def test_the_access_log_is_disabled_by_default(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for path in ("/tasks", "/nothing", "/static/nothing"):
        site.fetch(path, headers=ALICE)
    assert "request: " not in caplog.text
    assert not [record for record in caplog.records if record.name == "tornado.access"]


# OAuth codes


class RefusingProvider(Provider):
    async def _on_auth(self, user: dict[str, str]) -> None:
        raise HTTPError(403, "Access denied. Please use another account.")


class BrokenProvider(Provider):
    async def get_authenticated_user(self, redirect_uri: str, code: str) -> dict[str, str]:
        raise ConnectionError("the provider does not answer")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param({**OAUTH, "access_log": True}, 302, id="logged-in"),
        pytest.param({**OAUTH, "auth_provider": f"{__name__}.RefusingProvider"}, 403, id="refused"),
        pytest.param({**OAUTH, "auth_provider": f"{__name__}.BrokenProvider"}, 500, id="broken"),
    ],
)
def test_oauth_codes_and_states_are_not_logged(site: Site, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """The provider sends them in the query of the redirect to /login."""
    caplog.set_level(logging.DEBUG)
    jar = Jar(site)
    location = jar.get("/login").headers["Location"]
    (state,) = re.findall(r"state=([\w-]+)", location)
    assert jar.get(f"/login?code=PLANTED&state={state}").code == status
    assert jar.get("/login?code=PLANTED&state=another").code == 403
    records = [OneLineFormatter(color=False).format(record) for record in caplog.records]
    assert records
    assert "PLANTED" not in "\n".join(records)
    assert state not in "\n".join(records)
