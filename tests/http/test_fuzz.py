"""Fuzzing of requests: no 500, no links to foreign hosts, no content without credentials."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import flower.urls
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from flower_proxy.proxy.headers import HEADERS
from tests.http.conftest import PREFIX, Site
from tests.http.test_access_policy import METHODS, OPEN_ROUTES
from tests.http.test_access_policy import example as path_of
from tests.http.test_pages import LINK

EVIL = "evil.example"
LINKED = {"flower.readthedocs.io", "github.com"}
SENT = ["Host", *HEADERS, "Origin", "Referer", "Sec-Fetch-Site", "X-XSRFToken", "Cookie", "Authorization"]
PIECES = [
    EVIL,
    f"//{EVIL}",
    f"/\\{EVIL}",
    f"https://{EVIL}/",
    f"/{EVIL}",
    f"host={EVIL}",
    "/",
    "//",
    "..",
    "%2F",
    "%5C",
    "%0d%0a",
    "%00",
    "%ff",
    "%",
    "?next=",
    "&",
    ";",
    ",",
    '"',
    "flower",
    "login",
    "tasks",
    "static",
    "worker",
    "a",
    ":80",
    "[::1]",
    "[",
    "http://[",
    "https",
    "proto=https",
    "for=",
    "=",
    "\xe9",
]
text = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "HEAD", "POST"]),
        "path": text,
        "headers": st.dictionaries(st.sampled_from(SENT), text, max_size=4),
    }
)


@pytest.mark.parametrize("kind", ["kept", "unforwarded"], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_no_request_gets_a_500_or_links_to_foreign_hosts(site: Site, request: dict[str, Any]) -> None:
    path = "/" + request["path"].encode("ascii", "ignore").decode().lstrip("/")
    response = site.fetch(path, method=request["method"], headers=request["headers"])
    assert response.code < 500, (response.code, response.body[:500])
    shown_at = f"http://host.example/outer{path}"
    html = response.body.decode()
    targets = [*LINK.findall(html), *re.findall(r'value="([^"]*)" id="url_prefix"', html)]
    targets += response.headers.get_list("Location")
    assert {urlsplit(urljoin(shown_at, target)).netloc for target in targets} <= {"host.example", *LINKED}
    assert EVIL not in str(response.headers.get_list("Set-Cookie"))


# Without credentials

WORKER, TASK = "planted@host", "planted-task"
Lines = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """A response.

    :ivar status: 0 if the connection was closed instead.
    :ivar head: the raw status line and headers.
    """

    status: int
    head: str
    body: bytes


class Wire:
    """A persistent connection that sends requests without validating them, unlike an HTTP client."""

    def __init__(self, loop: IOLoop, port: int) -> None:
        self._loop, self._port = loop, port
        self._writer: asyncio.StreamWriter | None = None

    def ask(self, method: str, target: str, headers: Lines) -> Answer:
        answer: Answer = self._loop.run_sync(lambda: self._ask(method, target, headers))
        return answer

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    async def _ask(self, method: str, target: str, headers: Lines) -> Answer:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Content-Length: 0"]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return Answer(0, "", b"")
        status = int(head.split(" ", 2)[1])
        length = re.search(r"\r\nContent-Length: (\d+)\r\n", head)
        has_body = length and method != "HEAD" and status not in (204, 304)
        body = await self._reader.readexactly(int(length[1])) if length and has_body else b""
        if "\r\nConnection: close\r\n" in head or length is None:
            self.close()
        return Answer(status, head, body)


@pytest.fixture
def wire(http_server: HTTPServer, http_port: int, io_loop: IOLoop) -> Iterator[Wire]:
    wire = Wire(io_loop, http_port)
    yield wire
    wire.close()


def encoded(credentials: str | bytes) -> str:
    return base64.b64encode(credentials.encode() if isinstance(credentials, str) else credentials).decode()


def routes() -> list[str]:
    """Return an example path for each route of Flower and flower-proxy."""
    patterns = [getattr(rule, "regex", None) or rule[0] for rule in flower.urls.handlers]
    paths = [path_of(getattr(pattern, "pattern", pattern)) for pattern in patterns]
    return [path.replace("some", TASK) for path in [*paths, "/ready"] if path != ".*"]


# Credentials similar to the valid ones
NEAR = [
    "demo",
    "demo:",
    ":secret",
    ":",
    "",
    "demo:secre",
    "demo:secret ",
    " demo:secret",
    "Demo:secret",
    "demo:secret\n",
]
NEAR += [
    "demo:\xe9",
    "\xe9:secret",
    "demo:secret\0",
    "prometheus:scrape",
    "prometheus:secret",
    "demo:scrape",
    "a:b,demo",
]
SCHEMES = [
    "Basic ",
    "basic ",
    "BASIC  ",
    "Basic\t",
    "Bearer ",
    "Digest ",
    "Negotiate ",
    "Basic",
    "",
    "Basic =",
    "Basic,",
]
COOKIES = ["user", "_xsrf", "flower_user", "flower_user_00000000", "flower_browser_5e2a1f00", "flower_next_5e2a1f00"]
WELL_FORMED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "host.example",
    "X-Forwarded-Port": "8443",
    "X-Forwarded-Prefix": "/tasks",
    "X-Script-Name": PREFIX,
    "Forwarded": "for=203.0.113.9;proto=https;host=host.example",
}
SIGNED = "2|1:0|10:1795207964|4:user|20:bWVAaG9zdC5leGFtcGxl|" + "0" * 64
# Line ends would start another header
latin = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)
visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
sites = st.sampled_from(["cross-site", "same-site", "same-origin", "none", "Cross-Site", "", "x"])
modes = st.sampled_from(["navigate", "cors", "no-cors", "same-origin", "websocket", ""])
origins = st.sampled_from(["https://dashboard.example", "null", f"https://{EVIL}", "http://127.0.0.1", ""])
hosts = st.sampled_from(["127.0.0.1", "localhost", "[::1]", EVIL, f"{EVIL}:80", "", "a b", "[", "localhost, x", "\xe9"])
addresses = st.sampled_from(["127.0.0.1", "203.0.113.9", "::1", "unix", "garbage", "127.0.0.1, 203.0.113.9", "0.0.0.0"])
values: dict[str, st.SearchStrategy[str]] = {
    "Authorization": st.one_of(
        st.builds(str.__add__, st.sampled_from(SCHEMES), st.one_of(st.sampled_from(NEAR).map(encoded), latin)),
        st.builds(lambda data: "Basic " + encoded(data), st.binary(max_size=12)),
    ),
    "Cookie": st.one_of(
        latin, st.builds("{}={}".format, st.sampled_from(COOKIES), st.one_of(st.just(SIGNED), st.just(""), latin))
    ),
    "Sec-Fetch-Site": sites,
    "Sec-Fetch-Mode": modes,
    "Origin": origins,
    "Host": hosts,
    "X-Forwarded-For": addresses,
    "X-Forwarded-User": st.one_of(st.sampled_from(["demo", "admin", ""]), latin),
    "Access-Control-Request-Method": st.sampled_from(["GET", "POST", "HEAD", "get", ""]),
    "Connection": st.sampled_from(["keep-alive", "close", "upgrade", "X-Forwarded-User"]),
    "X-XSRFToken": st.one_of(st.just(SIGNED), visible),
    "X-HTTP-Method-Override": st.sampled_from(["GET", "POST"]),
    "Content-Type": st.sampled_from(["multipart/form-data", "application/json", "x"]),
    "Range": st.sampled_from(["bytes=0-1", "bytes=-1", "bytes=9-", "x"]),
    "If-None-Match": st.just("*"),
    "Referer": st.one_of(origins, text, latin),
    **{name: st.one_of(st.just(""), st.just(good), st.just(good), text) for name, good in WELL_FORMED.items()},
}
lines = st.lists(
    st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name])), max_size=6
)
paths = st.one_of(
    st.sampled_from(routes()),
    st.builds(
        str.__add__,
        st.sampled_from(["/", "//", "/./", "/static/../", "/%2e%2e/", PREFIX, f"{PREFIX}/", f"{PREFIX}{PREFIX}", ""]),
        st.sampled_from(routes()),
    ),
    st.builds(
        str.__add__,
        st.sampled_from(routes()),
        st.sampled_from(["/", "?", "?json=1", "%00", "%ff", ";x", "%2f", ".css", "/healthcheck"]),
    ),
    st.builds("/{}".format, visible),
    text,
    visible,
)
methods = st.sampled_from([*METHODS, *METHODS, "GET", "GET", "POST", "PROPFIND", "CONNECT", "get", "X"])
PUBLIC_PATHS = re.compile(r"/(?:robots\.txt|favicon\.ico|static/[^?]+|healthcheck|ready)(?:[?#].*)?")


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the errors logged since the last call."""
    caplog.set_level(logging.ERROR)

    def read() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return read


def test_public_paths_match_the_public_routes() -> None:
    assert all(PUBLIC_PATHS.fullmatch(path_of(pattern)) for pattern in OPEN_ROUTES)
    assert {path for path in routes() if PUBLIC_PATHS.fullmatch(path)} == {f"/static/{TASK}", "/healthcheck", "/ready"}


WITH_AUTH = {"basic_auth": ["demo:secret"], "metrics_auth": "prometheus:SCRAPE"}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        pytest.param({**WITH_AUTH, "cors_origins": ["https://dashboard.example"]}, "kept", id="kept"),
        pytest.param(WITH_AUTH, "unforwarded", id="unforwarded"),
        pytest.param(
            {**WITH_AUTH, "auth_header": "X-Forwarded-User", "trusted_proxies": ["192.0.2.1"]},
            "kept",
            id="untrusted-peer",
        ),
    ],
    indirect=["kind"],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=methods, path=paths, lines=lines)
@example("GET", "/tasks", [("Authorization", "Basic =")])
@example("GET", "/login", [])
def test_requests_without_credentials_are_denied(
    wire: Wire,
    event: Callable[..., None],
    errors: Callable[[], list[str]],
    kind: str,
    method: str,
    path: str,
    lines: Lines,
) -> None:
    event("worker-online", hostname=WORKER)
    event("task-received", hostname=WORKER, uuid=TASK, name="add")
    prefix = PREFIX if kind == "kept" else ""
    host = [] if any(name == "Host" for name, _ in lines) else [("Host", "127.0.0.1")]
    answer = wire.ask(method, prefix + path, [*host, *lines])
    assert errors() == []
    # No broker is connected, so /ready answers 503
    assert answer.status < 500 or (answer.status == 503 and "/ready" in path)
    if 200 <= answer.status < 300:
        is_preflight = method == "OPTIONS" and ("Origin", "https://dashboard.example") in lines
        assert (is_preflight and answer.status == 204) or PUBLIC_PATHS.search(path)
    shown = answer.head + answer.body.decode("latin-1")
    assert "flower-token" not in shown
    assert WORKER not in shown
    assert "server:" not in answer.head.lower()


# With credentials

ARGUMENTS = (
    "draw start length search[value] order[0][column] columns[0][data] order[0][dir] limit offset sort_by search "
)
ARGUMENTS += (
    "workername taskname state received_start received_end refresh json n min max queue terminate signal timeout"
)
ODD = [
    "1",
    "0",
    "-1",
    "true",
    "x",
    "",
    "%ff",
    "%00",
    "1e9",
    "9" * 30,
    "name",
    "2020-01-01",
    "a:b",
    '"',
    "state:FAILURE",
]
queries = st.lists(
    st.builds("{}={}".format, st.sampled_from(ARGUMENTS.split()), st.one_of(st.sampled_from(ODD), visible)), max_size=6
).map("&".join)
NO_QUEUES = "Unable to get queues: 'HTTP 503"
# The worker page waits for an inspection
without_inspection = [path for path in routes() if not path.startswith("/worker/")]


@pytest.mark.parametrize("settings", [WITH_AUTH])
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(METHODS), path=st.sampled_from(without_inspection), query=queries)
# Stock Flower answers 500
@example("GET", "/api/tasks", "sort_by=")
def test_no_authenticated_request_gets_a_500(
    wire: Wire, event: Callable[..., None], errors: Callable[[], list[str]], method: str, path: str, query: str
) -> None:
    event("worker-online", hostname=WORKER)
    event("task-received", hostname=WORKER, uuid=TASK, name="add")
    authorization = ("Authorization", "Basic " + encoded("demo:secret"))
    answer = wire.ask(method, f"{PREFIX}{path}?{query}", [("Host", "127.0.0.1"), authorization])
    # No broker is connected, and Flower also answers 503 without a result backend
    assert [error for error in errors() if path != "/broker" or NO_QUEUES not in error] == []
    may_be_503 = TASK in path or path in ("/ready", "/api/queues/length")
    assert answer.status in (200, 204, 302, 400, 404, 405) or (answer.status == 503 and may_be_503)
