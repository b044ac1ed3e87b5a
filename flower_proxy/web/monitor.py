"""The Monitor page, and the API with its data."""

from __future__ import annotations

from http import HTTPStatus

from flower_proxy._flower import BaseHandler
from flower_proxy.auth.policy import Permission
from flower_proxy.monitor.report import QueryError, Report, UnknownSeriesError, parse_query

_PARAMETERS = ("range", "by", "name", "since", "format")


class MonitorPage(BaseHandler):
    """The Monitor page, whose script gets its data from `HistoryApi`."""

    permission = Permission.READ

    def get(self) -> None:
        """Handle GET: send the page."""
        self.render("monitor.html", sends_events=bool(self.application.capp.conf.task_send_sent_event))


class HistoryApi(BaseHandler):
    """The history as JSON or CSV."""

    permission = Permission.READ

    def get(self) -> None:
        """Handle GET: answer 400 if a parameter is invalid, 404 if there is no such task, worker or queue."""
        values = {name: self.get_query_argument(name, None, strip=False) for name in _PARAMETERS}
        try:
            query = parse_query({name: value for name, value in values.items() if value is not None})
            report = Report(self.application.history, query)
        except QueryError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        except UnknownSeriesError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error.args[0]))
            return
        self.set_header("Cache-Control", "no-store")
        if query.format == "csv":
            self.set_header("Content-Type", "text/csv; charset=UTF-8")
            self.set_header("Content-Disposition", 'attachment; filename="history.csv"')
            self.write(report.csv())
        else:
            self.write(report.json())

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{reason}\n")
