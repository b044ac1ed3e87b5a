"""Fixtures of the HTTP tests: the application below a prefix, behind a proxy that keeps it or one that strips it."""

from __future__ import annotations

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
OPEN = {"no_auth": True, "allowed_hosts": ["host.example", "upstream", "up"]}


class Site:
    """The application at its public location, as seen through a proxy.

    :ivar kind: ``kept``: the proxy keeps the prefix, ``--url_prefix`` is set; ``stripped``: it strips the prefix and
        sends X-Forwarded-Prefix; ``unforwarded``: it strips the prefix and sends no header.
    """

    def __init__(self, kind: str, app: FlowerProxy, client: AsyncHTTPClient, loop: IOLoop, port: int) -> None:
        self.kind, self.app = kind, app
        self._client, self._loop, self._port = client, loop, port

    @property
    def links(self) -> str:
        """The start of links on the root page."""
        return "." if self.kind == "unforwarded" else PREFIX

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def path(self, path: str) -> str:
        """Return a path below the public prefix as the proxy forwards it."""
        return (PREFIX if self.kind == "kept" else "") + path

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function in the application's event loop."""
        result: T = self._loop.run_sync(work)
        return result

    def fetch(self, path: str, **kwargs: Any) -> HTTPResponse:
        """Send a request as `ask` does, and return the response."""
        return self.run(partial(self.ask, path, **kwargs))

    async def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **kwargs: Any
    ) -> HTTPResponse:
        """Request a path below the public prefix as the proxy forwards it; redirects are not followed."""
        forwarded = {"X-Forwarded-Prefix": PREFIX} if self.kind == "stripped" else {}
        url = self.origin + self.path(path)
        if method == "POST":
            kwargs.setdefault("body", "")
        return await self._client.fetch(
            url,
            method=method,
            headers={**forwarded, **(headers or {})},
            follow_redirects=False,
            raise_error=False,
            **kwargs,
        )

    def raw(self, path: str, accepted: str, *, method: str = "GET", **headers: str) -> HTTPResponse:
        """Send a request that accepts these codings, and return the response as it was sent."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.fetch(
            path, method=method, headers={**named, "Accept-Encoding": accepted}, decompress_response=False
        )

    def page(self, path: str, **kwargs: Any) -> str:
        response = self.fetch(path, **kwargs)
        assert response.code == 200, response
        return response.body.decode()


@pytest.fixture
def settings() -> dict[str, Any]:
    """The options; a module or test overrides this."""
    return OPEN


@pytest.fixture
def options(settings: dict[str, Any], kind: str) -> OptionParser:
    return make_parser(OPTIONS, {"url_prefix": PREFIX if kind == "kept" else "", **settings})


@pytest.fixture(params=["kept", "stripped"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(io_loop: IOLoop, options: OptionParser) -> Iterator[FlowerProxy]:
    """The application served by pytest-tornado."""
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
    """Process an event as if a worker had sent it."""

    def send(type_: str, **fields: Any) -> None:
        base = {"hostname": "w1@host", "timestamp": 1, "local_received": 1, "utcoffset": 0, "pid": 1, "clock": 1}
        # test_stock.py serves stock Flower
        process = app.events.dispatcher.dispatch if isinstance(app, FlowerProxy) else app.events.state.event
        process({"type": type_, **base, **fields})

    return send
