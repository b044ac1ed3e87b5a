"""Missed tasks and lost ends on the pages, in the API and in metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from flower_proxy.app import FlowerProxy
from tests.http.conftest import Site

WORKER = "<b>&@host"
NOTE = re.compile(r'role="status">([^<]*)</p>')


@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
def test_the_workers_page_mentions_missed_tasks(site: Site, event: Callable[..., None]) -> None:
    event("task-started", hostname=WORKER, uuid="id")
    for processed in (1, 8, 8):
        assert [NOTE.findall(site.page(path)) for path in ("/", "/workers")] == [[], []]
        event("worker-heartbeat", hostname=WORKER, processed=processed)
    expected = "The events of 7 tasks did not arrive (7 of &lt;b&gt;&amp;@host): "
    for path in ("/", "/workers"):
        (note,) = NOTE.findall(site.page(path))
        assert note.startswith(expected)
    assert f'flower_proxy_tasks_missed_total{{worker="{WORKER}"}} 7.0' in site.page("/metrics")
    assert NOTE.findall(site.page("/tasks")) == []


@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
def test_the_page_of_a_task_mentions_that_its_end_was_not_seen(
    site: Site, app: FlowerProxy, event: Callable[..., None]
) -> None:
    def shown() -> tuple[bool, str | None]:
        task = json.loads(site.page("/api/task/info/id"))
        assert task["uuid"] == "id"
        return "end not seen" in site.page("/task/id"), task.get("end")

    async def inspect(at: float) -> None:
        app.monitor.ends.on_inspection("w1@host", (), at)
        if scan := app.monitor.ends._scan:
            await scan

    event("task-started", uuid="id")
    site.run(lambda: inspect(0))
    assert shown() == (False, None)
    site.run(lambda: inspect(float("inf")))
    # The thread ends after its answer, for which it needs no result backend
    app.monitor.ends.backend.put(None)
    app.monitor.ends.join()
    site.run(lambda: inspect(0))
    assert shown() == (True, "not_seen")
    event("task-started", uuid="id", timestamp=2)
    assert shown() == (False, None)
