"""The handlers that are ours: metrics, readiness, the doctor's report, redirects, lines of text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from http import HTTPStatus

import celery
from tornado.web import stream_request_body

from flower_proxy import __version__
from flower_proxy._flower import BaseHandler, Metrics, flower_version
from flower_proxy.auth.policy import Permission
from flower_proxy.check.report import Seen, SeenWorker
from flower_proxy.proxy.headers import HEADERS
from flower_proxy.web.mixins import Bare


class TrustedMetrics(Metrics):
    """The metrics, in a form that the scraper asks for."""

    permission = Permission.SCRAPE

    async def get(self) -> None:
        headers = self.request.headers
        gzip = accepts_gzip(headers.get("Accept-Encoding", ""))
        content_type, parts = await self.application.monitor.scrape(
            accept=headers.get("Accept", ""), names=self.get_arguments("name[]"), gzip=gzip
        )
        self.set_header("Content-Type", content_type)
        self.add_header("Vary", "Accept, Accept-Encoding")
        if gzip:
            self.set_header("Content-Encoding", "gzip")
        self.set_header("Content-Length", sum(map(len, parts)))
        # Each by itself: Tornado would copy them to put them together, for each client
        self.flush()
        for part in parts:
            self.write(part)
            self.flush()

    def compute_etag(self) -> None:
        """None: a scrape is never the same, and the hash of a large one costs."""


class Ready(BaseHandler):
    """Tells whether it is of use now: whether the broker answers and events can arrive."""

    permission = Permission.PUBLIC

    def get(self) -> None:
        reasons = self.application.monitor.unready()
        self.set_status(HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK)
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps({"ready": not reasons, "reasons": reasons}))


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether gzip is welcome (RFC 9110, section 12.5.3)."""
    welcome = {}
    for element in accept_encoding.lower().split(","):
        coding, _, parameters = element.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            welcome[coding.strip()] = float(quality or 1) > 0
        except ValueError:
            welcome[coding.strip()] = False
    return welcome.get("gzip", welcome.get("*", False))


class Check(BaseHandler):
    """Tells what is seen; by POST it can be found out which requests come through. It changes nothing."""

    permission = Permission.READ

    def get(self, _name: str = "") -> None:
        app, location, headers = self.application, self.location, self.request.headers
        address = getattr(getattr(self.request.connection, "context", None), "address", None)
        seen = Seen(
            peer=location.peer,
            peer_port=address[1] if isinstance(address, tuple) else None,
            trusted=location.trusted,
            headers={name: ", ".join(headers.get_list(name)) for name in HEADERS if name in headers},
            client=location.client,
            scheme=location.scheme,
            host=location.host,
            prefix=location.prefix,
            path=location.path,
            trusted_proxies=app.locator.trusted.entries,
            asks=self.gate.authenticator.asks,
            user_header=self.gate.authenticator.user_header,
            enable_events=app.options.enable_events,
            broker=app.monitor.watch.problem,
            connected=app.events.connected,
            workers=tuple(self._workers()),
            time=time.time(),
            flower_proxy=__version__,
            flower=flower_version,
            celery=celery.__version__,
        )
        self.set_header("Cache-Control", "no-store")
        self.write(asdict(seen))

    def post(self, _name: str = "") -> None:
        self.get()

    def _workers(self) -> Iterable[SeenWorker]:
        app = self.application
        for name, worker in app.events.state.workers.items():
            yield SeenWorker(
                name=name,
                alive=worker.alive,
                ahead=worker.ahead,
                task_events=app.task_events.sends_task_events(name),
                celery=worker.sw_ver,
            )


class _Answer(Bare):
    """Answers whatever the method, before anything is looked up or done."""

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here that another site could want."""


class Redirect(_Answer):
    """Sends a request on to the right address of the same page, with its query."""

    def initialize(self, path: str, status: int) -> None:
        self.path, self.status = path, status

    def prepare(self) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(self.path + query, status=self.status)


class PlainText(_Answer):
    """Answers a line of text."""

    def initialize(self, status: HTTPStatus, message: str) -> None:
        self.status, self.message = status, message

    def prepare(self) -> None:
        self.set_status(self.status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self.message}\n")


@stream_request_body
class BodyTooLarge(PlainText):
    """Answers once the body has been sent and dropped: an earlier answer could be lost with the connection."""

    def prepare(self) -> None:
        """Wait for the body."""

    def data_received(self, chunk: bytes) -> None:
        """Drop it."""

    def get(self) -> None:
        super().prepare()

    head = post = put = patch = delete = options = get
