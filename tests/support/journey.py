"""A walk through Flower's pages in a browser, with every failed request and console message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from .browser import Browser, Message, Request
from .programs import CREDENTIALS, WORKER

TASKS = "#tasks-table tbody .task-uuid-full"


@dataclass(frozen=True)
class Place:
    """The public URL of a Flower.

    :ivar browser_adds_slash: only the page's script can add a missing final slash, as the prefix is unknown to Flower.
    """

    origin: str
    prefix: str
    browser_adds_slash: bool = False

    @property
    def url(self) -> str:
        return self.origin + self.prefix

    def holds(self, url: str) -> bool:
        """Return whether a URL is below the prefix, which ends at a segment boundary."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return origin == self.origin and f"{parts.path}/".startswith(f"{self.prefix}/")


class Journey:
    """The steps of a user, each of which starts on the page of the previous one.

    :param screenshots: a folder for a screenshot of every failed step.
    """

    def __init__(self, browser: Browser, place: Place, *, screenshots: Path | None = None) -> None:
        self.browser = browser
        self.place = place
        self.screenshots = screenshots
        self.missing = place.url + "/no/such/page"
        self.requests: list[Request] = []

    def steps(self) -> dict[str, Callable[[], None]]:
        return {
            "no slash": self.open_without_slash,
            "slash": self.open_with_slash,
            "worker": self.open_worker,
            "control": self.press_buttons,
            "tasks": self.open_tasks,
            "task": self.open_task,
            "broker": self.open_broker,
            "monitor": self.open_monitor,
            "logo": self.go_back_by_logo,
            "not found": self.open_missing_page,
        }

    def log_in(self, credentials: str = CREDENTIALS) -> None:
        """Send the credentials once, to a URL whose response loads nothing else."""
        self.browser.open(self.place.url.replace("://", f"://{credentials}@") + "/workers?json=1")
        self.browser.traffic()
        self.browser.console()

    def walk(self) -> dict[str, list[str]]:
        """Take every step, including those after a failed one, and return the faults of each."""
        return {name: self.take(name, step) for name, step in self.steps().items()}

    def take(self, name: str, step: Callable[[], None]) -> list[str]:
        """Take one step, and return its faults: missing content, failed requests and console messages."""
        faults = []
        try:
            step()
        except (TimeoutError, WebDriverException) as error:
            faults.append(str(error).splitlines()[0])
            if self.screenshots:
                self.browser.screenshot(self.screenshots / f"{name}.png")
        requests, console = self.browser.traffic(), self.browser.console()
        self.requests += requests
        if not (self.place.browser_adds_slash and name == "no slash"):
            faults += [str(request) for request in requests if self._is_failed(request)]
            faults += [str(message) for message in console if self._is_unexpected(message)]
        return faults

    def faults(self, credentials: str = CREDENTIALS) -> dict[str, list[str]]:
        """Log in, take every step, and return the faults of those that have any.

        :param credentials: empty if authentication is disabled.
        """
        if credentials:
            self.log_in(credentials)
        return {step: found for step, found in self.walk().items() if found}

    # Steps
    def open_without_slash(self) -> None:
        self.browser.open(self.place.url)
        self._see_worker_online()

    def open_with_slash(self) -> None:
        self.browser.open(self.place.url + "/")
        self._see_worker_online()

    def open_worker(self) -> None:
        self.browser.click("#workers-table a.worker-name-link")
        self._see("the worker's page", lambda: self.browser.text("#workername").startswith(f"{WORKER}@"))

    def press_buttons(self) -> None:
        # The worker is shared by all tests, so its pool keeps its size
        self.browser.click("#worker-pool-grow")
        self._see("that the pool grows", lambda: "Growing" in self._successes())
        self.browser.click("#worker-pool-shrink")
        self._see("that the pool shrinks", lambda: "Shrinking" in self._successes())

    def open_tasks(self) -> None:
        self.browser.click("Tasks", by=By.LINK_TEXT)
        self._see("rows in the tasks table", lambda: len(self.browser.find_all(TASKS)) >= 3)

    def open_task(self) -> None:
        uuid = self.browser.text(TASKS)
        self.browser.click(TASKS)
        self._see("the task's page", lambda: uuid and self.browser.text(".task-uuid-value code") == uuid)

    def open_broker(self) -> None:
        self.browser.click("Broker", by=By.LINK_TEXT)
        self._see("a queue", lambda: self.browser.find_all("#queue-table tbody tr#celery"))

    def open_monitor(self) -> None:
        self.browser.click("Monitor", by=By.LINK_TEXT)
        self._see("live charts", lambda: self.browser.text("#monitor-refresh-status") == "Live")
        self._see("six charts", lambda: len(self.browser.find_all("#monitor-charts svg.plot .line")) >= 6)
        self.browser.click("#monitor-table tbody a")
        self._see("one task", lambda: self.browser.text("#monitor-scope").startswith("Task server."))

    def go_back_by_logo(self) -> None:
        self.browser.click(".app-brand")
        self._see_worker_online()

    def open_missing_page(self) -> None:
        self.browser.open(self.missing)
        self._see("that the page is not found", lambda: "not found" in self.browser.text("#main-content"))
        # flower.css sets this height, Bootstrap another one
        self._see("a styled page", lambda: self.browser.style(".app-navbar", "minHeight") == "64px")

    # Expected content
    def _see(self, what: str, condition: Callable[[], object]) -> None:
        self.browser.wait(condition, what=what)

    def _see_worker_online(self) -> None:
        self._see("the worker's badge", lambda: self.browser.text("#workers-table tbody .badge") == "Online")
        self._see("one worker online", lambda: self.browser.text("#workers-online") == "1")

    def _successes(self) -> str:
        # At once, since Flower removes them meanwhile
        script = "return [...document.querySelectorAll('.toast.text-bg-success')].map(one => one.textContent).join(' ')"
        return str(self.browser.driver.execute_script(script))

    # Faults

    def _is_failed(self, request: Request) -> bool:
        if self._is_icon_of_login(request.url):
            return False
        if request.url == self.missing and request.type == "Document":
            return request.status not in (None, 404)
        return not self.place.holds(request.url) or request.failure is not None or (request.status or 0) >= 400

    def _is_unexpected(self, message: Message) -> bool:
        if message.level not in ("WARNING", "SEVERE"):
            return False
        # Each message begins with its URL
        url, _, text = message.text.partition(" ")
        # HTTP/2 has no reason phrase
        is_not_found = url == self.missing and text.endswith(("status of 404 (Not Found)", "status of 404 ()"))
        return not (is_not_found or self._is_icon_of_login(url))

    def _is_icon_of_login(self, url: str) -> bool:
        """Return whether it is the favicon at the root, which browsers request for the JSON that `log_in` opens."""
        return url == self.place.origin + "/favicon.ico"
