"""What the workers page requests after it has loaded, and the weight of pages."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tornado.web import create_signed_value

from tests.support.browser import Browser, Request
from tests.support.processes import request, wait_until
from tests.support.programs import CREDENTIALS, Broker, Flower, htpasswd, launch

INTERVAL = 5  # seconds
OFFLINE = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
HIDE = """
Object.defineProperty(document, 'hidden', {get: () => arguments[0], configurable: true});
document.dispatchEvent(new Event('visibilitychange'));
"""
FIRST_PAGE, SECOND_PAGE = 180_000, 8_000  # bytes


@pytest.fixture(scope="module")
def quiet(broker: Broker) -> Broker:
    """A broker without workers, so that nothing changes on the page."""
    return Broker(broker.url.rpartition("/")[0] + "/7")


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return htpasswd(tmp_path_factory.mktemp("users"), CREDENTIALS)


@pytest.fixture(scope="module")
def flower(quiet: Broker, users: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder = tmp_path_factory.mktemp("flower")
    with launch("ours", quiet, folder, authenticates=False, options=[f"--auth_file={users}"]) as flower:
        yield flower


class Page:
    """The workers page, and what it has requested since it was opened."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self._requests: list[Request] = []
        browser.open(url)
        browser.driver.set_script_timeout(60)
        browser.wait(lambda: self.status.startswith("Updated"), what="the workers")

    @property
    def status(self) -> str:
        return self.browser.text("#workers-refresh-status")

    def polls(self) -> list[Request]:
        """Return the requests for news, in the order in which they were sent."""
        self._requests += self.browser.traffic()
        # The last state of each request
        latest = {poll.sent: poll for poll in self._requests if poll.type == "Fetch"}
        return [latest[time] for time in sorted(latest)]

    def pass_interval(self) -> None:
        """Wait for a timer of the page, before which a poll would have been due."""
        self.browser.driver.execute_async_script(f"setTimeout(arguments[0], {INTERVAL * 1000 + 500})")

    def hide(self, hidden: bool) -> None:
        self.browser.driver.execute_script(HIDE, hidden)

    def go_offline(self, offline: bool) -> None:
        self.browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**OFFLINE, "offline": offline})


@pytest.fixture
def page(browser: Browser, flower: Flower) -> Iterator[Page]:
    page = Page(browser, f"http://{CREDENTIALS}@localhost:{flower.address.port}/?autorefresh=1")
    browser.timeout, patience = 4 * INTERVAL, browser.timeout
    yield page
    browser.timeout = patience
    page.go_offline(False)


def test_the_workers_page_polls_while_it_is_visible_and_slower_after_errors(page: Page) -> None:
    browser = page.browser
    browser.wait(lambda: [poll.status for poll in page.polls()] == [304], what="a response without changes")
    page.hide(True)
    page.pass_interval()
    assert len(page.polls()) == 1
    before = page.status
    page.hide(False)
    browser.wait(lambda: page.status != before, what="a poll of the visible page")
    updated = page.status.removeprefix("Updated ")
    page.go_offline(True)
    browser.wait(lambda: page.status == f"Not live since {updated}", what="the time since when it is not live")
    assert browser.style(".status-dot-error", "display")
    page.go_offline(False)
    browser.wait(lambda: page.status.startswith("Updated"), what="an update after the error")
    # The second failure is that of the attempt to see a redirect
    _, visible, failed, _, after = page.polls()
    assert failed.failure
    assert (visible.status, after.status) == (304, 304)
    # Never before the interval has passed, which doubles after an error
    assert failed.sent - visible.sent >= INTERVAL
    assert after.sent - failed.sent >= 2 * INTERVAL


def test_one_request_is_sent_at_a_time(page: Page, flower: Flower) -> None:
    assert flower.process
    flower.process.send_signal(signal.SIGSTOP)
    try:
        page.browser.wait(page.polls, what="a request without a response")
        page.pass_interval()
        assert [poll.status for poll in page.polls()] == [None]
    finally:
        flower.process.send_signal(signal.SIGCONT)
    page.browser.wait(lambda: page.polls()[0].status == 304, what="the response")


def test_a_refused_user_is_led_to_the_login(page: Page, flower: Flower, users: Path) -> None:
    """In stock Flower, the page stands still."""
    content = users.read_text()
    users.write_text(content.replace("demo", "somebody"))
    try:
        page.browser.wait(lambda: not page.browser.find_all("#workers-table"), what="the page that asks to log in")
        documents = [sent.status for sent in page.browser.traffic() if sent.type == "Document"]
        assert documents[-1] == 401
    finally:
        users.write_text(content)
        accepted = partial(request, flower.address, "/workers", headers=flower.known)
        wait_until(lambda: accepted().status == 200, what="the user is known again")


def test_a_session_that_has_ended_leads_to_the_login(browser: Browser, quiet: Broker, tmp_path: Path) -> None:
    """In stock Flower, the page stands still."""
    secret = "0123456789" * 4
    options = [
        "--auth=me@example.com",
        "--auth_provider=flower.views.auth.GitLabLoginHandler",
        "--oauth2_key=key",
        "--oauth2_secret=secret",
        "--oauth2_redirect_uri=http://localhost/login",
        f"--cookie_secret={secret}",
    ]
    with launch("ours", quiet, tmp_path, authenticates=False, options=options) as flower:
        host = f"localhost:{flower.address.port}"
        name = f"flower_user_{hashlib.sha256(host.encode()).hexdigest()[:8]}"
        value = create_signed_value(secret, "user", "me@example.com").decode()
        browser.open(f"http://{host}/healthcheck")
        browser.driver.add_cookie({"name": name, "value": value})
        page = Page(browser, f"http://{host}/")
        browser.driver.delete_all_cookies()
        browser.wait(lambda: "gitlab.com" in page.browser.driver.current_url, what="the login page")
        redirected = [urlsplit(sent.url).path for sent in browser.traffic() if sent.type == "Document"]
        assert "/login" in redirected


def test_pages_are_light(browser: Browser, flower: Flower) -> None:
    url = f"http://{CREDENTIALS}@localhost:{flower.address.port}/"
    sizes = []
    for _ in range(2):
        Page(browser, url)
        sizes.append(sum(sent.size for sent in browser.traffic()))
    first, second = sizes
    assert first <= FIRST_PAGE
    assert second <= SECOND_PAGE
