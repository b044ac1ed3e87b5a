"""What ``flower-proxy config`` prints for proxies does what it says, run as it is but for ports, paths and names."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.support.browser import Browser
from tests.support.configurations import documents, printed
from tests.support.doctor import ask
from tests.support.examples import (
    BY_PASSWORD,
    BY_PROVIDER,
    BY_WORD,
    CASES,
    FILES,
    WITH_TLS,
    Example,
    read,
    served,
    standing,
)
from tests.support.journey import Journey
from tests.support.processes import basic, program, request
from tests.support.programs import COLLEAGUE, CREDENTIALS, USER, Broker
from tests.support.standins import HostApplication, IdentityProvider, Mirror, NamelessProvider, serving

# Who is logged in, and what acts: tabs are buttons too, but not of this class
NAMES, BUTTONS = ".app-nav-secondary .nav-link.text-break", "#main-content .btn"


def grouped(names: Iterable[str]) -> list[Any]:
    """Return these as parameters; the tests of one configuration share its servers."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@pytest.fixture(scope="module", params=grouped(CASES))
def example(
    request: pytest.FixtureRequest, worker: Broker, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    with standing(request.param, worker, files, tmp_path_factory.mktemp("example")) as example:
        yield example


def test_a_person_comes_through(example: Example, browser: Browser, tmp_path: Path) -> None:
    assert not Journey(browser, example.place, screenshots=tmp_path).faults()


@pytest.mark.parametrize("example", grouped(name for name in FILES if name != "nginx/auth_request.conf"), indirect=True)
def test_check_passes_for_every_example(example: Example) -> None:
    found = ask(f"{example.place.url}/", "--insecure")
    assert (found.exit_code, found.wrong, found.named("skipped")) == (0, [], []), found


def test_the_missing_slash_is_added_wherever_people_came_from(example: Example) -> None:
    answer = example.ask("/flower?a=b")
    assert answer.status == 308
    assert urljoin("/flower", answer.headers["Location"]) == "/flower/?a=b"


@pytest.mark.parametrize(
    "path",
    ["/flower/metrics", "/flower//metrics", "/flower/%6detrics", "/flower/x/../metrics"],
)
def test_metrics_are_closed_to_other_machines(example: Example, path: str) -> None:
    # where a proxy passes on the dots, Flower has no page of that name
    assert example.ask(path, source="127.0.0.2").status in ((403, 404) if ".." in path else (403,))


def test_what_merely_ends_like_metrics_is_not_closed(example: Example) -> None:
    assert example.ask("/flower/task/metrics", source="127.0.0.2").status == 404


def test_metrics_are_not_open_at_a_repeated_prefix(example: Example) -> None:
    answer = example.ask("/flower/flower/metrics", source="127.0.0.2")
    # sent on to where they are closed, or closed there too
    assert answer.headers.get("Location") == "/flower/metrics" or answer.status == 403


def test_metrics_are_open_to_this_machine(example: Example) -> None:
    answer = example.ask("/flower/metrics")
    assert answer.status == 200
    assert "flower_worker_online" in answer.text


def test_names_arrive_as_they_were_sent(example: Example) -> None:
    answer = example.ask("/flower/task/a%2F%2Fb%25c")
    assert answer.status == 404
    assert "a//b%c" in answer.text


@pytest.mark.parametrize("names_headers", [False, True], ids=["", "named-in-connection"])
@pytest.mark.parametrize("name", grouped(CASES))
def test_flower_is_told_by_the_proxy_and_not_by_the_client(
    name: str, names_headers: bool, files: dict[str, str], tmp_path: Path
) -> None:
    lies = {f"X-Forwarded-{about}": "elsewhere" for about in ("For", "Proto", "Host", "Port", "Prefix")}
    lies |= {"X-Script-Name": "elsewhere", "Forwarded": "host=elsewhere", "Cookie": IdentityProvider.SESSION}
    _, said = read(name)
    if "auth_header" in said:
        # Elsewhere nobody takes a user's name from there
        lies["X-Forwarded-User"] = "elsewhere"
    # keep-alive as browsers send it; by this Flower tells them from a proxy that vouches for the host. Headers that are
    # named there a proxy may take out of the request (RFC 9110, section 7.6.1), but not those it has put there itself
    # (but for the user: who takes out his own name is merely not let in)
    named = lies.keys() - {"Cookie", "X-Forwarded-User"}
    lies["Connection"] = ", ".join(named) if names_headers else "keep-alive"
    socket_path = tmp_path / "mirror.sock" if "unix_socket" in said else None
    with serving(Mirror, socket_path) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        host = f"localhost:{public.port}"
        answer = request(public, "/flower/", headers={"Host": host, **basic(CREDENTIALS), **lies})
    told = json.loads(answer.text)
    assert "elsewhere" not in answer.text
    assert told["host"] == told["x-forwarded-host"] == host
    assert told["x-forwarded-for"] == "127.0.0.1"
    assert told["x-forwarded-proto"] == ("https" if public.tls else "http")
    assert told["x-forwarded-prefix"] == "/flower"
    assert "keep-alive" not in told.get("connection", "").lower()
    user = IdentityProvider.USER if name in BY_PROVIDER else USER if name in BY_WORD else None
    assert told.get("x-forwarded-user") == user
    # the credentials are for Flower, unless somebody else has let people in
    assert ("authorization" in told) == (user is None)


@pytest.mark.parametrize("name", [*BY_PROVIDER, *BY_WORD])
def test_where_flower_asks_nobody_a_strangers_name_does_not_lead_to_it(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    """As when a page of theirs lets its own name lead to our address."""
    headers = {"Host": "stranger.example", "Cookie": IdentityProvider.SESSION, **basic(CREDENTIALS)}
    with serving(Mirror) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        try:
            text = request(public, "/flower/", headers=headers).text
        except http.client.RemoteDisconnected:
            text = ""
    assert "x-forwarded-host" not in text


def test_idle_connections_are_closed_before_flower_closes_them(tmp_path: Path) -> None:
    """It does so after 75 seconds; a request that comes at that moment is lost, and a POST is not sent again."""
    (traefik,) = documents(printed("traefik --url_prefix=flower"))
    assert traefik["http"]["serversTransports"]["flower"]["forwardingTimeouts"] == {"idleConnTimeout": "60s"}
    (tmp_path / "Caddyfile").write_text(printed("caddy --url_prefix=flower"))
    adapt = [program("caddy"), "adapt", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    adapted = subprocess.run(adapt, capture_output=True, text=True, check=True).stdout
    assert re.findall(r'"idle_timeout":(\d+)', adapted) == [str(60 * 10**9)]


@pytest.mark.parametrize("wish", ["close", "X-Forwarded-For, Close"])
@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
def test_a_connection_that_the_client_wants_closed_is_closed(
    target: str, wish: str, files: dict[str, str], tmp_path: Path
) -> None:
    """Apache kept it open for KeepAliveTimeout, and did not say Connection: close."""
    with (
        serving(Mirror) as mirror,
        served(f"{target} --url_prefix=flower", mirror, files, tmp_path / "proxy") as (public, _),
        contextlib.closing(http.client.HTTPConnection("localhost", public.port)) as client,
    ):
        client.sock = public.connect()
        for headers, stays in (({}, True), ({"Connection": wish}, False)):
            client.request("GET", "/flower/", headers=headers)
            with client.getresponse() as answer:
                told = json.loads(answer.read())
            assert told["x-forwarded-for"] == "127.0.0.1"
            assert (client.sock is not None) is stays


@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
@pytest.mark.parametrize("words", ["", "--strip"], ids=["kept", "stripped"])
def test_no_sign_in_a_prefix_means_more_than_itself(
    target: str, words: str, files: dict[str, str], tmp_path: Path
) -> None:
    name = f"{target} --url_prefix=/a.b/flower-~1+@=_ {words}"
    with serving(Mirror) as mirror, served(name, mirror, files, tmp_path / "proxy") as (public, _):
        host = {"Host": f"localhost:{public.port}"}
        told = json.loads(request(public, "/a.b/flower-~1+@=_/task/a%2Fb?c=d", headers=host).text)
        assert request(public, "/a.b/flower-~1+@=_/metrics", headers=host, source="127.0.0.2").status == 403
        for other in ("/aXb/flower-~1+@=_/", "/a.b/flower-~11@=_/", "/a.b/flower-~1+@=_x", "/a.b/"):
            assert "x-forwarded-host" not in request(public, other, headers=host).text
    assert told["path"] == ("" if words else "/a.b/flower-~1+@=_") + "/task/a%2Fb?c=d"
    assert told["x-forwarded-prefix"] == "/a.b/flower-~1+@=_"


@pytest.mark.parametrize("target", ["nginx", "apache", "caddy", "haproxy"])
def test_at_the_root_there_is_no_prefix(target: str, files: dict[str, str], tmp_path: Path) -> None:
    lies = {"X-Forwarded-Prefix": "/elsewhere", "X-Script-Name": "/elsewhere"}
    with serving(Mirror) as mirror, served(target, mirror, files, tmp_path / "proxy") as (public, _):
        # the same name in each, since Caddy looks for a site by it
        host = {"Host": f"localhost:{public.port}"}
        told = json.loads(request(public, "/task/a%2Fb", headers={**host, **lies}).text)
        refused = request(public, "/metrics", headers=host, source="127.0.0.2")
    assert told["path"] == "/task/a%2Fb"
    assert "x-forwarded-prefix" not in told
    assert "x-script-name" not in told
    assert refused.status == 403


def test_scripts_are_compressed(example: Example) -> None:
    answer = example.ask("/flower/static/js/flower.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize("example", grouped(WITH_TLS), indirect=True)
def test_plain_http_is_sent_to_tls(example: Example) -> None:
    answer = request(example.plain, "/flower/?a=b")
    assert (answer.status, answer.headers["Location"]) == (308, "https://localhost/flower/?a=b")


@pytest.mark.parametrize("example", grouped(BY_PROVIDER), indirect=True)
def test_people_who_are_not_signed_in_are_sent_to_the_identity_provider(example: Example) -> None:
    answer = request(example.public, "/flower/tasks", headers=basic(CREDENTIALS))
    assert (answer.status, answer.headers["Location"]) == (302, "/oauth2/start?rd=/flower/tasks")


@pytest.mark.parametrize("example", grouped(BY_PROVIDER), indirect=True)
def test_the_page_names_whom_the_provider_knows(example: Example, browser: Browser) -> None:
    browser.open(example.place.url)
    browser.wait(lambda: browser.text(NAMES), what="a name")
    assert browser.text(NAMES).split() == [IdentityProvider.USER]


@pytest.mark.parametrize("example", grouped(BY_PROVIDER), indirect=True)
def test_nobody_is_let_in_under_a_name_of_their_own(example: Example) -> None:
    page = example.ask("/flower/", headers={"X-Forwarded-User": "mallory"}).text
    assert IdentityProvider.USER in page
    assert "mallory" not in page


@pytest.mark.parametrize("name", BY_PROVIDER)
def test_a_provider_that_names_nobody_does_not_leave_the_name_to_the_client(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    """As with oauth2-proxy without --set-xauthrequest."""
    known = {"Cookie": NamelessProvider.SESSION, "X-Forwarded-User": "mallory"}
    with (
        serving(Mirror) as mirror,
        served(name, mirror, files, tmp_path / "proxy", provider=NamelessProvider) as (public, _),
    ):
        told = json.loads(request(public, "/flower/", headers=known).text)
    assert not told.get("x-forwarded-user")


@pytest.mark.parametrize("example", grouped(BY_PASSWORD), indirect=True)
def test_one_login_is_for_nginx_and_flower(example: Example, browser: Browser) -> None:
    Journey(browser, example.place).log_in()
    browser.open(example.place.url)
    browser.wait(lambda: browser.text(NAMES), what="a name")
    assert browser.text(NAMES).split() == [USER]
    assert {request.status for request in browser.traffic() if request.type == "Document"} <= {200, 308}


@pytest.mark.parametrize("example", grouped(BY_PASSWORD), indirect=True)
@pytest.mark.parametrize("credentials", ["demo:wrong", "demo:", "nobody:secret", ""])
def test_nobody_comes_past_nginx_without_a_password(example: Example, credentials: str) -> None:
    answer = request(example.public, "/flower/api/workers", headers=basic(credentials) if credentials else {})
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="flower"')
    assert answer.headers["Server"].startswith(("nginx", "Apache"))


@pytest.mark.parametrize(
    ("name", "viewer", "credentials"),
    [
        pytest.param("nginx/auth_request.conf", IdentityProvider.USER, CREDENTIALS, id="known-to-the-provider"),
        pytest.param("nginx/auth_basic.conf", "bob", COLLEAGUE, id="by-password"),
    ],
)
def test_a_viewer_sees_no_button_and_can_press_none(
    name: str, viewer: str, credentials: str, worker: Broker, files: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    with standing(name, worker, files, tmp_path, [f"--viewers={viewer}"]) as example:
        journey = Journey(browser, example.place)
        journey.log_in(credentials)
        journey.open_with_slash()
        journey.open_worker()
        assert browser.text(NAMES) == f"{viewer} (read-only)"
        assert not browser.find_all(BUTTONS)
        worker_name = browser.text("#workername")
        answer = example.ask(f"/flower/api/worker/pool/grow/{worker_name}", method="POST", headers=basic(credentials))
        assert answer.status == 403
        assert "read-only access" in answer.text


@pytest.mark.parametrize("example", grouped([*BY_PROVIDER, *BY_PASSWORD, *BY_WORD]), indirect=True)
def test_others_see_the_buttons(example: Example, browser: Browser) -> None:
    journey = Journey(browser, example.place)
    journey.log_in()
    journey.open_with_slash()
    journey.open_worker()
    assert browser.find_all(BUTTONS)


@pytest.mark.parametrize("name", BY_WORD)
def test_where_proxy_and_flower_have_other_users_flower_takes_the_word_of_the_proxy(
    name: str, worker: Broker, files: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    """P36."""
    with standing(name, worker, files, tmp_path, ["--basic_auth=other:password"]) as example:
        assert not Journey(browser, example.place, screenshots=tmp_path).faults()
        assert browser.text(NAMES) == USER
        page = example.ask("/flower/", headers={"X-Forwarded-User": "mallory"}).text
        assert "mallory" not in page


@pytest.mark.parametrize("example", grouped(["nginx/host-application.conf"]), indirect=True)
def test_the_host_application_keeps_its_page_and_its_cookie(example: Example, browser: Browser) -> None:
    browser.open(example.place.origin)
    assert browser.text("body") == HostApplication.PAGE
    assert not Journey(browser, example.place).faults()
    name, value = HostApplication.COOKIE
    cookie = browser.driver.get_cookie(name)
    assert cookie is not None
    assert cookie["value"] == value
