"""Request handlers for metrics, readiness, `flower-proxy check`, redirects and plain text."""

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
from flower_proxy.check.report import Report, WorkerReport
from flower_proxy.proxy.headers import HEADERS
from flower_proxy.web.compression import accepted_codings
from flower_proxy.web.mixins import SecurityHeadersMixin


class TrustedMetrics(Metrics):
    """The metrics page, with content negotiation."""

    permission = Permission.SCRAPE

    async def get(self) -> None:
        """Handle GET: send the metrics in the text format or OpenMetrics, gzip-compressed if accepted."""
        headers = self.request.headers
        gzip = "gzip" in accepted_codings(headers.get("Accept-Encoding", ""))
        content_type, parts = await self.application.monitor.scrape(
            accept=headers.get("Accept", ""), names=self.get_arguments("name[]"), gzip=gzip
        )
        self.set_header("Content-Type", content_type)
        self.add_header("Vary", "Accept, Accept-Encoding")
        if gzip:
            self.set_header("Content-Encoding", "gzip")
        self.set_header("Content-Length", sum(map(len, parts)))
        # One write per part, because Tornado would copy all parts to join them
        self.flush()
        for part in parts:
            self.write(part)
            self.flush()

    def compute_etag(self) -> None:
        """Return no ETag: every scrape differs, and hashing a large one takes time."""


class Ready(BaseHandler):
    """The readiness probe: ready if the broker responds and events can be received."""

    permission = Permission.PUBLIC

    def get(self) -> None:
        """Handle GET: answer 200 or 503, with the reasons in JSON."""
        reasons = self.application.monitor.unready()
        self.set_status(HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK)
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps({"ready": not reasons, "reasons": reasons}))


class Check(BaseHandler):
    """The report for `flower-proxy check`: the request as it arrived, and the state of broker and workers."""

    permission = Permission.READ

    def get(self, _name: str = "") -> None:
        """Handle GET: send the report as JSON."""
        app, location, headers = self.application, self.location, self.request.headers
        address = getattr(getattr(self.request.connection, "context", None), "address", None)
        seen = Report(
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
            asks=self.access_policy.authenticator.asks,
            user_header=self.access_policy.authenticator.user_header,
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
        """Handle POST like GET: it shows that the proxy passes POST requests on, and changes nothing."""
        self.get()

    def _workers(self) -> Iterable[WorkerReport]:
        app = self.application
        for name, worker in app.events.state.workers.items():
            yield WorkerReport(
                name=name,
                alive=worker.alive,
                ahead=worker.ahead,
                task_events=app.task_events.sends_task_events(name),
                celery=worker.sw_ver,
            )


class _FixedResponse(SecurityHeadersMixin):
    """A handler with the same response to all methods."""

    def check_xsrf_cookie(self) -> None:
        """Check nothing: the response has no side effects."""


class Redirect(_FixedResponse):
    """A redirect to another path, with the query of the request."""

    def initialize(self, path: str, status: int) -> None:
        """Set the path and the status of the redirect."""
        self.path, self.status = path, status

    def prepare(self) -> None:
        """Send the redirect."""
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(self.path + query, status=self.status)


class PlainText(_FixedResponse):
    """A response of one line of text."""

    def initialize(self, status: HTTPStatus, message: str) -> None:
        """Set the status and the line."""
        self.status, self.message = status, message

    def prepare(self) -> None:
        """Send the response."""
        self.set_status(self.status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self.message}\n")


@stream_request_body
class BodyTooLarge(PlainText):
    """A response sent after the body was read and discarded: an earlier one could be lost with the connection."""

    def prepare(self) -> None:
        """Do nothing before the body has arrived."""

    def data_received(self, chunk: bytes) -> None:
        """Discard a chunk of the body."""

    def get(self) -> None:
        """Send the response, for any method."""
        super().prepare()

    head = post = put = patch = delete = options = get
