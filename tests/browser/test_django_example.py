"""``make example``: Django and Flower side by side, as they are deployed, seen by somebody in front of a browser."""

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
WALK = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
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
    """All of it, running."""

    process: subprocess.Popen[bytes]
    log: Path
    address: Address
    # Stands for the root of the file system
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
        """Run code in Django's shell, as the example's own environment has it, and return what it prints."""
        pid = (self.root / "supervisord.pid").read_text().strip()
        entries = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        command = [sys.executable, "manage.py", "shell", "-v", "0", "-c", code]
        environ = {name: value for name, _, value in entries}
        ended = subprocess.run(
            command, cwd=self.root / "srv/server", env=environ, capture_output=True, text=True, check=True
        )
        return ended.stdout.strip()

    def worker(self) -> int:
        """The process of the worker that Flower shows as online, or 0."""
        workers = json.loads(self.ask("/flower/workers?json=1").text)["data"]
        return next((int(worker["pid"]) for worker in workers if worker["status"]), 0)

    def state(self, task: str) -> str:
        answer = self.ask(f"/flower/api/task/info/{task}")
        return str(json.loads(answer.text)["state"]) if answer.status == 200 else "unknown"


def elsewhere() -> set[Path]:
    """What there is where programs like to leave something."""
    return {*FOLDER.rglob("*"), *(Path.home() / ".gunicorn").glob("*")}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example, which at last is ended by Ctrl-C and has to leave nothing behind."""
    folder, address = tmp_path_factory.mktemp("temporary"), Address(free_port(), tls=True)
    log = tmp_path_factory.mktemp("example") / "log"
    before = elsewhere()
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
        # As a terminal sends it: to make, to this, and to all they have started there
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert log.read_text().endswith("\nStopping\n")
        nothing_is_left(folder)
        assert elsewhere() == before
        assert not address.accepts()


def log_in(browser: Browser, example: Example) -> None:
    """Follow the link of Django's page, as staff."""
    browser.open(example.origin + "/")
    browser.click("Log in", by=By.LINK_TEXT)
    user, _, password = example.credentials.partition(":")
    browser.wait(lambda: browser.find_all("#id_username"), what="Django asks who it is")
    browser.find("#id_username").send_keys(user)
    browser.find("#id_password").send_keys(password)
    browser.click("input[type=submit]")
    browser.wait(lambda: browser.find_all("button[value=add]"), what="the page with its buttons")


def send(browser: Browser, example: Example, task: str) -> str:
    """Press the button of Django's page, and return the id of the task."""
    browser.open(example.origin + "/")
    browser.click(f"button[value={task}]")
    browser.wait(lambda: f"Sent server.tasks.{task} as " in browser.text(".message"), what="that it was sent")
    return browser.text(".message").rpartition(" ")[2]


def see_task(browser: Browser, example: Example, uuid: str, state: str) -> None:
    """Wait until the task has ended, and look at its page in Flower."""
    wait_until(lambda: example.state(uuid) == state, what=f"the task's state is {state}")
    browser.open(f"{example.place.url}/task/{uuid}")
    browser.wait(lambda: browser.text(".task-uuid-value code") == uuid, what="the task's page")


def all_is_well(browser: Browser, example: Example) -> None:
    """Assert that nothing was asked for in vain or elsewhere since the last time, and the console is empty."""
    requests = browser.traffic()
    assert requests
    assert [str(sent) for sent in requests if sent.failure or (sent.status or 0) >= 400] == []
    assert {sent.url for sent in requests if not sent.url.startswith(example.origin + "/")} == set()
    assert [str(message) for message in browser.console() if message.level in ("WARNING", "SEVERE")] == []


def test_django_and_flower_side_by_side(example: Example, browser: Browser, tmp_path: Path) -> None:
    browser.open(example.origin + "/")
    # A rule of its stylesheet, which nginx serves
    browser.wait(lambda: browser.style("nav", "textAlign") == "right", what="a styled page")
    log_in(browser, example)
    tasks = {task: send(browser, example, task) for task in ("add", "report", "fail")}

    browser.click("Admin", by=By.LINK_TEXT)
    browser.wait(lambda: browser.find_all("#user-tools"), what="the admin's first page")
    all_is_well(browser, example)

    journey = Journey(browser, example.place, screenshots=tmp_path)
    journey.log_in(example.credentials)
    browser.open(example.origin + "/admin/")
    browser.click("#user-tools a[href='/flower/']")
    browser.wait(lambda: browser.text("#workers-online") == "1", what="one worker online")
    for task, state in (("add", "SUCCESS"), ("fail", "FAILURE"), ("report", "SUCCESS")):
        see_task(browser, example, tasks[task], state)
    all_is_well(browser, example)
    assert not journey.faults(example.credentials)

    browser.open(example.origin + "/")
    browser.click(f"/media/report-{tasks['report']}.txt", by=By.LINK_TEXT)
    browser.wait(lambda: "This took" in browser.text("body"), what="the report")
    # Still logged in there: Flower's cookies are its own
    browser.open(example.origin + "/admin/")
    assert browser.find_all("#user-tools")


def test_a_worker_that_was_killed_is_online_again_while_people_look_on(example: Example, browser: Browser) -> None:
    Journey(browser, example.place).log_in(example.credentials)
    log_in(browser, example)
    browser.open(example.place.url + "/")
    killed = wait_until(example.worker, what="the worker is online")
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        return example.worker() not in (0, killed)

    task = send(browser, example, "add")
    wait_until(is_back, what="supervisor has restarted it, and Flower knows")
    wait_until(lambda: example.state(task) == "SUCCESS", what="what was sent meanwhile is done")
    browser.open(example.place.url + "/")
    browser.wait(lambda: browser.text("#workers-table tbody .badge") == "Online", what="the worker's badge")
    all_is_well(browser, example)


def post(example: Example, session: str = "", task: str = "add") -> Answer:
    """Press the button without a browser: Django's token is in a cookie and in the form."""
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
    """Create a user who is logged in, and return the session."""
    return example.manage(
        "from django.contrib.auth.models import User; from django.test import Client\n"
        f"client = Client(); client.force_login(User.objects.create_user({user!r}, is_staff={is_staff}))\n"
        "print(client.cookies['sessionid'].value)"
    )


def sent_tasks(example: Example) -> list[str]:
    """The ids of the tasks of the front page; beat sends its own with other arguments."""
    tasks = json.loads(example.ask("/flower/api/tasks?taskname=server.tasks.fail").text)
    return sorted(tasks)


def test_anonymous_users_see_the_page_but_no_buttons(example: Example) -> None:
    answer = example.ask("/", headers={})
    assert answer.status == 200
    assert "<button" not in answer.text
    assert '<a href="/admin/login/?next=/">Log in</a>' in answer.text


def test_only_staff_sends_tasks(example: Example) -> None:
    before = sent_tasks(example)
    anonymous = post(example, task="fail")
    assert (anonymous.status, anonymous.headers["Location"]) == (302, "/admin/login/?next=/")
    assert post(example, session_of(example, "visitor", is_staff=False), "fail").status == 403
    staff = post(example, session_of(example, "colleague", is_staff=True), "fail")
    assert (staff.status, staff.headers["Location"]) == (302, "/")
    wait_until(lambda: len(sent_tasks(example)) > len(before), what="the task of staff")
    assert len(sent_tasks(example)) == len(before) + 1


def test_nobody_comes_in_without_a_password(example: Example) -> None:
    assert example.ask("/flower/", headers={}).status == 401
    assert example.ask("/flower/metrics", headers={}).status == 401
    port = int(re.findall(r"^port (\d+)$", (example.root / "etc/redis.conf").read_text(), re.MULTILINE)[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(64).startswith(b"-NOAUTH")


def test_prometheus_comes_in_with_its_own(example: Example) -> None:
    password = (example.root / "etc/prometheus.password").read_text().strip()
    answer = example.ask("/flower/metrics", headers=basic(f"prometheus:{password}"))
    assert answer.status == 200
    assert 'flower_worker_online{worker="w1@' in answer.text
    assert example.ask("/flower/tasks", headers=basic(f"prometheus:{password}")).status in (401, 403)


def test_secrets_are_in_files_that_others_cannot_read_and_on_no_command_line(example: Example) -> None:
    [redis] = re.findall(r"^requirepass (\S+)$", (example.root / "etc/redis.conf").read_text(), re.MULTILINE)
    found = {
        redis,
        example.credentials.partition(":")[2],
        (example.root / "etc/prometheus.password").read_text().strip(),
    }
    lines = [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert [line for line in lines if any(secret in line for secret in found)] == []
    for path in filter(Path.is_file, [*example.root.glob("*"), *(example.root / "etc").rglob("*")]):
        if any(secret in path.read_text() for secret in found):
            assert path.stat().st_mode & 0o777 == 0o600, path
    assert example.root.stat().st_mode & 0o777 == 0o700


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = subprocess.run([*COMMAND, f"--port={port}"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(rf"--port: cannot listen on 127\.0\.0\.1, port {port}: .*in use\n", ended.stderr)


def test_it_serves_other_hosts_at_the_given_address(tmp_path: Path) -> None:
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
        # With the Host and Origin of that address, Django's login succeeds
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


def test_a_port_out_of_range_is_refused() -> None:
    ended = subprocess.run([*COMMAND, "--port=70000"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.endswith("error: --port: 70000 is not between 1 and 65535\n")


def test_it_can_be_ended_while_it_is_set_up(tmp_path: Path) -> None:
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


def test_programs_that_are_starting_are_not_waited_for(tmp_path: Path) -> None:
    """A SIGTERM of supervisord to programs that it has just started is lost; it waits a minute for the worker."""
    folder, log, redis = tmp_path / "temporary", tmp_path / "log", tmp_path / "redis-server"
    folder.mkdir()
    redis.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/asked' TERM\ntouch {tmp_path}/started\nwhile :; do sleep 1; done"
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
    assert not (tmp_path / "asked").exists()
    assert log.read_text() == "Setting up\nStopping\n"
    nothing_is_left(folder)


def test_it_says_that_supervisor_has_died_and_ends_what_that_has_left(tmp_path: Path) -> None:
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
    assert log.read_text().endswith("supervisor has ended; this was its log\n")
    nothing_is_left(folder)


def test_make_runs_it() -> None:
    # Not with what another make, which runs the tests, was told
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "-n", "example"]
    said = subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1].split() == [".venv/bin/python", "examples/django/run.py"]


# The files


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "srv/server").mkdir(parents=True)
    (tmp_path / "srv/server/.venv").symlink_to(sys.prefix)
    copy = tmp_path / unit.name
    copy.write_text(as_run(tmp_path, unit.read_text(), {}))
    for options in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=30"]):
        command = [program("systemd-analyze"), *options, str(copy)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ended.returncode == 0, ended.stdout
        assert options[0] == "security" or ended.stdout == ""


def test_systemd_and_supervisor_start_the_same() -> None:
    supervisor = configparser.RawConfigParser(inline_comment_prefixes=None)
    supervisor.read(FOLDER / "supervisor.conf")
    started = {name.partition(":")[2]: section["command"] for name, section in supervisor.items() if ":" in name}
    assert started == {unit.stem: re.findall("^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)[0] for unit in UNITS}


def test_flower_stands_behind_nginx_as_in_the_other_examples() -> None:
    _, _, block = printed("nginx --url_prefix=flower --tls --snippet").partition("\n\n")
    lines = [line.strip() for line in block.splitlines()]
    ours = [line.strip() for line in (FOLDER / "nginx.conf").read_text().splitlines()]
    assert "\n".join(lines).strip() in "\n".join(ours)


def test_what_the_example_needs_is_what_the_tests_install() -> None:
    names = re.compile(r"^[a-z-]+", re.MULTILINE)
    wanted = set(names.findall((FOLDER / "requirements.txt").read_text())) - {"flower-proxy"}
    [group] = re.findall(r"^test = \[\n(.*?)^\]", (PROJECT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert wanted <= set(re.findall(r'^  "([a-z-]+)', group, re.MULTILINE))


# The commands of its README

NAMED = {"name=example.com": "name=flower.test"}


def test_the_way_there_leads_there(example: Example, tmp_path: Path) -> None:
    """Its commands, but for those that need root and the packages; the root of the file system is a folder."""
    for folder in ("etc/redis", "etc/nginx/sites-enabled", "etc/systemd/system", "srv", "var/lib"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/redis/redis.conf").touch()
    done = tmp_path / "done"
    walk = re.sub(r"(?<=[\s>])/(?=etc/(redis|nginx|systemd))", f"{tmp_path}/", as_run(tmp_path, WALK, NAMED))
    # What is only noted, and who is only root here
    noted = ["apt-get", "useradd", "usermod", "certbot", "systemctl"]
    stubs = [f'{name}() {{ echo {name} "$@" >> {done}; }}' for name in noted]
    stubs += ['sudo() { if [ "$1" = -u ]; then shift 2; fi; "$@"; }']
    stubs += [f"python3() {{ ln -s {sys.prefix} {tmp_path}/srv/server/.venv; }}"]
    walk = re.sub(r"^sudo .*/pip install .*\n", "", walk, flags=re.MULTILINE)
    walk = re.sub(r" -[og] server", "", walk)
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*stubs, walk])],
        cwd=PROJECT,
        input="secret\n",
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    units = [f"etc/systemd/system/{unit.name}" for unit in UNITS]
    assert set(units) <= made
    named = [(tmp_path / name).read_text() for name in ("etc/nginx/sites-enabled/server", *units)]
    assert "flower.test" in named[0]
    assert not [text for text in named if "example.com" in text]
    assert {"var/lib/server/db.sqlite3", "var/lib/server/static/server/front.css"} <= made
    assert (tmp_path / "etc/server/htpasswd").read_text().startswith("me:$2b$")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "etc/server").iterdir()} == {0o640}
    # What it has to be told, and with the password that Redis has been told
    environment = dict(line.split("=", 1) for line in (tmp_path / "etc/server/environment").read_text().splitlines())
    [redis] = re.findall("^requirepass (.+)$", (tmp_path / "etc/redis/redis.conf").read_text())
    assert environment["CELERY_BROKER_URL"] == f"redis://:{redis}@127.0.0.1:6379/0"
    running_with = Path(f"/proc/{(example.root / 'supervisord.pid').read_text().strip()}/environ").read_text()
    assert set(environment) <= {entry.partition("=")[0] for entry in running_with.split("\0")}
    [enabled] = re.findall("^systemctl enable --now (.*)$", done.read_text(), re.MULTILINE)
    assert set(enabled.split()) == {unit.stem for unit in UNITS}


def test_readme_is_under_two_pages() -> None:
    assert len(README.splitlines()) < 80
