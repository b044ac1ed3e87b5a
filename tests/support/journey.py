"""A person's way through Flower in a browser, and everything that must not happen on it."""

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
    """Where the browser finds one Flower."""

    origin: str
    prefix: str
    # no proxy and no option names the final slash: only the browser can know that it is missing
    only_the_browser_knows_the_slash: bool = False

    @property
    def url(self) -> str:
        return self.origin + self.prefix

    def holds(self, url: str) -> bool:
        """Whether a URL belongs to this Flower. ``/flowerx`` does not belong to ``/flower``."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return origin == self.origin and f"{parts.path}/".startswith(f"{self.prefix}/")


class Journey:
    """Walks the steps in order, as each begins where the one before it ended.

    :param screenshots: a folder for a picture of every step that went wrong.
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
            "logo": self.go_back_by_logo,
            "not found": self.open_missing_page,
        }

    def log_in(self, credentials: str = CREDENTIALS) -> None:
        """Type the credentials once, on an answer that loads nothing else."""
        self.browser.open(self.place.url.replace("://", f"://{credentials}@") + "/workers?json=1")
        self.browser.traffic()
        self.browser.console()

    def walk(self) -> dict[str, list[str]]:
        """Take every step, also after one that failed, and say what was wrong at each."""
        return {name: self.take(name, step) for name, step in self.steps().items()}

    def take(self, name: str, step: Callable[[], None]) -> list[str]:
        """Take one step, and say what was wrong: what was not seen, was asked for in vain, or stands in the console."""
        faults = []
        try:
            step()
        except (TimeoutError, WebDriverException) as error:
            faults.append(str(error).splitlines()[0])
            if self.screenshots:
                self.browser.screenshot(self.screenshots / f"{name}.png")
        requests, console = self.browser.traffic(), self.browser.console()
        self.requests += requests
        if not (self.place.only_the_browser_knows_the_slash and name == "no slash"):
            faults += [str(request) for request in requests if self._is_wrong(request)]
            faults += [str(message) for message in console if self._is_complaint(message)]
        return faults

    def faults(self, credentials: str = CREDENTIALS) -> dict[str, list[str]]:
        """Log in, walk, and say what was wrong at the steps where something was.

        :param credentials: empty where nobody is asked for any.
        """
        if credentials:
            self.log_in(credentials)
        return {step: found for step, found in self.walk().items() if found}

    # the steps

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
        # down again at once, so that the pool does not grow from journey to journey
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

    def go_back_by_logo(self) -> None:
        self.browser.click(".app-brand")
        self._see_worker_online()

    def open_missing_page(self) -> None:
        self.browser.open(self.missing)
        self._see("that the page is not found", lambda: "not found" in self.browser.text("#main-content"))
        # a rule of flower.css, which has the navigation bar higher than Bootstrap does
        self._see("a styled page", lambda: self.browser.style(".app-navbar", "minHeight") == "64px")

    # what they see

    def _see(self, what: str, condition: Callable[[], object]) -> None:
        self.browser.wait(condition, what=what)

    def _see_worker_online(self) -> None:
        self._see("the worker's badge", lambda: self.browser.text("#workers-table tbody .badge") == "Online")
        self._see("one worker online", lambda: self.browser.text("#workers-online") == "1")

    def _successes(self) -> str:
        return " ".join(toast.text for toast in self.browser.find_all(".toast.text-bg-success"))

    # what must not happen

    def _is_wrong(self, request: Request) -> bool:
        if self._is_icon_of_login(request.url):
            return False
        if request.url == self.missing and request.type == "Document":
            return request.status not in (None, 404)
        return not self.place.holds(request.url) or request.failure is not None or (request.status or 0) >= 400

    def _is_complaint(self, message: Message) -> bool:
        if message.level not in ("WARNING", "SEVERE"):
            return False
        # each line begins with the URL it is about
        url, _, text = message.text.partition(" ")
        # HTTP/2 has no words for a status
        is_not_found = url == self.missing and text.endswith(("status of 404 (Not Found)", "status of 404 ()"))
        return not (is_not_found or self._is_icon_of_login(url))

    def _is_icon_of_login(self, url: str) -> bool:
        """Browsers look for an icon at the root for what names none, and that is what `log_in` opened."""
        return url == self.place.origin + "/favicon.ico"
