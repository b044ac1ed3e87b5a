"""The Monitor page, as a user reads it in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable

from selenium.webdriver.common.action_chains import ActionChains

from .browser import Browser
from .programs import CREDENTIALS, Flower


class MonitorPage:
    """The Monitor page of a Flower, in a browser."""

    def __init__(self, browser: Browser, flower: Flower) -> None:
        self.browser = browser
        self.url = f"http://localhost:{flower.address.port}{flower.path}/monitor"
        browser.open(self.url.replace("://", f"://{CREDENTIALS}@").replace("/monitor", "/workers?json=1"))
        self.open()

    def open(self, query: str = "") -> None:
        self.browser.open(self.url + query)
        self.see(lambda: self.status == "Live", "live data")
        self.see(lambda: self.browser.find_all("#monitor-table tbody td"), "the table")

    def see(self, condition: Callable[[], object], what: str) -> None:
        self.browser.wait(condition, what=what)

    @property
    def status(self) -> str:
        return self.browser.text("#monitor-refresh-status")

    def value(self, chart: int = 0) -> str:
        """Return what a screen reader says of a chart's cursor."""
        return str(
            self.browser.find(f"#monitor-charts figure:nth-child({chart + 1}) svg.plot").get_attribute("aria-valuetext")
        )

    def press(self, *keys: str, chart: int = 0) -> None:
        plot = self.browser.find(f"#monitor-charts figure:nth-child({chart + 1}) svg.plot")
        self.browser.driver.execute_script("arguments[0].focus()", plot)
        ActionChains(self.browser.driver).send_keys(*keys).perform()

    def line(self) -> str:
        """Return the path of the first chart's first line."""
        script = "return document.querySelector('#monitor-charts .line.success:not(.forming)').getAttribute('d')"
        return str(self.browser.driver.execute_script(script))

    def line_parts(self) -> list[tuple[float, float]]:
        """Return where the parts of the first chart's first line begin and end, from left to right."""
        parts = [re.findall(r"[ML]([\d.]+)", part) for part in re.findall(r"M[^M]*", self.line())]
        return [(float(part[0]), float(part[-1])) for part in parts]

    def gaps(self) -> list[tuple[float, float]]:
        """Return where the gaps in the first chart begin and end, from left to right."""
        script = """
        return [...document.querySelectorAll('#monitor-charts figure:first-child rect.gap')]
            .map(one => [one.x.baseVal.value, one.x.baseVal.value + one.width.baseVal.value]);
        """
        return [(left, right) for left, right in self.browser.driver.execute_script(script)]

    def show_table(self) -> None:
        """Show the first chart as a table."""
        self.browser.click("#monitor-charts figure:first-child button")

    def counts(self, label: str) -> int:
        """Return the sum of a column of the first chart's table."""
        script = """
        const table = document.querySelector('#monitor-charts figure .monitor-data'),
            column = [...table.querySelectorAll('th')].findIndex(head => head.textContent === arguments[0]) + 1,
            cells = [...table.querySelectorAll(`td:nth-child(${column})`)].map(cell => cell.textContent);
        return cells.map(text => Number((/\\((.*)\\)/.exec(text) || [0, 0])[1])).reduce((sum, count) => sum + count, 0);
        """
        return int(self.browser.driver.execute_script(script, label))
