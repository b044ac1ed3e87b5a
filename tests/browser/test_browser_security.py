"""What a browser makes of our headers, and what a stranger's page can make of a browser, with a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.journey import Journey, Place
from tests.support.processes import request
from tests.support.programs import WORKER, Broker, Flower, launch
from tests.support.setups import HOST, LISTEN, PORT, SETUPS, Setup, kept, server, standing

BY_ID = {setup.id: setup for setup in SETUPS}
PUBLIC_HOST = "proxy_set_header X-Forwarded-Host $http_host;"
# The user whom a stranger's page would like to be
USER = {"X-Forwarded-User": "alice"}

# The content security policy


@pytest.mark.parametrize("id_", ["kept", "stripped-told-nothing"])
def test_the_theme_can_be_chosen_and_stays(
    id_: str, worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    def shows(theme: str) -> bool:
        return browser.find("html").get_attribute("data-bs-theme") == theme

    def choose(theme: str) -> None:
        browser.click("#theme-toggle")
        browser.click(f"[data-bs-theme-value={theme}]")
        browser.wait(lambda: shows(theme), what=f"the {theme} theme")
        browser.driver.refresh()
        browser.wait(lambda: shows(theme), what=f"the {theme} theme on the next page")

    with standing(BY_ID[id_], "ours", worker, certificate, tmp_path) as [place]:
        journey = Journey(browser, place, screenshots=tmp_path)
        journey.log_in()
        assert not journey.take("slash", journey.open_with_slash)
        # both, because one of them is what it was before
        assert not journey.take("dark", lambda: choose("dark"))
        assert not journey.take("light", lambda: choose("light"))


def test_a_page_that_does_not_keep_to_its_policy_does_not_go_unnoticed(
    worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """A test of the other tests: they say that nothing was against the policy."""
    no_images = "add_header Content-Security-Policy \"img-src 'none'\" always;"
    setup = Setup("stricter", server(kept("/flower", HOST, no_images)), told=("flower",))
    with standing(setup, "ours", worker, certificate, tmp_path) as [place]:
        journey = Journey(browser, place)
        faults = journey.faults()
        assert faults.keys() == journey.steps().keys()
        assert all(any("Content Security Policy" in fault for fault in found) for found in faults.values()), faults


# Frames


def framing(host: str) -> Setup:
    """Two hosts, each with a page that shows Flower in a frame."""
    icon = "<link rel=icon href=data:,>"  # so that the browser does not look for one
    frame = f"<iframe width=1300 height=900 src=http://{host}:$server_port/flower/></iframe>"
    portal = f"location = /portal {{ default_type text/html; return 200 '{icon}{frame}'; }}"
    ours = f"server_name {host}; {portal} {kept('/flower', HOST)}"
    others = f"server {{ listen {LISTEN}; server_name other.test; {portal} }}"
    return Setup("framed", server(ours) + others, told=("flower",), host=host)


# On localhost the browser says that another site is asking, elsewhere it says nothing
@pytest.mark.parametrize("host", ["localhost", "flower.test"])
@pytest.mark.parametrize(
    ("portal", "option"),
    [
        pytest.param("other.test", [f"--frame_ancestors=http://other.test:{PORT}"], id="portal-that-was-named"),
        pytest.param("", [], id="page-of-the-same-host"),
    ],
)
def test_in_the_frame_of_a_page_that_may_show_it_flower_works(
    host: str,
    portal: str,
    option: list[str],
    worker: Broker,
    certificate: tuple[Path, Path],
    browser: Browser,
    tmp_path: Path,
) -> None:
    options = ["--no_auth", "--allowed_hosts=flower.test", *option]
    with standing(framing(host), "ours", worker, certificate, tmp_path, authenticates=False, options=options) as [
        place
    ]:
        journey = Journey(browser, place, screenshots=tmp_path)
        browser.open(place.origin.replace(host, portal or host) + "/portal")
        browser.driver.switch_to.frame(browser.find("iframe"))
        browser.wait(lambda: browser.text("#workers-online") == "1", what="one worker online")
        # what the portal itself asked for
        browser.traffic()
        assert not browser.console()
        for step in ("worker", "control", "tasks", "task", "broker", "logo"):
            assert not journey.take(step, journey.steps()[step])


@pytest.mark.parametrize(
    ("portal", "option"),
    [
        pytest.param("other.test", [], id="by-default-another-site"),
        pytest.param("other.test", ["--frame_ancestors=self,https://other.test"], id="other-scheme"),
        pytest.param("", ["--frame_ancestors=none"], id="none-not-even-ourselves"),
    ],
)
def test_in_the_frame_of_any_other_page_flower_is_not_shown(
    portal: str, option: list[str], worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """P23. Stock Flower lets every site show its buttons below something else."""
    host = "flower.test"
    options = ["--no_auth", f"--allowed_hosts={host}", *option]
    with standing(framing(host), "ours", worker, certificate, tmp_path, authenticates=False, options=options) as [
        place
    ]:
        said: list[str] = []

        def is_refused() -> bool:
            said.extend(message.text for message in browser.console())
            return any("frame-ancestors" in text for text in said)

        browser.open(place.origin.replace(host, portal or host) + "/portal")
        browser.wait(is_refused, what="that the browser refuses to show it")
        browser.driver.switch_to.frame(browser.find("iframe"))
        assert not browser.find_all(".app-navbar")


# DNS rebinding: other.test is a stranger's, and resolves to our address


@pytest.fixture(scope="module", params=["--no_auth", "--auth_header=X-Forwarded-User"])
def unasked(
    request: pytest.FixtureRequest, worker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    """A Flower that shows no password to a browser, and no proxy in front of it."""
    folder = tmp_path_factory.mktemp("unasked")
    with launch("ours", worker, folder, authenticates=False, options=[request.param]) as flower:
        flower.watch_tasks(worker)
        yield flower


def fetch(browser: Browser, path: str, method: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Let a script of the page ask, and return status and text."""
    script = """
      const [path, method, headers, done] = arguments;
      fetch(path, {method, headers}).then(async answer => done([answer.status, await answer.text()]));
    """
    status, text = browser.driver.execute_async_script(script, path, method, dict(headers))
    return status, text


@pytest.mark.parametrize(
    ("method", "path", "forged"),
    [
        pytest.param("GET", "/api/workers", {}, id="nothing"),
        pytest.param("GET", "/", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host-page"),
        pytest.param("GET", "/metrics", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host-metrics"),
        pytest.param("GET", "/api/workers", {"X-Forwarded-Host": "localhost"}, id="x-forwarded-host"),
        pytest.param("GET", "/api/workers", {"X-Forwarded-Host": "other.test"}, id="x-forwarded-host-its-own"),
        pytest.param("GET", "/api/workers", {"Forwarded": "for=127.0.0.1;host=localhost;proto=http"}, id="forwarded"),
        pytest.param(
            "GET",
            "/api/workers",
            {"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"},
            id="like-a-proxy",
        ),
        pytest.param(
            "GET", "/api/workers", {"X-Forwarded-Host": "localhost", "Connection": "close"}, id="connection-too"
        ),
        pytest.param(
            "GET", "/api/workers", {"X-Forwarded-Host": "localhost", "Host": "localhost"}, id="host-too"
        ),
        pytest.param(
            "POST", f"/api/worker/pool/grow/{WORKER}", {"X-Forwarded-Host": "localhost"}, id="control-action"
        ),
    ],
)  # fmt: skip
def test_a_strangers_page_that_resolves_its_name_to_our_address_gets_nothing(
    method: str, path: str, forged: dict[str, str], unasked: Flower, browser: Browser
) -> None:
    """The browser takes us for the stranger's own server, so that its page can read what it asks for."""
    browser.open(f"http://other.test:{unasked.address.port}/")
    assert [request.status for request in browser.traffic() if request.type == "Document"] == [403]
    status, text = fetch(browser, path, method, USER | forged)
    assert status == 403
    assert "the host 'other.test' is not known" in text
    [sent] = [request for request in browser.traffic() if request.type == "Fetch"]
    # It did ask as the stranger wanted, but for what browsers do not let scripts change
    assert sent.headers["connection"] == "keep-alive"
    assert sent.headers["host"] == f"other.test:{unasked.address.port}"
    own = {name.lower(): value for name, value in (USER | forged).items() if name not in ("Connection", "Host")}
    assert own.items() <= sent.headers.items()


def test_a_page_at_our_own_address_gets_what_the_stranger_does_not(unasked: Flower, browser: Browser) -> None:
    browser.open(f"http://localhost:{unasked.address.port}/healthcheck")
    status, text = fetch(browser, "/api/workers", "GET", USER)
    assert status == 200
    assert WORKER in text


@pytest.mark.parametrize(
    "connection",
    [
        pytest.param("", id="as-nginx-does-by-itself"),
        pytest.param('proxy_http_version 1.1; proxy_set_header Connection "";', id="kept-alive"),
        pytest.param('proxy_http_version 1.1; proxy_set_header Connection "upgrade";', id="as-in-blogs"),
    ],
)
def test_the_public_name_that_a_proxy_tells_need_not_be_told_again(
    connection: str, worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    servers = server(kept("/flower", HOST, PUBLIC_HOST, connection))
    setup = Setup("public-name", servers, told=("flower",), host="flower.test")
    options = ["--no_auth"]
    with standing(setup, "ours", worker, certificate, tmp_path, authenticates=False, options=options) as [place]:
        assert not Journey(browser, place, screenshots=tmp_path).faults(credentials="")


# Ways in


@pytest.mark.parametrize("id_", ["no-proxy-no-prefix", "kept", "stripped-told-by-header", "stripped-told-nothing"])
def test_where_nobody_is_asked_everything_works(
    id_: str, worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """P8. In stock Flower neither the API nor a button works without FLOWER_UNAUTHENTICATED_API."""
    options = ["--no_auth"]
    with standing(BY_ID[id_], "ours", worker, certificate, tmp_path, authenticates=False, options=options) as [place]:
        assert not Journey(browser, place, screenshots=tmp_path).faults(credentials="")
        browser.open(place.url + "/api/tasks")
        assert "server.add" in browser.text("body")


def test_the_password_made_up_for_the_run_opens_the_page_and_its_buttons(
    worker: Broker, browser: Browser, tmp_path: Path
) -> None:
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
