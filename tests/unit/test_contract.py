"""The private parts of Flower, Celery, kombu and Tornado that flower-proxy uses.

A failure shows what changed in a new release.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import flower.command
import flower.urls
import pytest
from celery import Celery
from celery.events import EventReceiver
from celery.events.state import State
from flower.api.tasks import GetQueueLengths, ListTasks
from flower.events import PrometheusMetrics
from flower.inspector import Inspector
from flower.utils import strtobool, tasks
from flower.utils.authentication import authenticate, validate_auth_option
from flower.utils.broker import validate_broker_api
from flower.utils.search import QuerySyntaxError, TaskSearchEngine
from flower.views.auth import LoginHandler, get_next_url
from flower.views.broker import BrokerView
from flower.views.error import NotFoundErrorHandler
from flower.views.tasks import TASK_COLUMNS, TasksDataTable
from hypothesis import given
from hypothesis import strategies as st
from kombu.mixins import ConsumerMixin
from kombu.transport import redis, virtual
from tornado.httpserver import _HTTPRequestContext
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.options import OptionParser
from tornado.routing import PathMatches
from tornado.web import Application

from flower_proxy._flower import (
    CHECKED_ON,
    CONTROL_NAME,
    FLOWER_JS,
    INITIAL_SEARCH,
    NAVIGATION,
    PAGE_HEAD,
    POLLING,
    TASK_STATE,
    TIME_ZONES,
    USER_MENU,
    WORKER_PAGES,
    WORKERS_PAGE,
    BaseHandler,
    Events,
    EventsState,
    Flower,
    NoMetrics,
    UnproxiedOptions,
    concrete_handler,
    default_options,
    definitions,
    flower_settings,
    flower_version,
    forget_counts,
    task_of,
)
from flower_proxy.auth.factory import matches_address
from flower_proxy.events import replies
from flower_proxy.events.broker import mailbox_of
from flower_proxy.events.control import ask
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.search import TaskQuery
from flower_proxy.settings import validators
from flower_proxy.settings.loader import FLOWER_VARIABLES
from flower_proxy.settings.options import OPTIONS

FLOWER = Path(flower.command.__file__).parent
SCRIPT = (FLOWER / "static" / FLOWER_JS).read_text()
BASE = (FLOWER / "templates" / "base.html").read_text()


def sources() -> str:
    return "\n".join(path.read_text() for path in FLOWER.rglob("*.py"))


def test_this_release_was_checked() -> None:
    """If this fails, read Flower's change log, fix the failures below, then raise CHECKED_ON."""
    assert flower_version == CHECKED_ON


def test_settings_of_flower() -> None:
    assert {"template_path", "static_path", "cookie_secret", "static_url_prefix", "login_url"} <= set(flower_settings)
    assert (flower_settings["static_url_prefix"], flower_settings["login_url"]) == ("/static/", "/login")
    assert flower_settings["xsrf_cookies"]


def test_flower_starts_stops_and_configures_the_event_loop() -> None:
    """`FlowersLoop` prevents this."""
    assert "self.io_loop.set_default_executor(self.executor)" in inspect.getsource(Flower.__init__)
    assert "self.io_loop.start()" in inspect.getsource(Flower.start)
    assert "self.io_loop.stop()" in inspect.getsource(Flower.stop)


def test_threads_and_inspections_of_flower() -> None:
    """`EmbeddedFlower` waits for these."""
    source = inspect.getsource(Flower)
    assert "self.executor = self.pool_executor_cls(" in source
    assert "self.events.stop()" in inspect.getsource(Flower.stop)
    assert "return self.inspector.inspect(workername)" in inspect.getsource(Flower.update_workers)
    assert "asyncio.ensure_future(" in inspect.getsource(Inspector.inspect)
    assert "return self.inspector.workers" in source
    assert "self.workers = collections.defaultdict(dict)" in inspect.getsource(Inspector)


def test_inspector_uses_the_given_application_and_dictionary() -> None:
    """`CheckedCelery` validates the replies, and `Inspected` limits them."""
    source = inspect.getsource(Inspector)
    assert "inspect = self.capp.control.inspect(timeout=self.timeout, destination=destination)" in source
    assert "if result is None or 'error' in result:" in source
    assert "info = self.workers[workername]" in source
    assert set(re.findall(r"self\.capp\.(\w+)", source)) == {"control", "connection_for_read"}
    assert isinstance(inspect.getattr_static(BaseHandler, "capp"), property)
    assert "sorted(queues)" in inspect.getsource(BaseHandler.get_active_queue_names)
    # Handlers send control commands only through self.capp
    assert set(re.findall(r"(\S*)\.control\.", sources())) == {"self.capp"}


def test_fields_of_replies_used_by_the_worker_page() -> None:
    """`validate_reply` checks these."""
    page = (FLOWER / "templates" / "worker.html").read_text()
    read = {
        owner: set(re.findall(rf"{owner}\['(\w+)'\]", page))
        for owner in (r"worker", r"worker\['stats'\]", r"queue", r"task", r"task\['request'\]")
    }
    assert read == {
        r"worker": {"name", "stats"},
        r"worker\['stats'\]": {"autoscaler", "total", "rusage"},
        r"queue": set(replies._QUEUE_FIELDS),
        r"task": {"name", "id", "acknowledged", "worker_pid", "request", "args", "kwargs"},
        r"task\['request'\]": {"name", "id", "args", "kwargs"},
    }
    assert "(worker['stats'].get('consumer', None) or worker['stats'])['broker'].items()" in page
    assert "worker['stats'].get('pool', {}).items()" in page
    assert set(re.findall(r"name (?:in|==) (\(.*\)|'\w+') else", page)) == {"('utime', 'stime')", "'uptime'"}
    assert set(Inspector.inspect_methods) == set(replies._CHECKS)


def test_control_messages_have_the_format_of_kombu() -> None:
    with Celery(broker="memory://", set_as_current=False) as capp, capp.connection_for_write() as connection:
        mailbox = mailbox_of(capp, connection)
        sent = []
        with mailbox.Node("w@h", channel=connection.default_channel).listen(
            callback=lambda body, message: sent.append((body, message.headers))
        ):
            ask(mailbox, "conf", {"a": 1}, destination=["w@h"], timeout=0.2, rejections=Rejections("a reply", ()))
            mailbox.call(["w@h"], "conf", {"a": 1}, timeout=0.2)
    (actual, headers), (expected, expected_headers) = sent
    for body in (actual, expected):
        assert body.pop("ticket")
    assert actual == expected
    assert headers.keys() == expected_headers.keys()


def test_handlers_that_show_workers() -> None:
    """Workers are purged before these respond."""
    handlers = {getattr(route, "handler_class", None) or route[1] for route in flower.urls.handlers}
    pattern = re.compile(r"\b(application|state|events)\.workers\b")
    reads = {handler for handler in handlers if pattern.search(inspect.getsource(handler))}
    assert reads == set(WORKER_PAGES)


def test_state_does_not_mark_workers_as_recently_used() -> None:
    """flower-proxy's `State` does so for the worker of each event."""
    source = inspect.getsource(State._create_dispatcher)
    assert "get_worker, get_task = workers.data.__getitem__, tasks.data.__getitem__" in source
    assert "add_type = self._seen_types.add" in source


def test_last_route_is_the_catch_all() -> None:
    pattern, handler = flower.urls.handlers[-1]
    assert (pattern, handler) == (".*", NotFoundErrorHandler)


def test_wildcard_router_has_routes_as_patterns() -> None:
    rules = Application(flower.urls.handlers).wildcard_router.rules
    assert all(isinstance(rule.matcher, PathMatches) for rule in rules)
    patterns = {rule.matcher.regex.pattern for rule in rules if isinstance(rule.matcher, PathMatches)}
    assert {"/$", "/workers$", "/tasks$", "/task/(.+)$", "/metrics$"} < patterns
    assert rules[-1].target is NotFoundErrorHandler


def test_signatures_of_the_request_routing_methods() -> None:
    assert list(inspect.signature(Application.find_handler).parameters) == ["self", "request", "kwargs"]
    delegate = inspect.signature(Application.get_handler_delegate).parameters
    assert list(delegate) == ["self", "request", "target_class", "target_kwargs", "path_args", "path_kwargs"]


def test_render_passes_functions_and_the_prefix_only() -> None:
    """`FlowerDefaults.render` replaces it."""
    source = inspect.getsource(BaseHandler.render)
    assert [line.strip() for line in source.splitlines() if "kwargs.update" in line] == [
        "kwargs.update(functions)",
        "kwargs.update(url_prefix=app_options.url_prefix)",
    ]
    assert "inspect.getmembers(template, inspect.isfunction)" in source


def test_default_headers_are_cors_and_nosniff_only() -> None:
    """`FlowerDefaults.set_default_headers` replaces it."""
    headers = re.findall(r"set_header\(.([\w-]+)", inspect.getsource(BaseHandler.set_default_headers))
    assert {name for name in headers if not name.startswith("Access-Control-")} == {"X-Content-Type-Options"}


def test_routes_are_built_from_the_given_options() -> None:
    assert "options.url_prefix" in inspect.getsource(Flower.__init__)
    assert "kwargs.update(handlers=handlers)" in inspect.getsource(Flower.__init__)


def test_modules_that_read_the_prefix() -> None:
    """Another one would see an empty prefix."""
    readers = {path.name for path in FLOWER.rglob("*.py") if "url_prefix" in path.read_text()}
    assert readers == {"__init__.py", "app.py", "auth.py", "command.py", "options.py", "urls.py"}


def test_option_table_matches_flower_and_tornado() -> None:
    """If this fails, add the new option, type or default to the table."""
    declared = definitions(default_options)
    assert declared.keys() == {option.name for option in OPTIONS.values() if not option.own}
    # flower-proxy's buckets resolve tasks that take minutes; the secret is random
    other_default = {"task_runtime_metric_buckets", "cookie_secret"}
    for name, theirs in declared.items():
        option = OPTIONS[name]
        assert (option.type, option.multiple) == (theirs.type, theirs.multiple), name
        assert (option.default == theirs.default) == (name not in other_default), name
    assert len(OPTIONS["cookie_secret"].default) == len(declared["cookie_secret"].default)


def test_flower_reads_three_options_from_tornados_global_parser() -> None:
    """FlowerProxy has its own parser: `concrete_handler`, `forget_workers` and the recorder replace these."""
    reads = {}
    for path in {*FLOWER.rglob("*.py")} - {FLOWER / "command.py", FLOWER / "options.py"}:
        source = path.read_text()
        if re.search(r"^from .*\boptions import .*\boptions\b", source, re.MULTILINE):
            reads[path.name] = set(re.findall(r"(?<![.\w])options\.(\w+)", source))
    assert reads == {
        "auth.py": {"auth_provider"},
        "workers.py": {"purge_offline_workers"},
        "events.py": {"task_runtime_metric_buckets"},
    }


def accepts(check: Callable[[str], object], text: str) -> bool:
    try:
        check(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "text", ["", *["y", "Yes", "t", "TRUE", "on", "1", "n", "no", "F", "false", "Off", "0", "2", "ja"]]
)
def test_boolean_values_match_flower(text: str) -> None:
    assert accepts(validators.parse_bool, text) == accepts(strtobool, text)
    if accepts(strtobool, text):
        assert validators.parse_bool(text) == bool(strtobool(text))


@pytest.mark.parametrize(
    "text",
    [
        *("http://u:p@host:15672/api/", "https://host", "HTTP://host", "http://[::1]:1/", "host:15672", "ftp://host"),
        *("http://", "http:///api", "//host/api", "", " http://host", "http://[::1", "http:host"),
    ],
)
def test_broker_api_urls_match_flower(text: str) -> None:
    assert accepts(validators.broker_api, text) == accepts(validate_broker_api, text)


def test_columns_of_the_tasks_page_match_flower() -> None:
    assert tuple(TASK_COLUMNS) == validators.TASK_COLUMNS


PATTERNS = [
    *("a@x.org", "a@x.org|b@x.org", ".*@x.org", "a.*@x.org", "a.*z@x.org", "*@x.org", "a*@x.org", "a", "|", "a|"),
    *(".*", "a@.*", "a@x.*", "*", ".*@x|b", ".*.*@x", ".**@x", "a@b@.*", "a@.*@x", "(a+)@x", "\\.*@x", "A.*@X"),
]
ADDRESSES = ["", "a", "a@x.org", "b@x.org", "ab@x.org", "aé@x.org", "a b@x.org", "a\n@x.org", "a@x.org\n", "az@x.org"]
ADDRESSES += ["a@y@x.org", "a@xxorg", "a+b@x", "*@x.org", "a*@x.org", "A@X", "AB@X", "\\@x", "a|b", "aa@x"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_auth_patterns_match_the_same_addresses_as_flower(pattern: str) -> None:
    assert validators.is_auth_pattern(pattern) == bool(validate_auth_option(pattern))
    for address in ADDRESSES:
        assert matches_address(pattern, address) == bool(authenticate(pattern, address)), address


SHORT = st.text("ab.*|@+\\(^é ", max_size=8)


@given(pattern=SHORT, address=SHORT)
def test_generated_auth_patterns_match_the_same_addresses_as_flower(pattern: str, address: str) -> None:
    assert validators.is_auth_pattern(pattern) == bool(pattern and validate_auth_option(pattern))
    assert matches_address(pattern, address) == bool(authenticate(pattern, address))


def test_environment_variables_read_by_flower() -> None:
    read = set(re.findall(r"""(?:environ\.get|getenv)\(\s*['"](FLOWER_\w+)""", sources()))
    options = {f"FLOWER_{name.upper()}" for name in definitions(default_options)}
    assert read - options == FLOWER_VARIABLES


def test_login_page_is_that_of_the_provider() -> None:
    parser = OptionParser()
    parser.define("auth_provider", type=str)
    options = UnproxiedOptions(parser)
    assert concrete_handler(LoginHandler, options) is NotFoundErrorHandler
    parser.auth_provider = "flower.views.auth.GithubLoginHandler"
    assert concrete_handler(LoginHandler, options).__name__ == "GithubLoginHandler"
    assert "instantiate(options.auth_provider or NotFoundErrorHandler" in inspect.getsource(LoginHandler)


def test_login_reads_next_by_get_argument() -> None:
    calls = []

    def get_argument(name: str, default: str) -> str:
        calls.append((name, default))
        return "/tasks"

    handler = SimpleNamespace(
        application=SimpleNamespace(options=UnproxiedOptions(OptionParser())), get_argument=get_argument
    )
    assert get_next_url(handler) == "/tasks"
    assert calls == [("next", "/")]


@pytest.mark.parametrize("handler", [BrokerView, GetQueueLengths])
def test_queues_come_from_get_broker(handler: type[BaseHandler]) -> None:
    class Broker:
        async def queues(self, names: list[str]) -> list[dict[str, object]]:
            return [{"name": name, "messages": 7} for name in names]

    shown: list[object] = []
    fake = SimpleNamespace(
        application=SimpleNamespace(broker_uri="memory://"),
        current_user="someone",
        get_broker=Broker,
        get_active_queue_names=lambda: ["mail"],
        render=lambda _, *, queues, **__: shown.append(queues),
        write=lambda answer: shown.append(answer["active_queues"]),
    )
    asyncio.run(handler.get(fake))
    assert shown == [[{"name": "mail", "messages": 7}]]


def test_places_for_corrections_in_templates() -> None:
    for name, place in (PAGE_HEAD, TASK_STATE, USER_MENU, WORKERS_PAGE):
        assert len(place.findall((FLOWER / "templates" / name).read_text())) == 1
    assert re.search(r'<input type="hidden" value="\{\{ url_prefix or \'\' \}\}" id="url_prefix">', BASE)
    assert f"static_url('{FLOWER_JS}')" in BASE
    # The corrected functions use jQuery
    assert BASE.index("jquery") < BASE.index(FLOWER_JS)


def test_places_for_corrections_in_the_script() -> None:
    assert set(re.findall(r"active_page\('([^']+)'\)", SCRIPT)) == {"/", "/workers", "/tasks"}
    assert "xhr.setRequestHeader('X-XSRFToken', getCookie('_xsrf'))" in SCRIPT
    assert set(re.findall(r"getCookie\('(\w+)'\)", SCRIPT)) == {"_xsrf"}


def test_names_are_not_encoded_in_urls_of_control_actions() -> None:
    addresses = {match[1].split("'")[1] for match in CONTROL_NAME.finditer(SCRIPT)}
    assert addresses == set(re.findall(r"'(/api/[^']+/)' \+", SCRIPT))


def test_flower_uses_one_method_of_moment_timezone() -> None:
    assert f"static_url('{TIME_ZONES}')" in BASE
    assert re.findall(r"\.tz\(.*", SCRIPT) == [".tz(tz).fromNow();", ".tz(tz).format('YYYY-MM-DD HH:mm:ss.SSS');"]
    assert "moment.tz" not in SCRIPT
    templates = "".join(path.read_text() for path in (FLOWER / "templates").glob("*.html"))
    assert "moment" not in templates.replace(BASE, "")


def test_one_timer_reloads_a_table() -> None:
    assert [match.groups() for match in POLLING.finditer(SCRIPT)] == [("workersTable", "autorefresh_interval")]
    assert "setInterval" not in POLLING.sub("", SCRIPT)
    assert "url: url_prefix() + '/workers?json=1'" in SCRIPT


def test_links_to_the_tasks_page_become_a_search() -> None:
    assert len(INITIAL_SEARCH.findall(SCRIPT)) == 1


def test_the_first_list_of_the_navigation_bar_has_the_pages() -> None:
    (found,) = NAVIGATION[1].findall((FLOWER / "templates" / NAVIGATION[0]).read_text())
    assert re.findall(r"reverse_url\('(\w+)'\)", found) == ["workers", "tasks", "broker"]
    assert found.endswith("</li>")


def test_only_flower_js_uses_the_xsrf_cookie() -> None:
    assert "_xsrf" not in (FLOWER / "static" / "js" / "theme.js").read_text()
    assert "xsrf_form_html" not in "".join(path.read_text() for path in (FLOWER / "templates").glob("*.html"))


def test_peer_of_a_unix_socket_is_0_0_0_0(io_loop: IOLoop) -> None:
    local, remote = socket.socketpair()
    with remote:
        stream = IOStream(local)
        assert _HTTPRequestContext(stream, (), "http").remote_ip == "0.0.0.0"
        stream.close()


# Events


WORKER = "w1@host"


def event(kind: str, clock: int = 1, **fields: object) -> dict[str, object]:
    common = {"type": kind, "clock": clock, "hostname": WORKER, "timestamp": 1000.0 + clock, "local_received": 2000.0}
    return {**common, **fields}


@pytest.fixture
def state() -> EventsState:
    state = EventsState(max_tasks_in_memory=2)
    state.metrics = NoMetrics()
    return state


def test_event_receiver_of_flower() -> None:
    """`flower_proxy.events.receiver.Receiver` overrides `run` and `on_event` only."""
    parameters = inspect.signature(Events.__init__).parameters
    assert list(parameters)[1:3] == ["capp", "io_loop"]
    source = inspect.getsource(Events)
    assert 'handlers={"*": self.on_event}' in source
    assert "self.io_loop.add_callback(partial(self.state.event, event))" in source
    assert "self.timer = PeriodicCallback(self.on_enable_events" in source
    # Without it, Flower neither loads nor saves the state
    assert parameters["persistent"].default is False
    assert inspect.iscoroutinefunction(Events.on_enable_events)
    assert "threading.Thread.start(self)" in inspect.getsource(Events.start)


def test_methods_called_on_the_metrics_of_the_state() -> None:
    """`NoMetrics` implements these."""
    called = {name: set(parameters(method)) for name, method in vars(NoMetrics).items() if inspect.isfunction(method)}
    assert set(re.findall(r"\.metrics\.(\w+)\(", sources())) == set(called)
    assert all(set(parameters(getattr(PrometheusMetrics, name))) == names for name, names in called.items())
    assert "state.metrics.remove_workers(offline_workers)" in inspect.getsource(Flower.purge_offline_worker_metrics)


def parameters(method: Callable[..., object]) -> list[str]:
    return list(inspect.signature(method).parameters)


def test_metrics_are_not_pickled_with_the_state(state: EventsState) -> None:
    state.event(event("task-received", uuid="1", name="add"))
    after = pickle.loads(pickle.dumps(state))
    assert not isinstance(after.metrics, NoMetrics)
    assert [(task.state, task.worker.hostname) for _, task in after.itertasks()] == [("RECEIVED", WORKER)]


def test_state_has_a_task_after_its_event(state: EventsState) -> None:
    for number in "123":
        state.event(event("task-received", int(number), uuid=number, name="add"))
        task = task_of(state, number)
        assert (task.uuid, task.name, task.state) == (number, "add", "RECEIVED")
        assert task.worker.hostname == WORKER
    # It does not mark the task as recently used
    task_of(state, "2")
    state.event(event("task-received", 4, uuid="4", name="add"))
    assert list(state.tasks) == ["3", "4"]


def test_flower_uses_the_latest_heartbeat_as_time_of_the_last_event() -> None:
    """`Worker.heartbeats` provides it."""
    assert "max(worker.heartbeats)" in inspect.getsource(Flower.purge_offline_worker_metrics)


def test_events_are_counted_by_sender_and_type(state: EventsState) -> None:
    state.event(event("worker-heartbeat"))
    state.event(event("task-sent", uuid="1", name="add", hostname="gen1@host"))
    assert state.counter == {WORKER: {"worker-heartbeat": 1}, "gen1@host": {"task-sent": 1}}
    forget_counts(state, "gen1@host".__eq__)
    assert list(state.counter) == [WORKER]


def test_flowers_handlers_search_with_the_engine_of_the_state() -> None:
    """`TaskSearchMixin` calls them twice, and its exception passes through them."""
    assert list(inspect.signature(TaskSearchEngine.search).parameters)[2:] == list(TaskQuery.__dataclass_fields__)
    assert inspect.getsource(tasks).count("events.state.search_engine.search(") == 1
    for handler, call in ((ListTasks, "tasks.iter_tasks("), (TasksDataTable, "search_tasks(")):
        source = inspect.getsource(handler.get)
        assert source.count(call) == 1
        assert set(re.findall(r"except (\w+)", source)) <= {"QuerySyntaxError", "ValueError"}
    assert issubclass(QuerySyntaxError, ValueError)


def test_message_handling_of_celery_and_kombu() -> None:
    """`KombuSource` overrides these steps of kombu, so that no message ends the connection."""
    consumers = inspect.getsource(EventReceiver.get_consumers)
    assert "Consumer(queues=[self.queue]" in consumers
    assert "no_ack=True" in consumers
    assert "accept=self.accept" in consumers
    assert "on_decode_error=self.on_decode_error" in inspect.getsource(ConsumerMixin.Consumer)
    receive = inspect.getsource(redis.Channel._receive_one)
    assert "Cannot process event on channel" in receive
    assert "raise Empty" in receive
    assert "self._receive_one(c)" in inspect.getsource(redis.Channel._receive)
    assert "self.Message(raw_message, channel=self)" in inspect.getsource(virtual.Channel.basic_consume)
