"""The private parts of Flower that flower-proxy uses.

Verified with Flower 2.2.0; `tests/unit/test_contract.py` has a test for each, to detect changes in new releases.
"""

from __future__ import annotations

import inspect
import logging
import re
from asyncio import Future, wait
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

from celery import Celery
from celery.events.state import Task
from celery.utils.imports import symbol_by_name
from flower import __version__ as flower_version
from flower.api.tasks import ListTasks, TaskApply, TaskAsyncApply, TaskInfo, TaskSend
from flower.api.workers import ListWorkers
from flower.app import Flower
from flower.events import Events, EventsState
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.utils import template
from flower.utils.search import And, MatchAll, Or, SearchPage, Term, parse_query
from flower.views import BaseHandler
from flower.views.auth import LoginHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Healthcheck, Metrics
from flower.views.tasks import TasksDataTable
from flower.views.workers import WorkersView, WorkerView
from tornado.ioloop import IOLoop
from tornado.options import OptionParser
from tornado.web import RequestHandler

logger = logging.getLogger(__name__)

__all__ = [
    "CHECKED_ON",
    "CONTROL_NAME",
    "FLOWER_JS",
    "HEARTBEAT_FIELDS",
    "INITIAL_SEARCH",
    "NAVIGATION",
    "PAGE_HEAD",
    "POLLING",
    "STOCK_FAMILIES",
    "TASK_BODIES",
    "TASK_STATE",
    "TEMPLATE_FUNCTIONS",
    "TIME_ZONES",
    "TIME_ZONES_HASH",
    "USER_MENU",
    "WORKERS_PAGE",
    "WORKER_PAGES",
    "And",
    "BaseHandler",
    "EmbeddedFlower",
    "Events",
    "EventsState",
    "Flower",
    "FlowerDefaults",
    "FlowerOverrides",
    "FlowersLoop",
    "Healthcheck",
    "ListTasks",
    "LoginHandler",
    "MatchAll",
    "Metrics",
    "NoMetrics",
    "NotFoundErrorHandler",
    "Or",
    "SearchPage",
    "TaskInfo",
    "TasksDataTable",
    "Term",
    "UnproxiedOptions",
    "WorkersView",
    "concrete_handler",
    "default_options",
    "definitions",
    "flower_settings",
    "flower_version",
    "forget_counts",
    "parse_query",
    "task_of",
]

CHECKED_ON = "2.2.0"
"""The newest version of Flower that the contract tests were run with."""

FLOWER_JS = "js/flower.js"
"""Path of Flower's script, relative to its static folder."""

TIME_ZONES = "js/moment-timezone-with-data-2.29.4.min.js"
"""Path of moment-timezone, of which Flower's script uses only ``moment.fn.tz``."""

TIME_ZONES_HASH = "1202c7b0881d7c5abf572b1008b0361cf485298dda5734a77b7919ecd809d06b"
"""Its SHA-256."""

STOCK_FAMILIES = {
    "flower_events",
    "flower_task_runtime_seconds",
    "flower_task_prefetch_time_seconds",
    "flower_worker_prefetched_tasks",
    "flower_worker_online",
    "flower_worker_number_of_currently_executing_tasks",
}
"""The metrics that Flower registers with prometheus_client."""

TASK_BODIES = (TaskApply, TaskAsyncApply, TaskSend)
"""Handlers whose request body holds a task's arguments; only their `post` reads ``request.body``."""

WORKER_PAGES = (ListWorkers, WorkersView, WorkerView)
"""Handlers that show workers, from the event state or from inspections."""

TEMPLATE_FUNCTIONS = dict(inspect.getmembers(template, inspect.isfunction))
"""The functions available to Flower's templates."""

PAGE_HEAD = ("base.html", re.compile(r"<head>"))
"""The base template of all pages, and the pattern after which content is inserted into the head."""

USER_MENU = ("navbar.html", re.compile(r'<ul class="[^"]*\bapp-nav-secondary\b[^"]*">'))
"""The template of the navigation bar, and the pattern that matches the start of its last list."""

NAVIGATION = ("navbar.html", re.compile(r'<ul class="app-nav navbar-nav">.*?(?=\s*</ul>)', re.DOTALL))
"""The template of the navigation bar, and the pattern that matches its first list without the end."""

TASK_STATE = ("task.html", re.compile(r"<dt>Status</dt>.*?(?=</dd>)", re.DOTALL))
"""The template of the task page, and the pattern that matches the state of the task."""

WORKERS_PAGE = ("workers.html", re.compile(r'<div class="page-section workers-page">'))
"""The template of the workers page, and the pattern that matches the start of its content."""

CONTROL_NAME = re.compile(r"(url_prefix\(\) \+ '/api/[\w/-]+/' \+ )(\w+)(?=,)")
"""In Flower's script: the URL of a control action, and the name appended to it, which Flower does not URL-encode."""

POLLING = re.compile(r"setInterval\( *function \(\) \{\s*(\w+)\.ajax\.reload\(null, false\);\s*\}, (\w+) \* 1000\)")
"""In Flower's script: the timer that reloads a table, the table, and the interval in seconds."""

INITIAL_SEARCH = re.compile(r"(\['state', 'worker', 'name')\]")
"""In Flower's script: the parameters of a link to the tasks page that become terms of its search."""

HEARTBEAT_FIELDS = {"worker-heartbeat", "heartbeats", "clock"}
"""The fields of a worker that a heartbeat changes, which the workers page does not show."""


class FlowerOverrides(BaseHandler):
    """Overrides for Flower's handlers, before them in the method resolution order."""

    def get_current_user(self) -> None:
        """Return None: `prepare` sets ``current_user`` after authentication."""

    def get_argument(self, name: str, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a request argument; an empty ``sort_by`` counts as missing."""
        value = super().get_argument(name, default, *args, **kwargs)
        # Flower answers 500 to an empty sort_by
        return default if name == "sort_by" and value == "" else value

    @property
    def capp(self) -> Any:
        """The Celery application, which validates the replies to control commands."""
        return self.application.checked_capp

    def get_broker(self) -> Any:
        """Return an object with a coroutine ``queues(names)``, for the Broker page and the API."""
        return self.application.queues


class FlowerDefaults(BaseHandler):
    """Faster equivalents for Flower's handlers, after them in the method resolution order."""

    def render(self, template_name: str, **kwargs: Any) -> Future[None]:
        """Render a template as Flower does, without looking up the template functions for each page."""
        return RequestHandler.render(self, template_name, **TEMPLATE_FUNCTIONS, **kwargs)

    def set_default_headers(self) -> None:
        """Set no headers: Flower's CORS headers can expose its API to every origin (mher/flower#1231)."""


class UnproxiedOptions:
    """Flower's options, without those for the prefix, forwarded headers and authentication.

    flower-proxy handles these: Flower's handlers, routes and server work at the root and do not authenticate.
    """

    url_prefix = ""
    xheaders = False
    # If set, Flower neither refuses its API nor sends CORS headers
    basic_auth = ("handled by flower-proxy",)

    def __init__(self, options: OptionParser) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)


class FlowersLoop:
    """A proxy of the event loop that Flower can neither start, stop nor give a default executor.

    Flower shuts that executor down when it stops, after which the loop could not even resolve a host name.
    """

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        self._executor: Executor | None = None

    def start(self) -> None:
        """Do nothing: the caller runs the loop."""

    def stop(self) -> None:
        """Do nothing: the caller stops the loop."""

    def set_default_executor(self, executor: Executor) -> None:
        """Set the default executor of this object only."""
        self._executor = executor

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        """Run a function in an executor, by default Flower's."""
        return self._loop.run_in_executor(executor or self._executor, func, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class EmbeddedFlower(Flower):
    """Flower in an event loop that continues to run after it.

    :param capp: the Celery application to monitor.
    :param options: options of Flower and flower-proxy.
    :param events: the thread that receives events; `start` starts it.
    :param loop: the event loop, which `events` uses too.
    :param checked_capp: the Celery application for control commands, which validates replies.
    :param inspected: stores the results of inspections, by worker.
    :param settings: settings of `tornado.web.Application`, which override Flower's.
    """

    def __init__(
        self,
        *,
        capp: Celery,
        options: OptionParser,
        events: Any,
        loop: FlowersLoop,
        checked_capp: Any,
        inspected: dict[str, dict[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        if _release(flower_version) > _release(CHECKED_ON):
            logger.warning(
                "Flower %s is newer than %s, the latest version tested; if pages fail, install that one",
                flower_version,
                CHECKED_ON,
            )
        self._inspections: set[Future[None]] = set()
        super().__init__(
            capp=capp,
            options=UnproxiedOptions(options),
            events=events,
            io_loop=loop,
            **{**flower_settings, **settings},
        )
        self.checked_capp = self.inspector.capp = checked_capp
        self.inspector.workers = inspected

    def update_workers(self, workername: str | None = None) -> Future[None]:
        """Inspect all workers, or one."""
        inspection: Future[None] = super().update_workers(workername)
        self._inspections.add(inspection)
        inspection.add_done_callback(self._inspections.discard)
        return inspection

    def forget_inspections(self, names: Iterable[str]) -> None:
        """Remove the inspection results of workers."""
        for name in names:
            self.workers.pop(name, None)

    def stop(self) -> None:
        """Stop without waiting; inspections in progress end without a result."""
        for inspection in self._inspections:
            inspection.cancel()
        super().stop()

    def join(self) -> None:
        """Wait for the threads that `stop` has told to stop."""
        if self.events.ident is not None:
            self.events.join()
        self.executor.shutdown(cancel_futures=True)

    async def finish_inspections(self, timeout: float) -> None:
        """Wait for inspections in progress.

        :param timeout: maximum seconds.
        """
        if self._inspections:
            await wait(self._inspections, timeout=timeout)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def concrete_handler(handler_class: type[RequestHandler], options: UnproxiedOptions) -> type[RequestHandler]:
    """Return the class that Flower instantiates for a handler: for the login page that of ``--auth_provider``."""
    if handler_class is not LoginHandler:
        return handler_class
    provider: type[RequestHandler] = (
        symbol_by_name(options.auth_provider) if options.auth_provider else NotFoundErrorHandler
    )
    return provider


def definitions(options: OptionParser) -> dict[str, Any]:
    """Return the definitions of Flower's and Tornado's options, by name with underscores.

    Each has ``type``, ``default``, ``multiple`` and ``help``. Tornado has no public API for this.
    """
    return {option.name.replace("-", "_"): option for option in options._options.values() if option.name != "help"}


class NoMetrics:
    """A replacement for the Prometheus metrics of Flower's state that records nothing."""

    def observe_task(self, worker: str, event: Mapping[str, Any], task: Task) -> None:
        """Ignore the event of a task."""

    def observe_worker(self, worker: str, event: Mapping[str, Any]) -> None:
        """Ignore the event of a worker."""

    def remove_workers(self, worker_names: Collection[str]) -> int:
        """Return the number of removed workers: 0."""
        return 0


def task_of(state: EventsState, uuid: str) -> Task:
    """Return a task of the state without marking it as recently used.

    :raises KeyError: the state does not contain the task.
    """
    return state.tasks.data[uuid]


def forget_counts(state: EventsState, is_gone: Callable[[str], bool]) -> None:
    """Remove the event counts of workers and clients, which the state never removes."""
    for name in [name for name in state.counter if is_gone(name)]:
        del state.counter[name]
