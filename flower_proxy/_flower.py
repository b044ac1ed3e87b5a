"""Every private detail of Flower that flower-proxy leans on, in one place.

Checked on Flower 2.2.0. `tests/unit/test_contract.py` has a test for each, so that a release that moves one is noticed.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from asyncio import Future, wait
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.events.state import Task
from celery.utils.imports import symbol_by_name
from flower import __version__ as flower_version
from flower.api.tasks import TaskApply, TaskAsyncApply, TaskSend
from flower.api.workers import ListWorkers
from flower.app import Flower
from flower.events import Events, EventsState
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.utils import template
from flower.utils.search import TaskSearchEngine
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
    "PAGE_HEAD",
    "STOCK_FAMILIES",
    "TASK_BODIES",
    "TEMPLATE_FUNCTIONS",
    "USER_MENU",
    "WORKER_PAGES",
    "Amended",
    "BaseHandler",
    "EmbeddedFlower",
    "Events",
    "EventsState",
    "Flower",
    "FlowersLoop",
    "Healthcheck",
    "Lean",
    "LoginHandler",
    "Metrics",
    "NoMetrics",
    "NotFoundErrorHandler",
    "TaskSearch",
    "TasksDataTable",
    "UnproxiedOptions",
    "concrete_handler",
    "default_options",
    "definitions",
    "flower_settings",
    "flower_version",
    "forget_counts",
    "forget_task_names",
    "task_of",
]

CHECKED_ON = "2.2.0"
"""The newest Flower that the contract tests have seen."""

FLOWER_JS = "js/flower.js"
"""Flower's script, below its static folder."""

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
"""The handlers whose body holds a task's arguments, and which read it from ``request.body`` in `post` alone."""

WORKER_PAGES = (ListWorkers, WorkersView, WorkerView)
"""The handlers that show workers, out of the state or of inspections."""

TEMPLATE_FUNCTIONS = dict(inspect.getmembers(template, inspect.isfunction))
"""What Flower's templates may call."""

PAGE_HEAD = ("base.html", re.compile(r"<head>"))
"""The template of every page, and the one place in it behind which something can be added to the head."""

USER_MENU = ("navbar.html", re.compile(r'<ul class="[^"]*\bapp-nav-secondary\b[^"]*">'))
"""The template of the bar at the top, and the beginning of the list at its end."""

CONTROL_NAME = re.compile(r"(url_prefix\(\) \+ '/api/[\w/-]+/' \+ )(\w+)(?=,)")
"""In Flower's script: the address of a control action, and the name behind it, which is not encoded (P48)."""


class Amended(BaseHandler):
    """Stands in front of a handler of Flower's, and amends what it would ask Flower for."""

    def get_current_user(self) -> None:
        """Nobody, as long as `prepare` has not found out who."""

    def get_argument(self, name: str, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        value = super().get_argument(name, default, *args, **kwargs)
        # Flower answers 500 to an order that is empty
        return default if name == "sort_by" and value == "" else value

    @property
    def capp(self) -> Any:
        """The Celery application, whose control commands return valid replies only."""
        return self.application.checked_capp

    def get_broker(self) -> Any:
        """Return an object with a coroutine ``queues(names)`` for the Broker page and the API (P22)."""
        return self.application.queues


class Lean(BaseHandler):
    """Stands between a handler of Flower's and what it inherits: the same page for less."""

    def render(self, template_name: str, **kwargs: Any) -> Future[None]:
        """Render as Flower does, which looks its functions up anew for each page."""
        return RequestHandler.render(self, template_name, **TEMPLATE_FUNCTIONS, **kwargs)

    def set_default_headers(self) -> None:
        """Set none: ours has what Flower would set, and must not open the API to other sites (P8)."""


class UnproxiedOptions:
    """Flower's options, but for those by which Flower would handle prefix, forwarded headers and passwords itself.

    Flower's handlers, routes and server stay unaware of any prefix: they are mounted at the root. Nor do they ask who
    is asking: that has been done before.
    """

    url_prefix = ""
    xheaders = False
    # Flower takes it that somebody asks, and neither refuses its API nor opens it to other sites
    basic_auth = ("asked before",)

    def __init__(self, options: OptionParser) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)


class FlowersLoop:
    """The event loop as Flower gets it: Flower would start it, stop it, and have all of it use Flower's threads.

    These end with Flower, and a program that goes on could not even look up a host name then.
    """

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        self._executor: Executor | None = None

    def start(self) -> None:
        """Whoever runs the loop does."""

    def stop(self) -> None:
        """Whoever runs the loop does."""

    def set_default_executor(self, executor: Executor) -> None:
        self._executor = executor

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        return self._loop.run_in_executor(executor or self._executor, func, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class EmbeddedFlower(Flower):
    """Flower in an event loop that goes on without it, and whose end can be awaited.

    :param capp: the Celery application to watch.
    :param options: Flower's and ours.
    :param events: receives its events; a thread, which `start` starts.
    :param loop: the event loop, as the events have it too.
    :param checked_capp: the same for control commands, whose replies it validates.
    :param inspected: keeps the replies of workers to inspections.
    :param settings: of `tornado.web.Application`, in place of Flower's.
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
                "Flower %s is newer than %s, the last one flower-proxy was tested with", flower_version, CHECKED_ON
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
        inspection: Future[None] = super().update_workers(workername)
        self._inspections.add(inspection)
        inspection.add_done_callback(self._inspections.discard)
        return inspection

    def forget_inspections(self, names: Iterable[str]) -> None:
        """Drop the inspection results of workers."""
        for name in names:
            self.workers.pop(name, None)

    def join(self) -> None:
        """Wait until its threads have ended, which `stop` has asked for."""
        if self.events.ident is not None:
            self.events.join()
        self.executor.shutdown(cancel_futures=True)

    async def finish_inspections(self, timeout: float) -> None:
        """Wait for the answers of workers that it has asked for, at most so many seconds."""
        if self._inspections:
            await wait(self._inspections, timeout=timeout)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def concrete_handler(handler_class: type[RequestHandler], options: UnproxiedOptions) -> type[RequestHandler]:
    """Return the class that Flower really answers with: for the login page the one of ``--auth_provider``."""
    if handler_class is not LoginHandler:
        return handler_class
    provider: type[RequestHandler] = (
        symbol_by_name(options.auth_provider) if options.auth_provider else NotFoundErrorHandler
    )
    return provider


def definitions(options: OptionParser) -> dict[str, Any]:
    """Return what Flower and Tornado have defined, by name with underscores.

    Each definition has ``type``, ``default``, ``multiple`` and ``help``. Tornado has no public way to ask.
    """
    return {option.name.replace("-", "_"): option for option in options._options.values() if option.name != "help"}


class NoMetrics:
    """Takes the place of the Prometheus metrics that Flower's state fills, so that they stay empty."""

    def observe_task(self, worker: str, event: Mapping[str, Any], task: Task) -> None:
        """Count nothing."""

    def observe_worker(self, worker: str, event: Mapping[str, Any]) -> None:
        """Count nothing."""

    def remove_workers(self, worker_names: Collection[str]) -> int:
        """Remove nothing."""
        return 0


class TaskSearch(TaskSearchEngine):
    """Flower's search, for tasks with any keyword arguments: those that cannot be parsed are searched as text."""

    def _index(self, task_id: str, task: Any) -> None:
        if getattr(task, "kwargs", None) != "{}":
            with contextlib.suppress(TypeError, MemoryError, RecursionError):
                super()._index(task_id, task)
                return
        # Flower parses text only, and searches bytes as text. Parsing none would take half of the time for most tasks
        fields = {field: getattr(task, field, None) for field in ("uuid", "name", "state", "worker", "args", "result")}
        super()._index(task_id, SimpleNamespace(**fields, kwargs=str(task.kwargs).encode()))


def task_of(state: EventsState, uuid: str) -> Task:
    """Return a task of the state without marking it as used.

    :raises KeyError: the state does not have it.
    """
    return state.tasks.data[uuid]


def forget_counts(state: EventsState, is_gone: Callable[[str], bool]) -> None:
    """Drop the state's event counts of workers and clients, which it would keep for ever."""
    for name in [name for name in state.counter if is_gone(name)]:
        del state.counter[name]


def forget_task_names(state: EventsState, limit: int) -> None:
    """Drop what Celery's state keeps by task name or worker and no task in memory needs.

    :param limit: number of task names that Flower's list of them may have beyond those of tasks in memory.
    """
    for index in (state.tasks_by_type, state.tasks_by_worker):
        for name in [name for name, tasks in index.items() if not tasks]:
            del index[name]
    if len(state._seen_types) > limit:
        # In place, as the state's dispatcher holds its methods
        state._seen_types.intersection_update({task.name for task in state.tasks.values()})
