"""Purging of offline workers from pages, API, report and metrics at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from flower_proxy.app import FlowerProxy
from flower_proxy.check.report import PATH
from tests.http.conftest import OPEN, Site

OLD, RECENT = "old@host", "recent@host"
PURGE_AFTER = 3600  # seconds

SOURCES = {
    "page": "/workers",
    "page's data": "/workers?json=1",
    "API": "/api/workers",
    "API's status": "/api/workers?status=1",
    "report": PATH,
    "metrics": "/metrics",
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {**OPEN, "purge_offline_workers": PURGE_AFTER}


@pytest.fixture
def workers(app: FlowerProxy, event: Callable[..., None]) -> None:
    """Two offline workers, one of them for longer than `PURGE_AFTER`."""
    for name, ago in {OLD: PURGE_AFTER + 60, RECENT: PURGE_AFTER - 600}.items():
        then = time.time() - ago
        event("task-received", hostname=name, uuid=name, name="add", timestamp=then, local_received=then)
        event("worker-heartbeat", hostname=name, freq=2.0, timestamp=then, local_received=then)
        app.workers[name].update(stats={}, timestamp=then)


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("first", SOURCES)
def test_purged_worker_is_removed_everywhere_at_the_first_request(site: Site, app: FlowerProxy, first: str) -> None:
    pages = {name: site.page(SOURCES[name]) for name in [first, *SOURCES]}
    assert [name for name, text in pages.items() if OLD in text] == []
    assert [name for name, text in pages.items() if RECENT not in text] == []
    assert json.loads(pages["API's status"]) == {RECENT: False}
    assert f'flower_worker_online{{worker="{RECENT}"}} 0' in pages["metrics"]
    state = app.events.state
    assert (list(state.workers), list(state.counter), list(app.workers)) == ([RECENT], [RECENT], [RECENT])


@pytest.mark.usefixtures("workers")
def test_workers_are_purged_without_requests(app: FlowerProxy) -> None:
    app._purge_timer._callback()
    assert list(app.events.state.workers) == [RECENT]


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"], "purge_offline_workers": PURGE_AFTER}])
def test_denied_requests_purge_nothing(site: Site, app: FlowerProxy) -> None:
    assert site.fetch("/workers").code == 401
    assert OLD in app.events.state.workers


@pytest.mark.usefixtures("workers")
def test_clients_that_send_tasks_are_not_purged(site: Site, event: Callable[..., None]) -> None:
    """Stock Flower removes their counters at every scrape."""
    event("task-sent", uuid="sent", name="add", hostname="gen17@web")
    assert 'flower_events_total{worker="gen@web",type="task-sent",task="add"} 1' in site.page("/metrics")
