"""``make example``, Django and Flower deployed together behind nginx, in a real browser."""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import signal
import socket
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.support.browser import Browser
from tests.support.configurations import printed
from tests.support.journey import Journey, Place
from tests.support.processes import (
    PROJECT,
    Address,
    Answer,
    basic,
    free_port,
    nothing_is_left,
    program,
    request,
    running,
    wait_until,
)

FOLDER = PROJECT / "examples" / "django"
COMMAND = [sys.executable, str(FOLDER / "run.py")]
UNITS = sorted((FOLDER / "systemd").glob("*.service"))
README = (FOLDER / "README.md").read_text()
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
ANNOUNCED = re.compile(
    r"Django  (?P<origin>https://\S+)/ +public\n"
    r"Admin   (?P=origin)/admin/ +(?P<login>user (?P<user>\S+), password (?P<password>\S+))\n"
    r"Flower  (?P=origin)/flower/ +(?P=login)\n"
    r"The browser warns: .*\n"
    r"Logs    (?P<root>\S+)/var/log/server\n"
    r"(?:From another machine, open a tunnel to this one \(HOST\): (?P<tunnel>ssh .*)\n)?"
    r"Press Ctrl-C to stop\n"
)
DISPLAYED = {"DISPLAY": ":0", "SSH_CONNECTION": ""}
as_run = runpy.run_path(str(FOLDER / "run.py"))["as_run"]


@dataclass(frozen=True)
class Example:
    """The running example.

    :ivar root: the folder that replaces the root of the file system.
    """

    process: subprocess.Popen[bytes]
    log: Path
    address: Address
    root: Path
    credentials: str

    @property
    def origin(self) -> str:
        return f"https://localhost:{self.address.port}"

    @property
    def place(self) -> Place:
        return Place(self.origin, "/flower")

    def ask(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return request(self.address, path, headers=basic(self.credentials) if headers is None else headers)

    def manage(self, code: str) -> str:
        """Run code in Django's shell, in the environment of the example, and return its output."""
        pid = (self.root / "supervisord.pid").read_text().strip()
        entries = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        command = [sys.executable, "manage.py", "shell", "-v", "0", "-c", code]
        environ = {name: value for name, _, value in entries}
        result = subprocess.run(
            command, cwd=self.root / "srv/server", env=environ, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    def worker(self) -> int:
        """Return the process id of the worker that Flower shows as online, or 0."""
        workers = json.loads(self.ask("/flower/workers?json=1").text)["data"]
        return next((int(worker["pid"]) for worker in workers if worker["status"]), 0)

    def state(self, task: str) -> str:
        answer = self.ask(f"/flower/api/task/info/{task}")
        return str(json.loads(answer.text)["state"]) if answer.status == 200 else "unknown"


def files_outside() -> set[Path]:
    """Return the files in other folders where the programs may write."""
    return {*FOLDER.rglob("*"), *(Path.home() / ".gunicorn").glob("*")}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example; in the end, Ctrl-C stops it, and no process or file remains."""
    folder, address = tmp_path_factory.mktemp("temporary"), Address(free_port(), tls=True)
    log = tmp_path_factory.mktemp("example") / "log"
    before = files_outside()
    with running(
        [*COMMAND, f"--port={address.port}"],
        log=log,
        ready=lambda: ANNOUNCED.search(log.read_text()),
        env={"TMPDIR": str(folder), "FLOWER_URL_PREFIX": "not-for-the-example", **DISPLAYED},
    ) as process:
        announced = ANNOUNCED.search(log.read_text())
        assert announced is not None
        assert announced["origin"] == f"https://localhost:{address.port}"
        assert announced["tunnel"] is None
        credentials = f"{announced['user']}:{announced['password']}"
        yield Example(process, log, address, Path(announced["root"]), credentials)
        # A terminal sends SIGINT to the whole foreground process group
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert log.read_text().endswith("\nStopping\n")
        nothing_is_left(folder)
        assert files_outside() == before
        assert not address.accepts()


def log_in(browser: Browser, example: Example) -> None:
    """Log in as staff, with the link of Django's page."""
    browser.open(example.origin + "/")
    browser.click("Log in", by=By.LINK_TEXT)
    user, _, password = example.credentials.partition(":")
    browser.wait(lambda: browser.find_all("#id_username"), what="the login form")
    browser.find("#id_username").send_keys(user)
    browser.find("#id_password").send_keys(password)
    browser.click("input[type=submit]")
    browser.wait(lambda: browser.find_all("button[value=add]"), what="the page with buttons")


def send(browser: Browser, example: Example, task: str) -> str:
    """Click a button of Django's page, and return the id of the task."""
    browser.open(example.origin + "/")
    browser.click(f"button[value={task}]")
    browser.wait(
        lambda: f"Sent server.tasks.{task} as " in browser.text(".message"), what="the message that it was sent"
    )
    return browser.text(".message").rpartition(" ")[2]


def see_task(browser: Browser, example: Example, uuid: str, state: str) -> None:
    """Wait until the task has this state, and open its page in Flower."""
    wait_until(lambda: example.state(uuid) == state, what=f"the task's state is {state}")
    browser.open(f"{example.place.url}/task/{uuid}")
    browser.wait(lambda: browser.text(".task-uuid-value code") == uuid, what="the task's page")


def assert_no_faults(browser: Browser, example: Example) -> None:
    """Assert that since the last call no request failed or left the origin, and no warning was logged."""
    requests = browser.traffic()
    assert requests
    assert [str(sent) for sent in requests if sent.failure or (sent.status or 0) >= 400] == []
    assert {sent.url for sent in requests if not sent.url.startswith(example.origin + "/")} == set()
    assert [str(message) for message in browser.console() if message.level in ("WARNING", "SEVERE")] == []


def test_django_and_flower_work_on_one_host(example: Example, browser: Browser, tmp_path: Path) -> None:
    browser.open(example.origin + "/")
    # Set by the stylesheet, which nginx serves
    browser.wait(lambda: browser.style("nav", "textAlign") == "right", what="a styled page")
    log_in(browser, example)
    tasks = {task: send(browser, example, task) for task in ("add", "report", "fail")}

    browser.click("Admin", by=By.LINK_TEXT)
    browser.wait(lambda: browser.find_all("#user-tools"), what="the admin's first page")
    assert_no_faults(browser, example)

    journey = Journey(browser, example.place, screenshots=tmp_path)
    journey.log_in(example.credentials)
    browser.open(example.origin + "/admin/")
    browser.click("#user-tools a[href='/flower/']")
    browser.wait(lambda: browser.text("#workers-online") == "1", what="one worker online")
    for task, state in (("add", "SUCCESS"), ("fail", "FAILURE"), ("report", "SUCCESS")):
        see_task(browser, example, tasks[task], state)
    assert_no_faults(browser, example)
    assert not journey.faults(example.credentials)

    browser.open(example.origin + "/")
    browser.click(f"/media/report-{tasks['report']}.txt", by=By.LINK_TEXT)
    browser.wait(lambda: "This took" in browser.text("body"), what="the report")
    # Flower's cookies do not affect Django's session
    browser.open(example.origin + "/admin/")
    assert browser.find_all("#user-tools")


def test_a_killed_worker_is_restarted_and_shown_as_online(example: Example, browser: Browser) -> None:
    Journey(browser, example.place).log_in(example.credentials)
    log_in(browser, example)
    browser.open(example.place.url + "/")
    killed = wait_until(example.worker, what="the worker is online")
    os.kill(killed, signal.SIGKILL)

    def is_restarted() -> bool:
        return example.worker() not in (0, killed)

    task = send(browser, example, "add")
    wait_until(is_restarted, what="the restarted worker in Flower")
    wait_until(lambda: example.state(task) == "SUCCESS", what="the success of the task sent meanwhile")
    browser.open(example.place.url + "/")
    browser.wait(lambda: browser.text("#workers-table tbody .badge") == "Online", what="the worker's badge")
    assert_no_faults(browser, example)


def post(example: Example, session: str = "", task: str = "add") -> Answer:
    """Send the form without a browser, with Django's CSRF token in cookie and form."""
    token = "t" * 32
    headers = {
        "Cookie": f"csrftoken={token}; sessionid={session}",
        "Content-Type": "application/x-www-form-urlencoded",
        "Referer": f"{example.origin}/",
        "Host": example.origin.partition("://")[2],
    }
    body = f"csrfmiddlewaretoken={token}&task={task}"
    return request(example.address, "/send", method="POST", body=body, headers=headers)


def session_of(example: Example, user: str, *, is_staff: bool) -> str:
    """Create a user, log in, and return the session id."""
    return example.manage(
        "from django.contrib.auth.models import User; from django.test import Client\n"
        f"client = Client(); client.force_login(User.objects.create_user({user!r}, is_staff={is_staff}))\n"
        "print(client.cookies['sessionid'].value)"
    )


def sent_tasks(example: Example) -> list[str]:
    """Return the ids of the tasks sent by `post`; beat sends none of this name."""
    tasks = json.loads(example.ask("/flower/api/tasks?taskname=server.tasks.fail").text)
    return sorted(tasks)


def test_anonymous_users_get_no_buttons(example: Example) -> None:
    answer = example.ask("/", headers={})
    assert answer.status == 200
    assert "<button" not in answer.text
    assert '<a href="/admin/login/?next=/">Log in</a>' in answer.text


def test_only_staff_can_send_tasks(example: Example) -> None:
    before = sent_tasks(example)
    anonymous = post(example, task="fail")
    assert (anonymous.status, anonymous.headers["Location"]) == (302, "/admin/login/?next=/")
    assert post(example, session_of(example, "visitor", is_staff=False), "fail").status == 403
    staff = post(example, session_of(example, "colleague", is_staff=True), "fail")
    assert (staff.status, staff.headers["Location"]) == (302, "/")
    wait_until(lambda: len(sent_tasks(example)) > len(before), what="the task of staff")
    assert len(sent_tasks(example)) == len(before) + 1


def test_flower_metrics_and_redis_require_a_password(example: Example) -> None:
    assert example.ask("/flower/", headers={}).status == 401
    assert example.ask("/flower/metrics", headers={}).status == 401
    port = int(re.findall(r"^port (\d+)$", (example.root / "etc/redis.conf").read_text(), re.MULTILINE)[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(64).startswith(b"-NOAUTH")


def test_prometheus_has_its_own_password_for_metrics_only(example: Example) -> None:
    scraper = basic("prometheus:" + (example.root / "etc/prometheus.password").read_text().strip())

    def shows_the_worker() -> bool:
        answer = example.ask("/flower/metrics", headers=scraper)
        assert answer.status == 200
        return 'flower_worker_online{worker="w1@' in answer.text

    wait_until(shows_the_worker, what="Flower has received a heartbeat")
    assert example.ask("/flower/tasks", headers=scraper).status in (401, 403)


def test_secrets_are_in_private_files_and_not_on_command_lines(example: Example) -> None:
    [redis] = re.findall(r"^requirepass (\S+)$", (example.root / "etc/redis.conf").read_text(), re.MULTILINE)
    secrets = {
        redis,
        example.credentials.partition(":")[2],
        (example.root / "etc/prometheus.password").read_text().strip(),
    }
    lines = [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert [line for line in lines if any(secret in line for secret in secrets)] == []
    for path in filter(Path.is_file, [*example.root.glob("*"), *(example.root / "etc").rglob("*")]):
        if any(secret in path.read_text() for secret in secrets):
            assert path.stat().st_mode & 0o777 == 0o600, path
    assert example.root.stat().st_mode & 0o777 == 0o700


def test_a_port_in_use_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = subprocess.run([*COMMAND, f"--port={port}"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(rf"--port: cannot listen on 127\.0\.0\.1, port {port}: .*in use\n", result.stderr)


def test_the_example_listens_on_the_given_address(tmp_path: Path) -> None:
    folder, log, port = tmp_path / "temporary", tmp_path / "log", free_port()
    folder.mkdir()
    with running(
        [*COMMAND, "--address=127.0.0.2", f"--port={port}"],
        log=log,
        ready=lambda: ANNOUNCED.search(log.read_text()),
        env={"TMPDIR": str(folder), "DISPLAY": "", "WAYLAND_DISPLAY": ""},
    ) as process:
        announced = ANNOUNCED.search(log.read_text())
        assert announced is not None
        assert announced["tunnel"] == f"ssh -L {port}:127.0.0.2:{port} HOST"
        assert announced["origin"] == f"https://127.0.0.2:{port}"
        certificate = Path(announced["root"]) / "etc/letsencrypt/live/example.com/fullchain.pem"
        context = ssl.create_default_context(cafile=str(certificate))
        jar = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.HTTPCookieProcessor()
        )
        # Django's login accepts the Host and Origin of that address
        with jar.open(f"{announced['origin']}/admin/login/?next=/") as page:
            [token] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.read().decode())
        form = {"csrfmiddlewaretoken": token, "username": announced["user"], "password": announced["password"]}
        login = urllib.request.Request(
            page.url,
            data=urllib.parse.urlencode({**form, "next": "/"}).encode(),
            headers={"Origin": announced["origin"]},
        )
        with jar.open(login) as page:
            assert page.url == f"{announced['origin']}/"
            assert "<button" in page.read().decode()
        assert not Address(port).accepts()
        process.terminate()
        assert process.wait(timeout=60) == 0
        nothing_is_left(folder)


def test_a_port_out_of_range_is_rejected() -> None:
    result = subprocess.run([*COMMAND, "--port=70000"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.endswith("error: --port: 70000 is not between 1 and 65535\n")


def test_ctrl_c_stops_the_setup(tmp_path: Path) -> None:
    folder, log = tmp_path / "temporary", tmp_path / "log"
    folder.mkdir()
    with running(
        [*COMMAND, f"--port={free_port()}"],
        log=log,
        ready=lambda: "Setting up\n" in log.read_text(),
        env={"TMPDIR": str(folder)},
    ) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert log.read_text() == "Setting up\nStopping\n"
    nothing_is_left(folder)


def test_ctrl_c_does_not_wait_for_starting_programs(tmp_path: Path) -> None:
    """A SIGTERM from supervisord to a starting program may be lost, after which it waits a minute for the worker."""
    folder, log, redis = tmp_path / "temporary", tmp_path / "log", tmp_path / "redis-server"
    folder.mkdir()
    redis.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/terminated' TERM\ntouch {tmp_path}/started\nwhile :; do sleep 1; done"
    )
    redis.chmod(0o755)
    with running(
        [*COMMAND, f"--port={free_port()}"],
        log=log,
        ready=(tmp_path / "started").exists,
        env={"TMPDIR": str(folder), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    ) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert not (tmp_path / "terminated").exists()
    assert log.read_text() == "Setting up\nStopping\n"
    nothing_is_left(folder)


def test_if_supervisor_dies_the_example_stops_its_programs_and_prints_its_log(tmp_path: Path) -> None:
    folder, log = tmp_path / "temporary", tmp_path / "log"
    folder.mkdir()
    with running(
        [*COMMAND, f"--port={free_port()}"],
        log=log,
        ready=lambda: any(" ready." in path.read_text() for path in folder.glob("*/var/log/server/celery-worker.log")),
        env={"TMPDIR": str(folder)},
    ) as process:
        [pid] = [int(path.read_text()) for path in folder.glob("*/supervisord.pid")]
        os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    assert log.read_text().endswith("supervisor exited; see its log above\n")
    nothing_is_left(folder)


def test_make_example_runs_the_example() -> None:
    # A make that runs the tests sets these
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "-n", "example"]
    output = subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1].split() == [".venv/bin/python", "examples/django/run.py"]


# The files


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_analyze_accepts_the_unit_and_its_hardening(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "srv/server").mkdir(parents=True)
    (tmp_path / "srv/server/.venv").symlink_to(sys.prefix)
    copy = tmp_path / unit.name
    copy.write_text(as_run(tmp_path, unit.read_text(), {}))
    for options in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=30"]):
        command = [program("systemd-analyze"), *options, str(copy)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert result.returncode == 0, result.stdout
        assert options[0] == "security" or result.stdout == ""


def test_systemd_and_supervisor_run_the_same_commands() -> None:
    supervisor = configparser.RawConfigParser(inline_comment_prefixes=None)
    supervisor.read(FOLDER / "supervisor.conf")
    started = {name.partition(":")[2]: section["command"] for name, section in supervisor.items() if ":" in name}
    assert started == {unit.stem: re.findall("^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)[0] for unit in UNITS}


def test_nginx_conf_contains_the_generated_locations() -> None:
    _, _, block = printed("nginx --url_prefix=flower --tls --snippet").partition("\n\n")
    lines = [line.strip() for line in block.splitlines()]
    configured = [line.strip() for line in (FOLDER / "nginx.conf").read_text().splitlines()]
    assert "\n".join(lines).strip() in "\n".join(configured)


def test_the_test_dependencies_include_the_examples() -> None:
    names = re.compile(r"^[a-z-]+", re.MULTILINE)
    required = set(names.findall((FOLDER / "requirements.txt").read_text())) - {"flower-proxy"}
    [group] = re.findall(r"^test = \[\n(.*?)^\]", (PROJECT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert required <= set(re.findall(r'^  "([a-z-]+)', group, re.MULTILINE))


# The commands of its README

HOST_NAME = {"name=example.com": "name=flower.test"}


def test_the_commands_of_the_readme_deploy_the_example(example: Example, tmp_path: Path) -> None:
    """Commands that need root or packages are only recorded; a folder replaces the root of the file system."""
    for folder in ("etc/redis", "etc/nginx/sites-enabled", "etc/systemd/system", "srv", "var/lib"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/redis/redis.conf").touch()
    record = tmp_path / "record"
    commands = as_run(tmp_path, COMMANDS, HOST_NAME)
    commands = re.sub(r"(?<=[\s>])/(?=etc/(redis|nginx|systemd))", f"{tmp_path}/", commands)
    recorded = ["apt-get", "useradd", "usermod", "certbot", "systemctl"]
    stubs = [f'{name}() {{ echo {name} "$@" >> {record}; }}' for name in recorded]
    stubs += ['sudo() { if [ "$1" = -u ]; then shift 2; fi; "$@"; }']
    stubs += [f"python3() {{ ln -s {sys.prefix} {tmp_path}/srv/server/.venv; }}"]
    commands = re.sub(r"^sudo .*/pip install .*\n", "", commands, flags=re.MULTILINE)
    commands = re.sub(r" -[og] server", "", commands)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*stubs, commands])],
        cwd=PROJECT,
        input="secret\n",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    created = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    units = [f"etc/systemd/system/{unit.name}" for unit in UNITS]
    assert set(units) <= created
    installed = [(tmp_path / name).read_text() for name in ("etc/nginx/sites-enabled/server", *units)]
    assert "flower.test" in installed[0]
    assert not [text for text in installed if "example.com" in text]
    assert {"var/lib/server/db.sqlite3", "var/lib/server/static/server/front.css"} <= created
    assert (tmp_path / "etc/server/htpasswd").read_text().startswith("me:$2b$")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "etc/server").iterdir()} == {0o640}
    # Redis and its clients have the same password
    environment = dict(line.split("=", 1) for line in (tmp_path / "etc/server/environment").read_text().splitlines())
    [redis] = re.findall("^requirepass (.+)$", (tmp_path / "etc/redis/redis.conf").read_text())
    assert environment["CELERY_BROKER_URL"] == f"redis://:{redis}@127.0.0.1:6379/0"
    running_with = Path(f"/proc/{(example.root / 'supervisord.pid').read_text().strip()}/environ").read_text()
    assert set(environment) <= {entry.partition("=")[0] for entry in running_with.split("\0")}
    [enabled] = re.findall("^systemctl enable --now (.*)$", record.read_text(), re.MULTILINE)
    assert set(enabled.split()) == {unit.stem for unit in UNITS}


def test_readme_is_under_two_pages() -> None:
    assert len(README.splitlines()) < 80
