"""The Monitor page under load: lines, cursor, scope, links, live updates, accessibility."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_selenium_python import Axe
from celery import Celery
from kombu.utils.uuid import uuid
from selenium.webdriver.common.keys import Keys

from tests.support.browser import Browser
from tests.support.monitor_page import MonitorPage
from tests.support.processes import request, wait_until
from tests.support.programs import Broker, Flower, launch, worker_process
from tests.support.tasks import send_tasks

INTERVAL = 5  # seconds
TABS = 20
LOAD = 500  # tasks
HOSTILE = "<img src=x onerror=alert(1)>"
OFFLINE = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
HIDE = """
Object.defineProperty(document, 'hidden', {get: () => arguments[0], configurable: true});
document.dispatchEvent(new Event('visibilitychange'));
"""


@pytest.fixture(scope="module")
def quiet(broker: Broker) -> Broker:
    """A broker without workers; the tests send the events."""
    return Broker(broker.url.rpartition("/")[0] + "/8")


@pytest.fixture(scope="module")
def flower(quiet: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    with launch("ours", quiet, tmp_path_factory.mktemp("flower"), url_prefix="flower") as flower:
        # Rates need slots of which at least half was observed
        wait_until(lambda: sum(covered > INTERVAL / 2 for covered in history(flower)["covered"]) > 2, what="two slots")
        run(quiet, "shop.pay", failed=3)
        run(quiet, "shop.mail", succeeded=9)
        run(quiet, HOSTILE, worker=f"{HOSTILE}@h", queue=HOSTILE, failed=1)
        wait_until(lambda: len(flower.tasks()) == 13, what="the tasks in Flower")
        yield flower


def history(flower: Flower) -> Any:
    return json.loads(request(flower.address, f"{flower.path}/api/history", headers=flower.known).text)


def run(
    broker: Broker, name: str, *, worker: str = "w1@h", queue: str = "celery", succeeded: int = 0, failed: int = 0
) -> None:
    """Send the events of tasks as a worker does."""
    with Celery(broker=broker.url) as capp, capp.events.default_dispatcher(hostname=worker) as dispatcher:
        for number in range(succeeded + failed):
            task = uuid()
            dispatcher.send("task-received", uuid=task, name=name, args="()", kwargs="{}")
            dispatcher.send("task-started", uuid=task)
            if number < succeeded:
                dispatcher.send("task-succeeded", uuid=task, runtime=0.25 * (number + 1), result="None")
            else:
                dispatcher.send("task-failed", uuid=task, exception="ValueError('no')", traceback="")
        dispatcher.send("worker-heartbeat", freq=2, active=1, processed=0)


@pytest.fixture
def page(browser: Browser, flower: Flower) -> Iterator[MonitorPage]:
    browser.timeout, patience = 4 * INTERVAL, browser.timeout
    yield MonitorPage(browser, flower)
    browser.timeout = patience
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**OFFLINE, "offline": False})


def test_a_poll_is_small(page: MonitorPage) -> None:
    page.browser.traffic()
    sizes: dict[str, int] = {}

    def polled() -> bool:
        for sent in page.browser.traffic():
            if "&since=" in sent.url and sent.size:
                sizes[sent.url] = sent.size
        return bool(sizes)

    page.see(polled, "a poll")
    # With headers
    assert max(sizes.values()) <= 2048


def test_keys_move_one_cursor_in_all_charts(page: MonitorPage) -> None:
    page.press(Keys.HOME)
    first = page.value().partition(" ")[0]
    assert page.value(1).startswith(first)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    second = page.value().partition(" ")[0]
    seconds = [
        int(hours) * 3600 + int(minutes) * 60 + int(rest)
        for hours, minutes, rest in (time.split(":") for time in (first, second))
    ]
    assert (seconds[1] - seconds[0]) % 86400 == INTERVAL
    page.press(Keys.END)
    assert page.value(2).partition(" ")[0] > second or second.startswith("23")
    assert re.search(r"succeeded .*, retried .*, revoked .*, failed ", page.value())


def test_enter_leads_to_the_failed_tasks(page: MonitorPage) -> None:
    page.press(Keys.ENTER)
    page.see(lambda: "/flower/tasks" in page.browser.driver.current_url, "the tasks page")
    page.see(lambda: "to 4 of 4 tasks" in page.browser.text("#tasks-table_info"), "the failed tasks")
    query = parse_qs(urlsplit(page.browser.driver.current_url).query)
    assert query["state"] == ["FAILURE"]
    assert {cell.text for cell in page.browser.find_all("#tasks-table tbody .badge")} == {"FAILURE"}


def test_the_window_of_time_limits_the_tasks(page: MonitorPage) -> None:
    page.browser.open(page.url.replace("monitor", "tasks?state=FAILURE&ended=1000..2000"))
    page.see(lambda: "No tasks" in page.browser.text("#tasks-table"), "no task")


def test_scope_and_range_stand_in_the_address(page: MonitorPage) -> None:
    page.browser.click("shop.pay", by="link text")
    page.see(lambda: page.browser.text("#monitor-scope").startswith("Task shop.pay"), "the scope")
    page.see(lambda: page.status == "Live", "live data")
    assert "?range=15m&by=task&name=shop.pay" in page.browser.driver.current_url
    assert len(page.browser.find_all("#monitor-charts figure")) == 4
    page.browser.driver.refresh()
    page.see(lambda: page.browser.text("#monitor-scope").startswith("Task shop.pay"), "the scope")
    page.browser.driver.back()
    page.see(lambda: page.browser.text("#monitor-scope") == "Whole cluster", "the whole cluster")
    page.see(lambda: len(page.browser.find_all("#monitor-charts figure")) == 6, "all charts")
    page.open("?range=6h&by=worker&name=w1%40h")
    assert page.browser.text("#monitor-scope").startswith("Worker w1@h")


def test_an_unknown_series_is_no_live_page(page: MonitorPage) -> None:
    page.browser.open(page.url + "?by=task&name=nothing")
    page.see(lambda: page.status == "No data", "that there is no data")


def test_the_table_is_sorted(page: MonitorPage) -> None:
    def names() -> list[str]:
        # At once, since each answer replaces the rows
        script = (
            "return [...document.querySelectorAll('#monitor-table tbody td:first-child')].map(cell => cell.textContent)"
        )
        found: list[str] = page.browser.driver.execute_script(script)
        return found

    assert names()[:2] == ["shop.pay", HOSTILE]
    page.browser.click("#monitor-table th:first-child button")
    assert names() == sorted(names())
    assert (
        page.browser.driver.execute_script("return document.querySelector('#monitor-table th').ariaSort") == "ascending"
    )
    page.browser.click("#monitor-kinds button:nth-child(2)")
    page.see(lambda: set(names()) == {"w1@h", f"{HOSTILE}@h"}, "the workers")


def test_hostile_names_stay_text(page: MonitorPage) -> None:
    for query in ("", f"?by=task&name={HOSTILE}", f"?by=worker&name={HOSTILE}@h"):
        page.open(query)
        assert page.browser.find_all("#monitor img") == []
    assert [str(message) for message in page.browser.console()] == []


def test_the_page_is_live_only_while_it_is_visible(page: MonitorPage) -> None:
    page.browser.driver.execute_script(HIDE, True)
    page.browser.traffic()
    page.browser.driver.set_script_timeout(60)
    page.browser.driver.execute_async_script(f"setTimeout(arguments[0], {INTERVAL * 1000 + 1000})")
    assert [sent.url for sent in page.browser.traffic() if sent.type == "Fetch"] == []
    page.browser.driver.execute_script(HIDE, False)
    page.see(lambda: any("since" in sent.url for sent in page.browser.traffic()), "a request of the visible page")


def test_pause_stops_the_updates(page: MonitorPage) -> None:
    page.browser.click("#monitor-pause")
    assert page.status.startswith("Paused at ")
    page.browser.traffic()
    page.browser.driver.set_script_timeout(60)
    page.browser.driver.execute_async_script(f"setTimeout(arguments[0], {INTERVAL * 1000 + 1000})")
    assert [sent.url for sent in page.browser.traffic() if sent.type == "Fetch"] == []
    page.browser.click("#monitor-pause")
    assert page.browser.text("#monitor-pause") == "Pause"
    page.see(lambda: any("since" in sent.url for sent in page.browser.traffic()), "a request")


def test_many_tabs_are_live(page: MonitorPage) -> None:
    """Browsers open at most six connections to a host over HTTP/1.1; a stream would hold one for each page."""
    driver = page.browser.driver
    first = driver.current_window_handle
    try:
        for _ in range(TABS):
            driver.switch_to.new_window("tab")
            page.open()
        for handle in driver.window_handles:
            driver.switch_to.window(handle)
            assert page.status == "Live"
    finally:
        for handle in driver.window_handles:
            if handle != first:
                driver.switch_to.window(handle)
                driver.close()
        driver.switch_to.window(first)


def test_errors_say_since_when_the_page_is_not_live(page: MonitorPage) -> None:
    page.browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**OFFLINE, "offline": True})
    page.see(lambda: re.fullmatch(r"Not live since \d\d:\d\d:\d\d", page.status), "the time")
    page.browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**OFFLINE, "offline": False})
    page.see(lambda: page.status == "Live", "live data")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: MonitorPage, theme: str) -> None:
    page.browser.driver.execute_script("document.documentElement.dataset.bsTheme = arguments[0]", theme)
    page.show_table()
    axe = Axe(page.browser.driver)
    axe.inject()
    found = axe.run("#monitor")
    assert {one["id"]: [node["html"][:90] for node in one["nodes"]] for one in found["violations"]} == {}
    assert len(found["passes"]) > 10


def test_success_and_failure_differ_without_colours(page: MonitorPage) -> None:
    dashes = [
        page.browser.style(f"#monitor-charts figure:nth-child(1) .line.{name}:not(.forming)", "strokeDasharray")
        for name in ("success", "danger")
    ]
    assert dashes[0] == "none" != dashes[1]
    script = (
        "return [...document.querySelectorAll('#monitor-charts figure:first-child .end')].map(one => one.textContent)"
    )
    labels = page.browser.driver.execute_script(script)
    assert {"succeeded", "failed"} <= set(labels)


def test_a_caption_summarizes_each_outcome(page: MonitorPage) -> None:
    caption = page.browser.text("#monitor-charts figure:first-child figcaption")
    figures = re.findall(r"(\w+): last [\d.]+/s, mean [\d.]+/s, peak [\d.]+/s", caption)
    assert figures == ["succeeded", "retried", "revoked", "failed"], caption


@pytest.mark.parametrize("width", [320, 1400])
def test_no_page_scrolls_sideways(page: MonitorPage, width: int) -> None:
    driver = page.browser.driver
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        page.open()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= driver.execute_script(
            "return document.documentElement.clientWidth"
        )
        script = (
            "return [...document.querySelectorAll('#monitor button')].map(one => one.getBoundingClientRect().height)"
        )
        heights = driver.execute_script(script)
        assert min(heights) >= 44
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_charts_follow_the_theme_without_a_reload(page: MonitorPage) -> None:
    colours = []
    for theme in ("light", "dark"):
        page.browser.driver.execute_script("document.documentElement.dataset.bsTheme = arguments[0]", theme)
        colours.append(page.browser.style("#monitor-charts .line.success", "stroke"))
    assert colours[0] != colours[1]


def test_an_unobserved_time_is_a_gap(page: MonitorPage) -> None:
    """The time before flower-proxy started, in the longest range."""
    page.open("?range=24h")
    assert page.gaps()
    assert page.line().count("M") == 1


def test_a_slot_that_has_just_begun_is_no_gap(page: MonitorPage) -> None:
    wait_until(lambda: time.time() % INTERVAL < 0.1, what="the beginning of a slot")
    page.open()
    (_, end) = page.line_parts()[-1]
    assert [right for _, right in page.gaps() if right > end] == []


def test_the_lines_move_under_the_load_of_a_worker(page: MonitorPage, quiet: Broker, tmp_path: Path) -> None:
    page.show_table()

    def load() -> None:
        expected, line = page.counts("succeeded") + LOAD, page.line()
        send_tasks(quiet, LOAD)
        page.see(lambda: page.counts("succeeded") == expected, "the new tasks")
        page.see(lambda: page.line() != line, "that the line moves")

    with worker_process(quiet, tmp_path):
        for _ in range(3):
            load()
    fetches = sorted(sent.sent for sent in page.browser.traffic() if "/api/history?range=15m&since" in sent.url)
    assert len(fetches) >= 3
    assert all(later - earlier >= INTERVAL for earlier, later in pairwise(fetches))
