"""Takes the pictures of the Monitor page from ``flower-proxy demo``: ``python -m tests.support.screenshots``."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from .browser import Browser, chromium
from .processes import PROJECT, Address, free_port, running, wait_until

FOLDER = PROJECT / "examples" / "monitor"
# A lively picture; the charts begin with the history
RUN = 90  # seconds
WIDTHS = {"light": 1300, "dark": 1300, "phone": 360}
HEIGHTS = {"light": 1080, "dark": 1080, "phone": 1200}


def take() -> None:
    """Run the demo, and write one picture for each theme and size."""
    address = Address(free_port())
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        command = [sys.executable, "-m", "flower_proxy", "demo", f"--port={address.port}"]
        ready = re.compile(r"User: (\S+)\nPassword: (\S+)")
        with (
            running(command, log=log, ready=lambda: ready.search(log.read_text())),
            chromium(Path(name)) as browser,
        ):
            end = time.monotonic() + RUN
            found = ready.search(log.read_text())
            assert found
            browser.open(f"http://{found[1]}:{found[2]}@localhost:{address.port}/flower/workers?json=1")
            wait_until(lambda: time.monotonic() > end, timeout=2 * RUN, what="a lively picture")
            for picture in WIDTHS:
                _take(browser, f"http://localhost:{address.port}/flower/monitor", picture)


def _take(browser: Browser, url: str, picture: str) -> None:
    size = {"width": WIDTHS[picture], "height": HEIGHTS[picture], "deviceScaleFactor": 1, "mobile": picture == "phone"}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(url)
    browser.driver.execute_script(
        "document.documentElement.dataset.bsTheme = arguments[0]", "dark" if picture == "dark" else "light"
    )
    browser.wait(lambda: browser.find_all("#monitor-table tbody a"), what="the table")
    browser.screenshot(FOLDER / f"{picture}.png")


if __name__ == "__main__":
    take()
