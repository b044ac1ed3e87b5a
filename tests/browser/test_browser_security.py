"""Security headers, framing, DNS rebinding and disabled authentication in a real browser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.journey import Journey, Place
from tests.support.processes import request
from tests.support.programs import WORKER, Broker, Flower, launch
from tests.support.setups import HOST, LISTEN, PORT, SETUPS, Flowers, Setup, deployed, kept, server

BY_ID = {setup.id: setup for setup in SETUPS}
PUBLIC_HOST = "proxy_set_header X-Forwarded-Host $http_host;"
SPOOFED_USER = {"X-Forwarded-User": "alice"}

# Content-Security-Policy


@pytest.mark.parametrize("id_", ["kept", "stripped-unknown-prefix"])
def test_the_selected_theme_persists(
    id_: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    def is_shown(theme: str) -> bool:
        return browser.find("html").get_attribute("data-bs-theme") == theme

    def select(theme: str) -> None:
        browser.click("#theme-toggle")
        browser.click(f"[data-bs-theme-value={theme}]")
        browser.wait(lambda: is_shown(theme), what=f"the {theme} theme")
        browser.driver.refresh()
        browser.wait(lambda: is_shown(theme), what=f"the {theme} theme on the next page")

    with deployed(BY_ID[id_], flowers, certificate, tmp_path) as [place]:
        journey = Journey(browser, place, screenshots=tmp_path)
        journey.log_in()
        assert not journey.take("slash", journey.open_with_slash)
        # One of the two was the theme before
        assert not journey.take("dark", lambda: select("dark"))
        assert not journey.take("light", lambda: select("light"))


def test_policy_violations_are_faults_of_each_step(
    flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """The other tests rely on this to detect policy violations."""
    no_images = "add_header Content-Security-Policy \"img-src 'none'\" always;"
    setup = Setup("stricter", server(kept("/flower", HOST, no_images)), url_prefixes=("flower",))
    with deployed(setup, flowers, certificate, tmp_path) as [place]:
        journey = Journey(browser, place)
        faults = journey.faults()
        assert faults.keys() == journey.steps().keys()
        assert all(any("Content Security Policy" in fault for fault in found) for found in faults.values()), faults


# Frames


def framing(host: str) -> Setup:
    """Return a set-up of two hosts, each with a page that embeds Flower in a frame."""
    icon = "<link rel=icon href=data:,>"  # prevents a request for /favicon.ico
    frame = f"<iframe width=1300 height=900 src=http://{host}:$server_port/flower/></iframe>"
    portal = f"location = /portal {{ default_type text/html; return 200 '{icon}{frame}'; }}"
    ours = f"server_name {host}; {portal} {kept('/flower', HOST)}"
    others = f"server {{ listen {LISTEN}; server_name other.test; {portal} }}"
    return Setup("framed", server(ours) + others, url_prefixes=("flower",), host=host)


# On localhost the browser sends Sec-Fetch-Site: cross-site, elsewhere it omits the header
@pytest.mark.parametrize("host", ["localhost", "flower.test"])
@pytest.mark.parametrize(
    ("portal", "option"),
    [
        pytest.param("other.test", [f"--frame_ancestors=http://other.test:{PORT}"], id="allowed-origin"),
        pytest.param("", [], id="same-origin"),
    ],
)
def test_every_page_works_in_the_frame_of_an_allowed_ancestor(
    host: str,
    portal: str,
    option: list[str],
    flowers: Flowers,
    certificate: tuple[Path, Path],
    browser: Browser,
    tmp_path: Path,
) -> None:
    options = ["--no_auth", "--allowed_hosts=flower.test", *option]
    with deployed(framing(host), flowers, certificate, tmp_path, authenticates=False, options=options) as [place]:
        journey = Journey(browser, place, screenshots=tmp_path)
        browser.open(place.origin.replace(host, portal or host) + "/portal")
        browser.driver.switch_to.frame(browser.find("iframe"))
        browser.wait(lambda: browser.text("#workers-online") == "1", what="one worker online")
        # Discards the requests of the portal
        browser.traffic()
        assert not browser.console()
        for step in ("worker", "control", "tasks", "task", "broker", "logo"):
            assert not journey.take(step, journey.steps()[step])


@pytest.mark.parametrize(
    ("portal", "option"),
    [
        pytest.param("other.test", [], id="cross-site-by-default"),
        pytest.param("other.test", ["--frame_ancestors=self,https://other.test"], id="other-scheme"),
        pytest.param("", ["--frame_ancestors=none"], id="none-same-origin"),
    ],
)
def test_other_pages_cannot_embed_flower_in_a_frame(
    portal: str, option: list[str], flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """Stock Flower does not protect against clickjacking: mher/flower#1182."""
    host = "flower.test"
    options = ["--no_auth", f"--allowed_hosts={host}", *option]
    with deployed(framing(host), flowers, certificate, tmp_path, authenticates=False, options=options) as [place]:
        messages: list[str] = []

        def is_blocked() -> bool:
            messages.extend(message.text for message in browser.console())
            return any("frame-ancestors" in text for text in messages)

        browser.open(place.origin.replace(host, portal or host) + "/portal")
        browser.wait(is_blocked, what="the console message that the frame is blocked")
        browser.driver.switch_to.frame(browser.find("iframe"))
        assert not browser.find_all(".app-navbar")


# DNS rebinding: other.test belongs to an attacker, and resolves to Flower's address
@pytest.fixture(scope="module", params=["--no_auth", "--auth_header=X-Forwarded-User"])
def passwordless(request: pytest.FixtureRequest, flowers: Flowers) -> Flower:
    """A Flower that requires no password, without a proxy."""
    return flowers.get(authenticates=False, options=[request.param])


def fetch(browser: Browser, path: str, method: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Send a request from a script of the page, and return status and text."""
    script = """
      const [path, method, headers, done] = arguments;
      fetch(path, {method, headers}).then(async answer => done([answer.status, await answer.text()]));
    """
    status, text = browser.driver.execute_async_script(script, path, method, dict(headers))
    return status, text


@pytest.mark.parametrize(
    ("method", "path", "spoofed"),
    [
        pytest.param("GET", "/api/workers", {}, id="no-header"),
        pytest.param("GET", "/", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host-page"),
        pytest.param("GET", "/metrics", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host-metrics"),
        pytest.param("GET", "/api/workers", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host"),
        pytest.param("GET", "/api/workers", {"X-Forwarded-Host": "other.test"}, id="x-forwarded-host-own-name"),
        pytest.param("GET", "/api/workers", {"Forwarded": "for=127.0.0.1;host=localhost;proto=http"}, id="forwarded"),
        pytest.param(
            "GET",
            "/api/workers",
            {"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"},
            id="like-a-proxy",
        ),
        pytest.param(
            "GET", "/api/workers", {"X-Forwarded-Host": "localhost", "Connection": "close"}, id="with-connection"
        ),
        pytest.param(
            "GET", "/api/workers", {"X-Forwarded-Host": "localhost", "Host": "localhost"}, id="with-host"
        ),
        pytest.param(
            "POST", f"/api/worker/pool/grow/{WORKER}", {"X-Forwarded-Host": "localhost"}, id="control-action"
        ),
    ],
)  # fmt: skip
def test_dns_rebinding_is_denied(
    method: str, path: str, spoofed: dict[str, str], passwordless: Flower, browser: Browser
) -> None:
    """To the browser, these requests are same-origin."""
    headers = SPOOFED_USER | spoofed
    browser.open(f"http://other.test:{passwordless.address.port}/")
    assert [request.status for request in browser.traffic() if request.type == "Document"] == [403]
    status, text = fetch(browser, path, method, headers)
    assert status == 403
    assert "Host 'other.test' is not allowed" in text
    [sent] = [request for request in browser.traffic() if request.type == "Fetch"]
    # Scripts can set all headers but these two
    assert sent.headers["connection"] == "keep-alive"
    assert sent.headers["host"] == f"other.test:{passwordless.address.port}"
    allowed = {name.lower(): value for name, value in headers.items() if name not in ("Connection", "Host")}
    assert allowed.items() <= sent.headers.items()


def test_a_page_on_flowers_own_host_is_not_denied(passwordless: Flower, browser: Browser) -> None:
    browser.open(f"http://localhost:{passwordless.address.port}/healthcheck")
    status, text = fetch(browser, "/api/tasks", "GET", SPOOFED_USER)
    assert status == 200
    assert "server.add" in text


@pytest.mark.parametrize(
    "connection",
    [
        pytest.param("", id="nginx-default"),
        pytest.param('proxy_http_version 1.1; proxy_set_header Connection "";', id="keepalive"),
        pytest.param('proxy_http_version 1.1; proxy_set_header Connection "upgrade";', id="upgrade"),
    ],
)
def test_a_host_forwarded_by_the_proxy_needs_no_allowed_hosts(
    connection: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    servers = server(kept("/flower", HOST, PUBLIC_HOST, connection))
    setup = Setup("public-name", servers, url_prefixes=("flower",), host="flower.test")
    options = ["--no_auth"]
    with deployed(setup, flowers, certificate, tmp_path, authenticates=False, options=options) as [place]:
        assert not Journey(browser, place, screenshots=tmp_path).faults(credentials="")


# Authentication


@pytest.mark.parametrize("id_", ["no-proxy-no-prefix", "kept", "stripped-forwarded-prefix", "stripped-unknown-prefix"])
def test_every_page_works_with_authentication_disabled(
    id_: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """In stock Flower, API and buttons need FLOWER_UNAUTHENTICATED_API: mher/flower#1231."""
    options = ["--no_auth"]
    with deployed(BY_ID[id_], flowers, certificate, tmp_path, authenticates=False, options=options) as [place]:
        assert not Journey(browser, place, screenshots=tmp_path).faults(credentials="")
        browser.open(place.url + "/api/tasks")
        assert "server.add" in browser.text("body")


def test_the_generated_password_gives_control_access(worker: Broker, browser: Browser, tmp_path: Path) -> None:
    with launch("ours", worker, tmp_path, authenticates=False) as flower:
        assert request(flower.address, "/").status == 401
        [(user, password)] = re.findall(
            r"^Log in as (\S+) with the password (\S+) \(generated for this run\)$",
            (tmp_path / "flower.log").read_text(),
            re.MULTILINE,
        )
        journey = Journey(browser, Place(f"http://localhost:{flower.address.port}", ""), screenshots=tmp_path)
        journey.log_in(f"{user}:{password}")
        for step in ("slash", "worker", "control"):
            assert not journey.take(step, journey.steps()[step])
