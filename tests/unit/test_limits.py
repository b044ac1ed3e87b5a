"""Limits of the request head, and linear time of parsers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from tornado.httputil import HTTPHeaders

from flower_proxy.auth.csrf import refusal, site_refusal
from flower_proxy.auth.hosts import host_refusal
from flower_proxy.proxy.addresses import UNIX, TrustedProxies, parse_address
from flower_proxy.proxy.headers import HEADERS, ForwardedHeaderError, read_forwarded
from flower_proxy.proxy.location import Locator
from flower_proxy.proxy.paths import parse_next
from flower_proxy.web.compression import accepted_codings
from flower_proxy.web.limits import MAX_COOKIE, MAX_HEADER_VALUE, oversized_head
from tests.bench.cost import tasks_data

LONG = 300_000


@pytest.mark.parametrize(
    ("target", "headers", "too_long"),
    [
        pytest.param("/", [], "", id="nothing"),
        pytest.param("/" + "a" * (MAX_HEADER_VALUE - 1), [], "", id="path"),
        pytest.param("/" + "a" * MAX_HEADER_VALUE, [], "The path has 4097 characters", id="long-path"),
        pytest.param("/?" + "a" * MAX_HEADER_VALUE, [], "", id="query"),
        pytest.param("/?" + "a" * (MAX_HEADER_VALUE + 1), [], "The query has 4097 characters", id="long-query"),
        pytest.param(f"/tasks/datatable?{tasks_data('a').body}", [], "", id="all-columns-of-the-tasks-table"),
        pytest.param("/", [("Accept", "a" * MAX_HEADER_VALUE)], "", id="header"),
        pytest.param("/", [("accept", "a" * 4097)], "Accept has 4097 characters", id="long-header"),
        pytest.param("/", [("Accept", "a" * 2048), ("Accept", "a" * 2048)], "Accept has 4097", id="two-lines"),
        pytest.param("/", [("Cookie", "a" * MAX_COOKIE)], "", id="cookies-of-other-applications"),
        pytest.param("/", [("Cookie", "a" * (MAX_COOKIE + 1))], "Cookie has 16385", id="long-cookie"),
        pytest.param("/", [("X-Amzn-Oidc-Data", "a" * 30_000)], "", id="header-that-is-not-parsed"),
        pytest.param("/", [("Authorization", "a" * 30_000)], "", id="authorization-gets-401"),
        *(pytest.param("/", [(name, "a" * 4097)], f"{name} has 4097 characters", id=name) for name in HEADERS),
    ],
)
def test_the_message_names_the_oversized_part(target: str, headers: list[tuple[str, str]], too_long: str) -> None:
    sent = HTTPHeaders()
    for name, value in headers:
        sent.add(name, value)
    problem = oversized_head(target, sent)
    assert (problem or "").startswith(too_long)
    assert bool(problem) is bool(too_long)


def located(path: str) -> object:
    locator = Locator(mount="/f", trusted=TrustedProxies([UNIX]), is_page=lambda path: path == "/tasks")
    return locator.locate(peer=UNIX, scheme="http", host="a", path=path, headers=HTTPHeaders())


def forwarded(name: str) -> Callable[[str], object]:
    return lambda value: read_forwarded(HTTPHeaders({name: value}))


def browser(name: str) -> Callable[[str], object]:
    location = Locator(mount="", trusted=TrustedProxies([]), is_page=bool).locate(
        peer="192.0.2.1", scheme="http", host="a", path="/", headers=HTTPHeaders()
    )

    def ask(value: str) -> None:
        headers = HTTPHeaders({name: value})
        site_refusal(headers, reads=True, cors_origins=())
        refusal(headers, location, lambda: False)
        host_refusal(headers, location, ["a"])

    return ask


# Pieces that make a careless regular expression backtrack
REPEATED = [
    " ",
    "\t",
    "!",
    ",",
    ";",
    "=",
    ":",
    ".",
    "/",
    "%",
    '"',
    "\\",
    "a",
    "1",
    "a=",
    "a=1;",
    '"\\',
    "/f",
    ":1",
    "1,",
]
PARSERS: dict[str, Callable[[str], object]] = {
    **{name: forwarded(name) for name in HEADERS},
    **{name: browser(name) for name in ("Host", "Origin", "Referer", "Connection", "Sec-Fetch-Site")},
    "Accept-Encoding": accepted_codings,
    "path": lambda text: located("/" + text),
    "next": parse_next,
    "address": parse_address,
}


@pytest.mark.parametrize("parser", PARSERS)
def test_no_parser_takes_quadratic_time(parser: str) -> None:
    """A quadratic parser would take hours; `python -m tests.bench.clients` prints the growth of the time."""
    for piece in REPEATED:
        for start in ("", "a=1;", "/f"):
            text = start + piece * (LONG // len(piece)) + "!"
            with contextlib.suppress(ForwardedHeaderError):
                PARSERS[parser](text)
