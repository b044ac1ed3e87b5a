from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from urllib.parse import urlencode

import pytest
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from flower_proxy._flower import SearchPage
from flower_proxy.app import FlowerProxy
from flower_proxy.events.search import TaskQuery
from flower_proxy.events.task import Task
from tests.http.conftest import Site

TABLE = {"draw": 1, "start": 0, "length": 10, "order[0][column]": 0, "columns[0][data]": "name", "order[0][dir]": "asc"}


def table(query: str) -> str:
    return "/tasks/datatable?" + urlencode({**TABLE, "search[value]": query})


def test_other_requests_are_answered_during_a_search(
    site: Site, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        event("task-received", uuid=str(number), name="tasks.add", kwargs=f"{{'user': {number}}}")
    started, released, search = asyncio.Event(), asyncio.Event(), TaskQuery.search

    def waiting(query: TaskQuery, tasks: list[Task]) -> Generator[None, None, SearchPage]:
        started.set()
        while not released.is_set():
            yield
        return (yield from search(query, tasks))

    monkeypatch.setattr(TaskQuery, "search", waiting)

    async def both() -> bytes:
        searching = asyncio.ensure_future(site.ask(table("kwargs:user=1")))
        await started.wait()
        assert (await site.ask("/healthcheck")).code == 200
        assert not searching.done()
        released.set()
        return (await searching).body

    found = json.loads(site.run(both))
    assert ([task["uuid"] for task in found["data"]], found["recordsFiltered"], found["recordsTotal"]) == (["1"], 1, 3)


def test_tasks_evicted_during_a_search_are_left_out(
    site: Site, app: FlowerProxy, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for uuid in ("1", "2"):
        event("task-received", uuid=uuid, name="tasks.add")

    def search(query: TaskQuery, tasks: object) -> Generator[None, None, SearchPage]:
        yield
        del app.events.state.tasks["1"]
        return SearchPage(["1", "2"], 2, 2)

    monkeypatch.setattr(TaskQuery, "search", search)
    assert list(json.loads(site.page("/api/tasks"))) == ["2"]


def test_the_search_of_a_disconnected_client_ends(
    site: Site, http_port: int, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    event("task-received", uuid="1", name="tasks.add")
    started, ended = asyncio.Event(), asyncio.Event()

    def endless(query: TaskQuery, tasks: object) -> Generator[None, None, SearchPage]:
        started.set()
        try:
            while True:
                yield
        finally:
            ended.set()

    monkeypatch.setattr(TaskQuery, "search", endless)

    async def disconnect() -> None:
        stream: IOStream = await TCPClient().connect("127.0.0.1", http_port)
        await stream.write(f"GET {site.path('/api/tasks')} HTTP/1.1\r\nHost: up\r\n\r\n".encode())
        await started.wait()
        stream.close()
        await ended.wait()

    site.run(disconnect)
    monkeypatch.undo()
    assert list(json.loads(site.page("/api/tasks"))) == ["1"]


@pytest.mark.parametrize("query", ['"', "NOT x", "ab"])
def test_a_malformed_query_is_reported(site: Site, query: str) -> None:
    found = json.loads(site.page(table(query)))
    assert (found["data"], found["recordsFiltered"]) == ([], 0)
    assert found["searchError"]
    assert site.fetch("/api/tasks?" + urlencode({"search": query})).code == 400
