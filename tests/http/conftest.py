"""HTTP-level tests, all of them behind a prefix: once as a proxy that keeps it, once as one that strips it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
from celery import Celery
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.ioloop import IOLoop
from tornado.options import OptionParser

from flower_proxy.app import FlowerProxy
from flower_proxy.settings.loader import make_parser
from flower_proxy.settings.options import OPTIONS

T = TypeVar("T")

PREFIX = "/a/flower"
# Nobody is asked who they are, and these names are ours
OPEN = {"no_auth": True, "allowed_hosts": ["host.example", "upstream", "up"]}


class Site:
    """The application at its public location, reached through a proxy of one kind.

    :ivar kind: ``kept``, told by ``--url_prefix``; ``stripped``, told by the header; ``untold``, stripped in silence.
    """

    def __init__(self, kind: str, app: FlowerProxy, client: AsyncHTTPClient, loop: IOLoop, port: int) -> None:
        self.kind, self.app = kind, app
        self._client, self._loop, self._port = client, loop, port

    @property
    def links(self) -> str:
        """What links on a page at the root begin with."""
        return "." if self.kind == "untold" else PREFIX

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run this in the application's event loop."""
        result: T = self._loop.run_sync(work)
        return result

    def fetch(self, path: str, **kwargs: Any) -> HTTPResponse:
        """Ask, as `ask` has it, and wait for the answer."""
        return self.run(partial(self.ask, path, **kwargs))

    def fetch_all(self, requests: list[tuple[str, dict[str, str]]]) -> list[HTTPResponse]:
        """Ask for all these paths with these headers at the same time."""

        async def fetch() -> list[HTTPResponse]:
            return await asyncio.gather(*(self.ask(path, headers=headers) for path, headers in requests))

        return self.run(fetch)

    async def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **kwargs: Any
    ) -> HTTPResponse:
        """Ask for a path below the public prefix, as the proxy would hand it on; no redirect is followed."""
        told = {"X-Forwarded-Prefix": PREFIX} if self.kind == "stripped" else {}
        url = self.origin + (PREFIX if self.kind == "kept" else "") + path
        if method == "POST":
            kwargs.setdefault("body", "")
        return await self._client.fetch(
            url,
            method=method,
            headers={**told, **(headers or {})},
            follow_redirects=False,
            raise_error=False,
            **kwargs,
        )

    def page(self, path: str, **kwargs: Any) -> str:
        response = self.fetch(path, **kwargs)
        assert response.code == 200, response
        return response.body.decode()


@pytest.fixture
def settings() -> dict[str, Any]:
    """Flower's options for this test; a module or test overrides it."""
    return OPEN


@pytest.fixture
def options(settings: dict[str, Any], kind: str) -> OptionParser:
    return make_parser(OPTIONS, {"url_prefix": PREFIX if kind == "kept" else "", **settings})


@pytest.fixture(params=["kept", "stripped"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(io_loop: IOLoop, options: OptionParser) -> Iterator[FlowerProxy]:
    """What pytest-tornado serves."""
    capp = Celery(broker="memory://")
    oauth = {"key": "key", "secret": "secret", "redirect_uri": "https://host.example/a/flower/login"}
    application = FlowerProxy(capp=capp, options=options, oauth=oauth)
    yield application
    io_loop.run_sync(application.close)
    capp.close()


@pytest.fixture
def site(app: FlowerProxy, http_client: AsyncHTTPClient, io_loop: IOLoop, http_port: int, kind: str) -> Site:
    return Site(kind, app, http_client, io_loop, http_port)


@pytest.fixture
def event(app: FlowerProxy) -> Callable[..., None]:
    """Let Flower see an event as a worker sends it."""

    def send(type_: str, **fields: Any) -> None:
        base = {"hostname": "w1@host", "timestamp": 1, "local_received": 1, "utcoffset": 0, "pid": 1, "clock": 1}
        # Stock Flower, too, is served with this
        process = app.events.process if isinstance(app, FlowerProxy) else app.events.state.event
        process({"type": type_, **base, **fields})

    return send
