"""Rare cases in a browser: names with slashes, an unsupported flower.js, and cross-site requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from flower_proxy._flower import FLOWER_JS, flower_settings
from flower_proxy.web.static import packaged_overrides, prepend
from tests.support.browser import Browser
from tests.support.journey import TASKS, Journey
from tests.support.setups import FLOWER, HOST_WITHOUT_PORT, LISTEN, SETUPS, Flowers, Setup, deployed, kept, server

BY_ID = {setup.id: setup for setup in SETUPS}


@pytest.mark.parametrize("id_", ["stripped-unknown-prefix", "mismatched-slashes-unknown-prefix"])
def test_links_work_if_the_prefix_is_unknown_and_the_proxy_decodes_slashes_in_names(
    id_: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    with deployed(BY_ID[id_], flowers, certificate, tmp_path) as [place]:
        Journey(browser, place).log_in()
        for page in ["/task/x%2Fy", "/worker/a%2Fb%20c", "/no//such", "/task/%E4%BD%A0%2F%25"]:
            browser.open(place.url + page)
            browser.wait(lambda: browser.style(".app-navbar", "minHeight") == "64px", what=f"a styled {page}")
            # The preload scanner requests wrong URLs before the page's script corrects the base URL
            browser.traffic()
            browser.click("Tasks", by=By.LINK_TEXT)
            browser.wait(lambda: browser.find_all(TASKS), what="rows in the tasks table")
            assert all(place.holds(request.url) for request in browser.traffic()), page


@pytest.mark.parametrize("id_", ["stripped-unknown-prefix", "nested-kept", "plain-http-host-kept"])
def test_every_page_works_with_an_unsupported_flower_js(
    id_: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    original = Path(flower_settings["static_path"], FLOWER_JS).read_text()
    script = tmp_path / "static" / FLOWER_JS
    script.parent.mkdir(parents=True)
    script.write_text(prepend(original, (packaged_overrides() / FLOWER_JS).read_text()))
    options = [f"--static_overrides={tmp_path / 'static'}"]
    with deployed(BY_ID[id_], flowers, certificate, tmp_path, options=options) as [place]:
        assert not Journey(browser, place, screenshots=tmp_path).faults()


@pytest.mark.parametrize(
    ("host", "reason"), [("localhost", "cross-site request refused"), ("flower.test", "does not match")]
)
def test_cross_site_control_actions_are_denied(
    host: str, reason: str, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    """The browser sends the credentials; on localhost it also sends Sec-Fetch-Site, elsewhere only Origin.

    With FLOWER_UNAUTHENTICATED_API, stock Flower accepts them: mher/flower#1231.
    """
    form = f"http://{host}:$server_port/flower/api/task/revoke/1"
    attacker = (
        f"server {{ listen {LISTEN}; server_name other.test; default_type text/html;"
        f" return 200 '<form method=post action={form}><button>win</button></form>'; }}"
    )
    ours = server(f"server_name {host}; " + kept("/flower", HOST_WITHOUT_PORT))
    setup = Setup("attacked", attacker + ours, url_prefixes=("flower",), host=host)
    assert FLOWER in setup.servers
    with deployed(setup, flowers, certificate, tmp_path) as [place]:
        Journey(browser, place).log_in()
        browser.open(place.origin.replace(host, "other.test"))
        browser.traffic()
        browser.click("button")
        browser.wait(lambda: reason in browser.text("body"), what="the reason of the denial")
        [answer] = [request for request in browser.traffic() if request.method == "POST"]
        assert answer.status == 403
