"""Roles: viewers and operators; Flower's `--read_only` applies to all users (mher/flower#685)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse
from tornado.routing import PathMatches
from tornado.web import RequestHandler

from flower_proxy.app import FlowerProxy
from tests.http.conftest import OPEN, Site
from tests.http.test_access_policy import HEADER, OAUTH, basic, example
from tests.http.test_control import FORM, TABLE
from tests.http.test_login import Jar

OPERATOR, VIEWER = basic("alice:pw"), basic("Bob:pw")
SETTINGS = {"basic_auth": ["alice:pw", "Bob:pw", "Stra\xdfe:pw"], "viewers": ["bob", "STRASSE"], "inspect_timeout": 1.0}
# The controls that Flower's templates hide in read-only mode
BUTTONS = {
    "/worker/w1@host": [
        'id="worker-shutdown"',
        'id="worker-pool-restart"',
        'id="worker-pool-grow"',
        'id="worker-pool-autoscale"',
        'id="worker-cancel-consumer-celery"',
        'id="worker-add-consumer"',
        'id="task-rate-limit-add"',
        'id="task-timeout-soft-add"',
    ],
    "/task/received": ['id="task-revoke"'],
    "/task/started": ['id="task-terminate"'],
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
def worker_and_tasks(app: FlowerProxy, event: Callable[..., None]) -> None:
    """An inspected worker, and two tasks."""
    event("worker-online")
    event("task-received", uuid="received", name="add")
    event("task-started", uuid="started", name="add")
    app.inspector.workers["w1@host"] = {
        **dict.fromkeys(app.inspector.inspect_methods, ()),
        "stats": {"broker": {}, "total": {}},
        "registered": ["add"],
        "active_queues": [{"name": "celery", "exclusive": False, "exchange": "", "durable": True, "routing_key": ""}],
        "conf": {},
    }
    queue = app.inspector.workers["w1@host"]["active_queues"][0]
    queue.update(dict.fromkeys(("no_ack", "alias", "queue_arguments", "binding_arguments", "auto_delete")))


def actions(app: FlowerProxy) -> list[str]:
    """Return a path for every route of the API that handles POST."""
    found = []
    for rule in app.wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        pattern = rule.matcher.regex.pattern
        if pattern.startswith("/api/") and "post" in vars(rule.target):
            found.append(example(pattern))
    assert len(found) >= 14
    return found


def post(site: Site, path: str, headers: dict[str, str], body: str = "") -> HTTPResponse:
    return site.fetch(path, method="POST", headers={**FORM, **headers}, body=body)


@pytest.mark.usefixtures("worker_and_tasks")
@pytest.mark.parametrize("path", BUTTONS)
@pytest.mark.parametrize("kind", ["kept"], indirect=True)
def test_viewers_see_pages_without_control_buttons(site: Site, path: str) -> None:
    operators, viewers = (site.page(path, headers=headers) for headers in (OPERATOR, VIEWER))
    for button in BUTTONS[path]:
        assert button in operators
        assert button not in viewers
    assert ">alice<" in operators
    assert ">Bob (read-only)<" in viewers


@pytest.mark.parametrize(
    "path",
    ["/", "/workers?json=1", "/tasks", "/broker", "/monitor", "/api/workers", "/api/tasks", "/api/history", "/metrics"],
)
def test_viewers_have_read_access(site: Site, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert site.fetch(path, method=method, headers=VIEWER).code == 200


def test_viewers_can_load_the_tasks_table_by_post(site: Site) -> None:
    assert post(site, "/tasks/datatable", VIEWER, TABLE).code == 200


@pytest.mark.parametrize("extra", [{}, {"Sec-Fetch-Site": "same-origin"}])
def test_viewers_cannot_control(site: Site, extra: dict[str, str]) -> None:
    for path in actions(site.app):
        response = post(site, path, {**VIEWER, **extra})
        assert (response.code, response.body) == (403, b"Refused: read-only access"), path


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
def test_viewers_cannot_use_unsafe_methods_anywhere(site: Site, method: str) -> None:
    for path in ("/tasks", "/api/workers", "/nothing"):
        body = None if method == "DELETE" else ""
        assert site.fetch(path, method=method, headers=VIEWER, body=body).code == 403


def test_operators_reach_the_handlers_of_the_api(site: Site) -> None:
    """The statuses are Flower's own, for unknown workers and tasks and for missing arguments."""
    statuses = {path: post(site, path, OPERATOR).code for path in actions(site.app)}
    assert statuses.pop("/api/task/revoke/some") == 200
    assert statuses.pop("/api/task/send-task/some") in (200, 400)
    assert {path: code for path, code in statuses.items() if code not in (400, 404, 503)} == {}
    assert statuses["/api/worker/shutdown/some"] == 404


@pytest.mark.parametrize(
    ("settings", "user", "may_control"),
    [
        pytest.param({**SETTINGS, "viewers": ["bob"]}, "Bob", False, id="another-case"),
        pytest.param({**SETTINGS, "viewers": ["BOB "]}, "Bob", False, id="trailing-space"),
        pytest.param({**SETTINGS, "viewers": ["STRASSE"]}, "Stra\xdfe", False, id="sharp-s"),
        pytest.param({**SETTINGS, "viewers": ["\uff22ob"]}, "Bob", False, id="full-width"),
        pytest.param({**SETTINGS, "viewers": ["bob"]}, "alice", True, id="another-user"),
        pytest.param({**SETTINGS, "viewers": []}, "Bob", True, id="no-viewers"),
    ],
)
def test_viewer_names_are_case_insensitive(site: Site, user: str, may_control: bool) -> None:
    assert (post(site, "/api/task/revoke/1", basic(f"{user}:pw")).code == 200) is may_control


@pytest.mark.parametrize("settings", [{**HEADER, "viewers": ["Bob@Host.example"]}])
def test_roles_apply_to_users_named_by_a_proxy(site: Site) -> None:
    for user, status in (("bob@host.example", 403), ("BOB@host.example", 403), ("alice@host.example", 200)):
        assert post(site, "/api/task/revoke/1", {"X-Forwarded-User": user}).code == status
        assert site.fetch("/tasks", headers={"X-Forwarded-User": user}).code == 200


@pytest.mark.parametrize("settings", [{**OAUTH, "viewers": ["ME@host.example"]}])
def test_roles_apply_to_users_of_an_oauth_provider(site: Site) -> None:
    jar = Jar(site)
    jar.log_in()
    page = jar.get("/tasks")
    assert b"me@host.example (read-only)" in page.body
    cookie = "; ".join(f"{name}={value}" for name, value in jar.cookies.items())
    assert post(site, "/api/task/revoke/1", {"Cookie": cookie}).code == 403


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        pytest.param({**SETTINGS, "read_only": True}, OPERATOR, id="operator"),
        pytest.param({**SETTINGS, "read_only": True}, VIEWER, id="viewer"),
        pytest.param({**OPEN, "read_only": True}, {}, id="no-auth"),
        pytest.param({**HEADER, "read_only": True}, {"X-Forwarded-User": "alice"}, id="named-by-a-proxy"),
    ],
)
def test_read_only_applies_to_all_users(site: Site, event: Callable[..., None], headers: dict[str, str]) -> None:
    event("task-received", uuid="received", name="add")
    for path in actions(site.app):
        assert post(site, path, headers).code == 403
    assert post(site, "/tasks/datatable", headers, TABLE).code == 200
    assert 'id="task-revoke"' not in site.page("/task/received", headers=headers)


class ForeignHandler(RequestHandler):
    """A handler with an unrelated attribute named permission."""

    permission = "everything"

    def post(self) -> None:
        self.write("done")


def test_an_unknown_permission_attribute_grants_nothing(app: FlowerProxy, site: Site) -> None:
    app.add_handlers(r".*", [("/elsewhere", ForeignHandler)])
    assert site.fetch("/elsewhere", method="POST").code == 401
    assert site.fetch("/elsewhere", method="POST", headers=VIEWER).code == 403
    assert site.fetch("/elsewhere", method="POST", headers=OPERATOR).code == 200
