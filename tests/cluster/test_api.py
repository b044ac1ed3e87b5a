"""Commands of examples/api/README.md, run in a shell against a real broker and real workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from celery import Celery
from tornado.web import RequestHandler

from flower_proxy import FlowerProxy, make_options
from flower_proxy.check.report import PATH
from tests.support.markdown import blocks, rows
from tests.support.processes import PROJECT, program, wait_until
from tests.support.programs import Broker, launch, redis, worker_process

pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

PAGE = (PROJECT / "examples" / "api" / "README.md").read_text()
PREFIX = "/flower"
METHODS = ("get", "post", "put", "patch", "delete")
# Routes of Flower's pages; all others belong to the API
PAGES = {"/", "/workers", "/worker/(.+)", "/task/(.+)", "/tasks", "/tasks/datatable", "/broker"}
PAGES |= {"/monitor", "/static/(.*)", r"/(favicon\.ico)", r"/(robots\.txt)", "/logout", ".*"}


class Response(NamedTuple):
    """What curl received.

    :ivar path: of the request, without prefix and query.
    """

    status: int
    method: str
    path: str
    body: str


class Example(NamedTuple):
    """A command of the page and its documented response."""

    command: str
    language: str
    response: str


def examples() -> list[Example]:
    return [
        Example(command.text, *shown) for command, shown in pairwise(blocks(PAGE)) if command.text.startswith("curl ")
    ]


def differences(shown: Any, found: Any, where: str = "") -> Iterator[str]:
    """Compare a response with the documented one, which may omit fields and have other numbers."""
    if isinstance(shown, dict) and isinstance(found, dict):
        for name, value in shown.items():
            if name in found:
                yield from differences(value, found[name], f"{where}/{name}")
            else:
                yield f"{where}/{name} is missing"
    elif isinstance(shown, list) and isinstance(found, list):
        for value in shown:
            if all(any(differences(value, one)) for one in found):
                yield f"{where}: no {value} in {found}"
    elif _is_number(shown) and _is_number(found):
        return
    elif shown != found:
        yield f"{where}: {shown!r} is documented, {found!r} was received"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass
class Api:
    """A flower-proxy and its responses to the commands of the page, in order."""

    url: str
    responses: list[Response] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def run(self, command: str) -> Response:
        """Run a command in a shell."""
        assert command.startswith("curl ")
        write_out = r"\n%{http_code} %{method} %{url_effective}"
        line = f"{program('curl')} --silent --show-error -w {shlex.quote(write_out)} {command.removeprefix('curl ')}"
        environment = {**os.environ, "FLOWER": self.url}
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, (line, done.stderr)
        body, _, rest = done.stdout.rpartition("\n")
        status, method, url = rest.split(" ", 2)
        return Response(int(status), method, urlsplit(url).path.removeprefix(PREFIX), body)

    def compare(self, example: Example) -> None:
        """Run a command and record the differences; a GET is repeated until events have arrived."""
        response = self.run(example.command)
        found = list(self._compare(example, response))
        if found and response.method == "GET":
            with contextlib.suppress(TimeoutError):
                wait_until(
                    lambda: not list(self._compare(example, self.run(example.command))),
                    timeout=20,
                    what="the documented response",
                )
                found = []
        self.responses.append(response)
        self.differences += [f"{example.command.strip()}: {difference}" for difference in found]

    def _compare(self, example: Example, response: Response) -> Iterator[str]:
        if response.status != (400 if '"error"' in example.response else 200):
            yield f"{response.status}, {response.body}"
        elif example.language == "text":
            lines = response.body.splitlines()
            for shown in example.response.splitlines():
                if not any(line.startswith(shown) for line in lines):
                    yield f"no line {shown!r} in {lines}"
        else:
            shown, found = json.loads(example.response), json.loads(response.body)
            if response.path == "/api/tasks" and shown.keys() != found.keys():
                yield f"{list(shown)} are documented, {list(found)} were received"
            yield from differences(shown, found)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with redis(folder) as broker, _workers(broker, folder):
        options = ["--basic_auth=me:secret,bob:secret", "--viewers=bob"]
        with launch("ours", broker, folder, url_prefix=PREFIX, authenticates=False, options=options) as flower:
            api = Api(f"http://127.0.0.1:{flower.address.port}{PREFIX}")
            known = 'curl --user me:secret "$FLOWER/api/workers?refresh=true"'
            wait_until(lambda: {"w1@host", "w2@host"} <= json.loads(api.run(known).body).keys(), what="workers reply")
            for example in examples():
                api.compare(example)
            yield api


@contextlib.contextmanager
def _workers(broker: Broker, folder: Path) -> Iterator[None]:
    """Start the workers of the page; only the second one, which runs no tasks, has --autoscale."""
    restarts = ["--", "worker.pool_restarts=yes"]
    scales = ["-Q", "batch", "--autoscale=3,1"]
    with (
        worker_process(broker, folder / "w1", name="w1@host", options=restarts),
        worker_process(broker, folder / "w2", name="w2@host", options=scales),
    ):
        yield


def test_commands_get_the_documented_responses(api: Api) -> None:
    assert api.differences == []


def test_each_endpoint_is_documented_with_a_command(api: Api) -> None:
    shown = [(response.method, response.path) for response in api.responses]
    missing = [
        (method, route)
        for route, method in asyncio.run(endpoints())
        if not any(one == method and re.fullmatch(route, path) for one, path in shown)
    ]
    assert missing == []


async def endpoints() -> list[tuple[str, str]]:
    """Return route and method of each API endpoint of flower-proxy."""
    with Celery(broker="memory://") as capp:
        app = FlowerProxy(capp=capp, options=make_options(no_auth=True))
        found = [
            (rule.matcher.regex.pattern.removesuffix("$"), method.upper())
            for rule in app.wildcard_router.rules
            for method in METHODS
            if getattr(rule.target, method) is not getattr(RequestHandler, method)
        ]
        await app.close()
    assert {route for route, _ in found} >= PAGES
    # The report is served at any path below its route
    check = f"{PATH}(/.+)?"
    return [(check if route.startswith(PATH) else route, method) for route, method in found if route not in PAGES]


def test_each_command_has_a_documented_response() -> None:
    commands = re.findall(r"^curl ", PAGE, re.MULTILINE)
    assert len(examples()) == len(commands)


@pytest.mark.parametrize(("status", "example"), [(row[0], row[2]) for row in rows(PAGE, "status") if row[2]])
def test_errors_have_the_documented_status(api: Api, status: str, example: str) -> None:
    assert api.run(example.strip("`")).status == int(status)


@pytest.mark.parametrize("row", rows(PAGE, "search"), ids=lambda row: row[0])
def test_searches_find_the_documented_tasks(api: Api, row: list[str]) -> None:
    query, finds = row[0].strip("`"), row[1]
    tasks = set() if finds.startswith("nothing") else set(finds.split(", "))
    response = api.run(search("/api/tasks", search=query))
    assert response.status == (400 if finds.endswith("400") else 200), response.body
    assert set(json.loads(response.body)) - {"error"} == tasks
    # The request of the Tasks page
    table = {"draw": "1", "start": "0", "length": "10", "order[0][column]": "0", "columns[0][data]": "name"}
    found = json.loads(api.run(search("/tasks/datatable", **table, **{"search[value]": query})).body)
    assert {task["uuid"] for task in found["data"]} == tasks
    assert ("searchError" in found) == finds.endswith("400")


def search(path: str, **parameters: str) -> str:
    words = [f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in parameters.items()]
    return f'curl --user me:secret -G {" ".join(words)} "$FLOWER{path}"'


@pytest.mark.parametrize("row", rows(PAGE, "task id"), ids=lambda row: row[0])
def test_searched_tasks_are_those_of_the_table(api: Api, row: list[str]) -> None:
    uuid, *fields = (cell.strip("`") for cell in row)
    task = json.loads(api.run(f'curl --user me:secret "$FLOWER/api/task/info/{uuid}"').body)
    assert [task[name] or "" for name in ("name", "args", "kwargs", "state", "result")] == fields
