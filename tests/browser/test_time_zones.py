"""Times in all time zones, from the browser's rules instead of those of moment-timezone."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from flower_proxy._flower import TIME_ZONES, flower_settings
from flower_proxy.web.static import packaged_overrides
from tests.support.browser import Browser

MOMENT = Path(flower_settings["static_path"], "js", "moment-2.29.4.min.js")
STOCK = Path(flower_settings["static_path"], TIME_ZONES)
OURS = packaged_overrides() / "js" / "time_zones.js"
# Formats each instant as Flower does with each library, and with the browser's own format
COMPARE = """
const instants = arguments[0], wrong = [], newer = new Set();
for (const zone of zones) {
    const browsers = new Intl.DateTimeFormat('sv-SE', {timeZone: zone, dateStyle: 'short', timeStyle: 'medium'});
    for (const instant of instants) {
        const text = tz => {
            moment.fn.tz = tz;
            return moment.unix(instant).tz(zone).format('YYYY-MM-DD HH:mm:ss.SSS');
        };
        const shown = text(ours), milliseconds = shown.slice(-4);
        const expected = browsers.format(new Date(instant * 1000)) + milliseconds;
        if (shown !== expected || milliseconds !== '.123') wrong.push([zone, shown, expected]);
        if (shown !== text(stock)) newer.add(zone);
    }
}
return [wrong, [...newer]];
"""


@pytest.fixture
def page(browser: Browser) -> Browser:
    """A browser with both libraries."""
    for file, kept in ((MOMENT, ""), (STOCK, "stock = moment.fn.tz; zones = moment.tz.names();"), (OURS, "")):
        browser.driver.execute_script(file.read_text())
        browser.driver.execute_script(kept)
    browser.driver.execute_script("ours = moment.fn.tz;")
    return browser


def compare(page: Browser, instants: list[float], *zones: str) -> tuple[list[Any], set[str]]:
    """Return wrong times, and the zones for which moment-timezone has other rules than the browser."""
    if zones:
        page.driver.execute_script("zones = arguments[0];", zones)
    wrong, newer = page.driver.execute_script(COMPARE, [instant + 0.123 for instant in instants])
    return wrong, set(newer)


def test_times_are_those_of_moment_timezone_except_for_newer_rules(page: Browser) -> None:
    zones = page.driver.execute_script("return zones.length")
    start, end = (datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() for year in (2020, 2028))
    wrong, newer = compare(page, [start + (end - start) * number / 60 for number in range(60)])
    assert not wrong
    # The library's rules are of 2022; the others of its zones are the same
    assert zones > 500
    assert len(newer) < zones / 20
    assert not newer & {"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Sydney"}


def test_times_are_right_around_the_changes_of_the_clock(page: Browser) -> None:
    hours = [datetime(2024, 3, 31, tzinfo=timezone.utc).timestamp() + 900 * number for number in range(16)]
    hours += [datetime(2024, 11, 3, tzinfo=timezone.utc).timestamp() + 900 * number for number in range(48)]
    hours += [datetime(2024, 4, 6, tzinfo=timezone.utc).timestamp() + 900 * number for number in range(96)]
    assert compare(page, hours, "Europe/Berlin", "America/New_York", "Australia/Lord_Howe") == ([], set())


def test_an_unknown_time_zone_is_reported_and_shown_in_that_of_the_browser(page: Browser) -> None:
    text = page.driver.execute_script("return moment.unix(0).tz('No/Where').format()")
    assert text == page.driver.execute_script("return moment.unix(0).format()")
    assert any("No/Where" in message.text for message in page.console())
