"""Every private detail of Flower that flower-proxy leans on, in one place.

Checked on Flower 2.2.0. `tests/test_contract.py` has a test for each, so that a release which moves one tells at once.
"""

from __future__ import annotations

import inspect
from asyncio import Future
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from typing import Any

from celery.events.state import Task, Worker
from celery.utils.imports import symbol_by_name
from flower import __version__ as flower_version
from flower.api.tasks import TaskApply, TaskAsyncApply, TaskSend
from flower.app import Flower
from flower.events import Events, EventsState
from flower.options import DEFAULT_CONFIG_FILE, default_options
from flower.urls import settings as flower_settings
from flower.utils import strtobool, template
from flower.utils.authentication import authenticate, validate_auth_option
from flower.utils.broker import validate_broker_api
from flower.views import BaseHandler
from flower.views.auth import LoginHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Healthcheck, Metrics
from flower.views.tasks import TASK_COLUMNS, TasksDataTable
from tornado.ioloop import IOLoop
from tornado.options import OptionParser
from tornado.web import RequestHandler

__all__ = [
    "CHECKED_ON",
    "DEFAULT_CONFIG_FILE",
    "FLOWER_JS",
    "FLOWER_VARIABLES",
    "STOCK_FAMILIES",
    "TASK_BODIES",
    "TASK_COLUMNS",
    "TEMPLATE_FUNCTIONS",
    "UNAUTHENTICATED_API",
    "BaseHandler",
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
    "TasksDataTable",
    "UnproxiedOptions",
    "authenticate",
    "concrete_handler",
    "default_options",
    "definitions",
    "flower_settings",
    "flower_version",
    "forget_counts",
    "last_heard",
    "strtobool",
    "task_of",
    "validate_auth_option",
    "validate_broker_api",
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

TEMPLATE_FUNCTIONS = dict(inspect.getmembers(template, inspect.isfunction))
"""What Flower's templates may call."""

UNAUTHENTICATED_API = "FLOWER_UNAUTHENTICATED_API"
"""The environment variable by which stock Flower opens its API to everybody, and to every web site (P8)."""

FLOWER_VARIABLES = {
    UNAUTHENTICATED_API,
    "FLOWER_GITHUB_OAUTH_DOMAIN",
    "FLOWER_GITLAB_AUTH_ALLOWED_GROUPS",
    "FLOWER_GITLAB_MIN_ACCESS_LEVEL",
    "FLOWER_GITLAB_OAUTH_DOMAIN",
    "FLOWER_OAUTH2_OKTA_BASE_URL",
}
"""What Flower reads from the environment beside its options."""


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


def task_of(state: EventsState, uuid: str) -> Task:
    """Return a task of the state without marking it as used.

    :raises KeyError: the state does not have it.
    """
    return state.tasks.data[uuid]


def last_heard(worker: Worker) -> float:
    """Return when a worker of the state was last heard of, in seconds since the epoch; 0.0 for never."""
    return float(max(worker.heartbeats[-1:] or [getattr(worker, "timestamp", None) or 0]))


def forget_counts(state: EventsState, is_gone: Callable[[str], bool]) -> None:
    """Drop the state's event counts of workers and clients, which it would keep for ever."""
    for name in [name for name in state.counter if is_gone(name)]:
        del state.counter[name]
