"""A headless Chromium that records its requests and console messages."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from .processes import program, wait_until

# Names of loopback that, unlike localhost, are no secure context without TLS
HOSTS = ("flower.test", "other.test")

# Debian's chromium-headless-shell is a script that does not pass on the signal of chromedriver
BINARY = "/usr/lib/chromium/chromium-headless-shell"

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    # Toasts appear without a transition
    "--force-prefers-reduced-motion",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
    "--window-size=1400,1000",
    "--host-resolver-rules=" + ",".join(f"MAP {host} 127.0.0.1" for host in HOSTS),
]


@dataclass(frozen=True)
class Request:
    """A request of the browser and its result.

    :ivar sent: the time when it was sent, in seconds.
    :ivar size: bytes received, with headers; 0 from the cache.
    :ivar headers: as sent, names in lower case.
    """

    method: str
    url: str
    type: str
    status: int | None = None
    failure: str | None = None
    sent: float = 0
    size: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {_shortened(self.url)} ({self.type}) -> {self.failure or self.status}"


@dataclass(frozen=True)
class Message:
    """A message in the console."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {_shortened(self.text)}"


def _shortened(text: str) -> str:
    """Remove the hashes of static files."""
    return re.sub(r"\?v=\w+", "", text)


class Browser:
    """A browser.

    :ivar timeout: of `wait` and `click`, in seconds.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.timeout = 10.0
        self._requests: dict[str, Request] = {}
        self._headers: dict[str, dict[str, str]] = {}
        self._hops = 0

    # Actions and content
    def open(self, url: str) -> None:
        self.driver.get(url)

    def click(self, selector: str, *, by: str = By.CSS_SELECTOR) -> None:
        self.wait(lambda: self._click(by, selector), what=f"a visible {selector}")

    def text(self, selector: str) -> str:
        """Return the text of the first element that matches, or an empty string."""
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
            return self.find(selector).text
        return ""

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def style(self, selector: str, name: str) -> str:
        """Return a computed style of the first element that matches, or an empty string."""
        script = "const e = document.querySelector(arguments[0]); return e ? getComputedStyle(e)[arguments[1]] : ''"
        return str(self.driver.execute_script(script, selector, name))

    def wait(self, condition: Callable[[], object], *, what: str) -> None:
        try:
            wait_until(condition, timeout=self.timeout, what=what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}, at {self.driver.current_url}") from None

    def forget(self) -> None:
        """Delete cookies, cache and recorded requests."""
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        self.traffic()
        self.console()

    def screenshot(self, file: Path) -> None:
        self.driver.save_screenshot(str(file))

    # Requests and console
    def traffic(self) -> list[Request]:
        """Return every request that was sent, was answered or failed since the last call."""
        touched: dict[str, None] = {}
        for entry in self._log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"].startswith("Network."):
                touched.update(dict.fromkeys(self._take(event["method"], event["params"])))
        return [replace(self._requests[key], headers=self._headers.get(key, {})) for key in touched]

    def console(self) -> list[Message]:
        """Return every console message since the last call."""
        return [Message(entry["level"], entry["message"]) for entry in self._log("browser")]

    def _log(self, name: str) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return entries

    def _click(self, by: str, selector: str) -> bool:
        try:
            element = self.driver.find_element(by, selector)
            if not element.is_displayed():
                return False
            element.click()
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    def _take(self, method: str, params: dict[str, Any]) -> Iterator[str]:
        """Record a network event, and yield the keys of its requests."""
        key = params.get("requestId", "")
        request = self._requests.get(key)
        if method == "Network.requestWillBeSent":
            if request and (redirect := params.get("redirectResponse")):
                # All hops of a redirect share one id
                self._hops += 1
                hop = f"{key} hop {self._hops}"
                self._requests[hop] = replace(request, status=redirect["status"])
                yield hop
            sent = params["request"]
            if sent["url"].startswith(("http:", "https:")):
                self._requests[key] = Request(
                    sent["method"], sent["url"], params.get("type", "?"), sent=params["timestamp"]
                )
                yield key
        elif method == "Network.requestWillBeSentExtraInfo":
            # This event may precede the request
            self._headers[key] = {name.lower(): value for name, value in params["headers"].items()}
        elif request is None:
            return
        elif method == "Network.responseReceived":
            self._requests[key] = replace(request, status=params["response"]["status"])
            yield key
        elif method == "Network.loadingFinished":
            self._requests[key] = replace(request, size=int(params["encodedDataLength"]))
            yield key
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            # Requests that a navigation cancels are not failures
            self._requests[key] = replace(request, failure=params["errorText"])
            yield key


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser with a new profile in `folder`."""
    options = ChromeOptions()
    # Renders without a compositor for a screen: a quarter less processor time than chromium --headless
    options.binary_location = BINARY
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("perfLoggingPrefs", {"enablePage": False})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # Keep Selenium from searching for a driver on the network
    os.environ.setdefault("SE_OFFLINE", "true")
    logging.getLogger("selenium").setLevel(logging.WARNING)
    service = ChromeService(
        executable_path=program("chromedriver"),
        log_output=str(folder / "chromedriver.log"),
        # Where the profile is created
        env={**os.environ, "TMPDIR": str(folder)},
    )
    driver = Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
