"""Weight of pages: the bytes that Chromium receives."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.bench.servers import Server
from tests.support.browser import Browser, chromium

PAGE = "/tasks"
_PAUSE = 0.3  # seconds
_MAX_PAUSES = 50


def measure(server: Server, folder: Path) -> tuple[float, float]:
    """Return the weight of the first and of the second view of a page in KB.

    :param folder: for the profile of the browser.
    """
    folder.mkdir()
    with chromium(folder) as browser:
        browser.forget()
        return view(browser, server), view(browser, server)


def view(browser: Browser, server: Server) -> float:
    """Open the page; return the bytes received until nothing is loading, in KB."""
    browser.open(f"http://127.0.0.1:{server.address.port}{PAGE}")
    loading: set[str] = set()
    pause, total = threading.Event(), 0.0
    for _ in range(_MAX_PAUSES):
        pause.wait(_PAUSE)
        entries = [json.loads(entry["message"])["message"] for entry in browser._log("performance")]
        for event in entries:
            params = event["params"]
            if event["method"] == "Network.requestWillBeSent" and params["request"]["url"].startswith("http"):
                loading.add(params["requestId"])
            elif event["method"] == "Network.loadingFinished":
                loading.discard(params["requestId"])
                total += params["encodedDataLength"]
            elif event["method"] in ("Network.loadingFailed", "Network.requestServedFromCache"):
                loading.discard(params["requestId"])
        if not entries and not loading:
            break
    browser.open("about:blank")
    browser._log("performance")
    return total / 1000
