"""``flower-proxy check``: each line comes up when what it is about is broken, and no other."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from flower_proxy.cli.check import check
from tests.support import proxies
from tests.support.clock import Clock
from tests.support.examples import FILES, read, standing
from tests.support.processes import PROJECT, Address, free_port, program, running, stop, wait_until
from tests.support.programs import (
    CREDENTIALS,
    USER,
    Broker,
    Flower,
    launch,
    nginx,
    redis,
    redis_server,
    worker_process,
)
from tests.support.standins import CutOff, serving

PREFIX = "/flower"
PASSWORD = CREDENTIALS.partition(":")[2]
CHECKS = [
    *("launcher", "trust", "scheme", "host", "prefix", "slash", "client", "forwarded", "static", "compression"),
    *(
        "cache",
        "encoding",
        "post",
        "origin",
        "body",
        "authentication",
        "metrics",
        "broker",
        "workers",
        "events",
        "clocks",
        "versions",
    ),
]
TRUSTED = "127.0.0.0/8,::1,unix"


@dataclass(frozen=True)
class Found:
    """What the command said."""

    exit_code: int
    findings: Sequence[Mapping[str, str]]

    def named(self, status: str) -> list[str]:
        return [finding["name"] for finding in self.findings if finding["status"] == status]

    @property
    def wrong(self) -> list[str]:
        """The names and statuses of what is not as it should be."""
        return [f"{f['status']} {f['name']}" for f in self.findings if f["status"] in ("warning", "failed")]

    def __getitem__(self, name: str) -> Mapping[str, str]:
        return next(finding for finding in self.findings if finding["name"] == name)


def ask(url: str, *options: str, user: str = USER, password: str = PASSWORD) -> Found:
    arguments = ["--json", *(["--user", user] if user else []), *options, url]
    result = CliRunner().invoke(check, arguments, input=f"{password}\n")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Found(result.exit_code, json.loads(result.stdout))


@contextlib.contextmanager
def proxied(config: str, flower: Flower, folder: Path, *, tls: bool = False) -> Iterator[str]:
    """Run nginx with this configuration, and tell where it is."""
    public = Address(free_port(), tls=tls)
    listen = f"listen {public} {'ssl' if tls else ''};"
    config = substitute(config, {"listen 80;": listen, "127.0.0.1:5555": str(flower.address)})
    with nginx(config, folder, ready=public):
        yield f"{'https' if tls else 'http'}://localhost:{public.port}{PREFIX}/"


def substitute(config: str, changes: Mapping[str, str]) -> str:
    """Make changes to what is there; what is not there says something else by now."""
    missing = [old for old in changes if old not in config]
    assert not missing, f"not in the configuration: {missing}"
    return proxies.substitute(config, changes)


def healthy() -> str:
    """The README's block, in a server."""
    config, _ = read("README.md")
    return config


def apply(config: str, remedy: str) -> str:
    """Put what a remedy says into the configuration, in place of what is there about the same thing."""
    for line in remedy.splitlines():
        if line.startswith("location ^~"):
            config = config.replace("location /flower/ {", line)
        elif line.startswith("location"):
            config = re.sub(re.escape(line.partition("{")[0]) + r"\{[^}]*\}", "", config)
            config = config.replace("location /flower/ {", line + "\nlocation /flower/ {", 1)
        elif line.startswith("or "):
            continue
        else:
            for directive in re.findall(r"[^;]+;", line):
                words = directive.split()
                subject = words[:2] if words[0] == "proxy_set_header" else words[:1]
                config = re.sub(r"(?<![\w-])" + r"\s+".join(map(re.escape, subject)) + r"\s[^;]*;", "", config)
            config = config.replace("proxy_pass http", f"{line} proxy_pass http", 1)
    return config


@pytest.fixture(scope="module")
def flower(worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    with launch("ours", worker, tmp_path_factory.mktemp("flower"), url_prefix=PREFIX) as flower:
        flower.watch_tasks(worker)
        yield flower


# A healthy one


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_healthy_deployment_passes(flower: Flower, certificate: tuple[Path, Path], tmp_path: Path, tls: bool) -> None:
    certfile, keyfile = certificate
    config = f"ssl_certificate {certfile}; ssl_certificate_key {keyfile}; {healthy()}"
    with proxied(config, flower, tmp_path, tls=tls) as url:
        found = ask(url, *([f"--ca={certfile}"] if tls else []))
    assert (found.exit_code, found.named("passed")) == (0, CHECKS), found


def test_readme_sample_matches_the_output(flower: Flower, tmp_path: Path) -> None:
    """The port is lost; "…" in the sample stands for any lines."""
    config = substitute(healthy(), {"X-Forwarded-Host   $http_host": "X-Forwarded-Host $host"})
    with proxied(config, flower, tmp_path) as url:
        command = [sys.executable, "-m", "flower_proxy", "check", url, "--user", USER]
        ended = subprocess.run(command, input=f"{PASSWORD}\n", capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "")
    (sample,) = re.findall(
        r"<!-- check -->\n```\n(.*?)```\n<!-- /check -->", (PROJECT / "README.md").read_text(), re.DOTALL
    )
    port = url.split(":")[2].partition("/")[0]
    output = f"$ flower-proxy check {url} --user {USER}\nPassword:\n{ended.stdout}"
    parts = sample.split("…\n")
    pattern = "(?:.*\n)*?".join(map(re.escape, parts))
    assert len(parts) > 1
    assert re.fullmatch(pattern, re.sub(rf":{port}\b", ":8080", output)), output


@pytest.mark.parametrize("color", [False, True])
def test_colours_are_for_terminals(flower: Flower, color: bool) -> None:
    url = f"http://{flower.address}{PREFIX}"
    result = CliRunner().invoke(check, ["--user", USER, url], input=f"{PASSWORD}\n", color=color)
    assert ("\x1b[32mpassed" in result.stdout) is color
    assert PASSWORD not in result.stdout


# A broken proxy


@dataclass(frozen=True)
class Breakage:
    """One thing that is wrong with nginx.

    :ivar changes: what stands in place of what in the healthy file.
    :ivar wrong: the one line that comes up.
    :ivar says: a part of it.
    """

    id: str
    changes: Mapping[str, str]
    wrong: str
    says: str
    tls: bool = False
    # whether what to do is for a person to do
    by_hand: bool = False


def no_header(name: str) -> dict[str, str]:
    """Take the line out that sets a header."""
    (line,) = re.findall(rf"proxy_set_header {name} .*?;", healthy())
    return {line: ""}


def in_location(text: str) -> dict[str, str]:
    return {"location /flower/ {": f"location /flower/ {{ {text}"}


def for_static_files(text: str) -> dict[str, str]:
    return {"location = /flower/metrics": f"location /flower/static/ {{ {text} }} location = /flower/metrics"}


NO_SLASH = re.findall(r"location = /flower \{.*?\}", healthy())[0]
PASS = "proxy_pass http://127.0.0.1:5555;"

BREAKAGES = [
    Breakage(
        "the-port-is-lost", {"X-Forwarded-Host   $http_host": "X-Forwarded-Host $host"}, "failed host", "localhost,"
    ),
    Breakage(
        "no-host",
        {**no_header("Host"), **no_header("X-Forwarded-Host")},
        "failed host",
        "Flower takes its host for 127.0.0.1",
    ),
    Breakage("no-scheme", no_header("X-Forwarded-Proto"), "failed scheme", "Flower takes it for http", tls=True),
    Breakage(
        "another-scheme", {"X-Forwarded-Proto  $scheme": "X-Forwarded-Proto https"}, "failed scheme", "asked by http"
    ),
    Breakage("another-prefix", {"X-Forwarded-Prefix /flower": "X-Forwarded-Prefix /other"}, "failed prefix", "/other"),
    Breakage("no-redirect", {NO_SLASH: "location = /flower { return 404; }"}, "failed slash", "answered with 404"),
    Breakage(
        "the-redirect-loses-the-port",
        {NO_SLASH: "port_in_redirect off; location = /flower { return 301 /flower/; }"},
        "failed slash",
        "leads to http://localhost/flower/",
    ),
    Breakage("no-client", no_header("X-Forwarded-For"), "failed client", "every client for the proxy, 127.0.0.1"),
    Breakage("no-scheme-over-http", no_header("X-Forwarded-Proto"), "failed forwarded", "X-Forwarded-Proto"),
    Breakage("no-prefix", no_header("X-Forwarded-Prefix"), "failed forwarded", "counts: X-Forwarded-Prefix"),
    Breakage("made-up-host", no_header("X-Forwarded-Host"), "failed forwarded", "counts: X-Forwarded-Host"),
    Breakage(
        "nginx-looks-for-files-itself",
        {"location /flower/ {": "location ~ \\.(css|js)$ { root /nowhere; } location /flower/ {"},
        "failed static",
        "/flower/static/js/theme.js is answered with 404 Not Found",
    ),
    Breakage(
        "the-type-is-lost",
        for_static_files(f"{PASS} proxy_hide_header Content-Type; add_header Content-Type text/plain;"),
        "failed static",
        "comes as text/plain",
        by_hand=True,
    ),
    Breakage("no-compression", {"gzip on;": "gzip off;"}, "warning compression", "kilobytes of scripts"),
    Breakage(
        "no-cache",
        for_static_files(f"{PASS} proxy_hide_header Cache-Control; add_header Cache-Control no-store;"),
        "warning cache",
        "Cache-Control is no-store",
        by_hand=True,
    ),
    Breakage("no-post", in_location("limit_except GET { deny all; }"), "failed post", "403 Forbidden", by_hand=True),
    Breakage(
        "nginx-decodes",
        {PASS: "proxy_pass http://127.0.0.1:5555/flower/;"},
        "warning encoding",
        "comes to /a/b",
        by_hand=True,
    ),
    Breakage("no-origin", in_location('proxy_set_header Origin "";'), "failed origin", "Origin does", by_hand=True),
    Breakage(
        "no-fetch-metadata",
        in_location('proxy_set_header Sec-Fetch-Site "";'),
        "failed origin",
        "Sec-Fetch-Site does not arrive",
        by_hand=True,
    ),
    Breakage("small-bodies", in_location("client_max_body_size 8k;"), "failed body", "413 Request Entity Too Large"),
    Breakage(
        "the-proxy-has-a-password",
        in_location('proxy_set_header Authorization "Basic ZGVtbzpzZWNyZXQ=";'),
        "failed authentication",
        "sends a password by itself",
        by_hand=True,
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in BREAKAGES])
def test_what_is_broken_comes_up_alone_and_the_remedy_cures_it(
    flower: Flower, certificate: tuple[Path, Path], tmp_path: Path, case: Breakage
) -> None:
    certfile, keyfile = certificate
    options = ["--insecure"] if case.tls else []
    config = substitute(healthy(), case.changes)
    config = f"ssl_certificate {certfile}; ssl_certificate_key {keyfile}; {config}"
    with proxied(config, flower, tmp_path / "broken", tls=case.tls) as url:
        found = ask(url, *options)
    status, name = case.wrong.split()
    assert found.wrong == [case.wrong], found
    assert case.says in found[name]["message"]
    assert found[name]["remedy"]
    assert found.exit_code == (status == "failed")
    if not case.by_hand:
        with proxied(apply(config, found[name]["remedy"]), flower, tmp_path / "cured", tls=case.tls) as url:
            assert ask(url, *options).wrong == [], found


# Other proxies, and none


@pytest.mark.parametrize("name", [name for name in FILES if name != "nginx/auth_request.conf"])
def test_every_example_passes(worker: Broker, files: dict[str, str], tmp_path: Path, name: str) -> None:
    with standing(name, worker, files, tmp_path) as example:
        found = ask(f"{example.place.url}/", "--insecure")
    assert (found.exit_code, found.wrong, found.named("skipped")) == (0, [], []), found


def test_one_that_strips_in_silence_is_told_what_to_add(worker: Broker, tmp_path: Path) -> None:
    """It works, but with links that are relative."""
    config, _ = read("nginx/stripped.conf")
    silent = config.replace("proxy_set_header X-Forwarded-Prefix /flower;", "")
    with launch("ours", worker, tmp_path / "flower") as flower:
        flower.watch_tasks(worker)
        with proxied(silent, flower, tmp_path / "silent") as url:
            found = ask(url)
        assert (found.exit_code, found.wrong) == (0, ["warning prefix"]), found
        with proxied(apply(silent, found["prefix"]["remedy"]), flower, tmp_path / "cured") as url:
            assert ask(url).wrong == []


def caddy(flower: Flower, public: Address, remedies: Sequence[str], folder: Path) -> list[str]:
    inside = [line for line in remedies if line.startswith("header_up")]
    beside = [line for line in remedies if line not in inside]
    upstream = [f"reverse_proxy {PREFIX}* {flower.address} {{", *inside, "}"]
    off = "{\n admin off\n auto_https off\n}"
    (folder / "config").write_text("\n".join([off, f"http://{public} {{", *beside, *upstream, "}\n"]))
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "config")]


def apache(flower: Flower, public: Address, remedies: Sequence[str], folder: Path) -> list[str]:
    modules = "mpm_event authz_core headers alias deflate filter proxy proxy_http"
    loaded = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules.split()]
    own = ["ServerName localhost", f"Listen {public}", "ErrorLog error.log", "PidFile apache.pid"]
    passes = f"ProxyPass {PREFIX} http://{flower.address}{PREFIX}"
    (folder / "config").write_text("\n".join([*loaded, *own, *remedies, passes, ""]))
    return [program("apache2"), "-D", "FOREGROUND", "-d", str(folder), "-f", str(folder / "config")]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        pytest.param(caddy, ["failed forwarded", "warning compression"], id="caddy"),
        pytest.param(apache, ["failed forwarded", "warning compression", "warning encoding"], id="apache"),
    ],
)
def test_a_proxy_that_was_told_nothing_passes_with_the_lines_for_it(
    flower: Flower, tmp_path: Path, command: Callable[..., list[str]], wrong: list[str]
) -> None:
    remedies: list[str] = []
    for expected in (wrong, []):
        public = Address(free_port())
        run = command(flower, public, remedies, tmp_path)
        with running(run, log=tmp_path / "log", ready=public.accepts, env={"XDG_DATA_HOME": str(tmp_path)}):
            found = ask(f"http://{public}{PREFIX}/")
        assert found.wrong == expected, found
        remedies = [line for finding in found.findings for line in finding["remedy"].splitlines()]


def test_without_a_proxy_only_the_compression_is_missing(flower: Flower) -> None:
    found = ask(f"http://{flower.address}{PREFIX}")
    assert (found.exit_code, found.wrong) == (0, ["warning compression"]), found
    assert found["trust"]["message"] == "no proxy is in between"


# A launcher that was started otherwise


HEADER = ["--auth_header=X-Forwarded-User"]


@pytest.mark.parametrize(
    ("options", "authenticates", "wrong", "says"),
    [
        pytest.param(["--trusted_proxies=192.0.2.1"], True, "trust", "127.0.0.1 sends X-Forwarded-For", id="trust"),
        pytest.param(["--metrics_open"], True, "metrics", "open to everybody", id="metrics"),
        pytest.param(["--no_auth"], False, "authentication", "--no_auth", id="no-auth"),
        pytest.param(HEADER, True, "authentication", "who sends X-Forwarded-User", id="header"),
    ],
)
def test_an_option_that_does_not_suit_comes_up_alone(
    worker: Broker, tmp_path: Path, options: list[str], authenticates: bool, wrong: str, says: str
) -> None:
    config = healthy()
    with launch(
        "ours", worker, tmp_path / "flower", url_prefix=PREFIX, authenticates=authenticates, options=options
    ) as flower:
        wait_until(lambda: knows_workers(flower), what="Flower hears the worker")
        with proxied(config, flower, tmp_path / "nginx") as url:
            found = ask(url)
        assert found.wrong == [f"failed {wrong}"], found
        assert says in found[wrong]["message"]
        if wrong == "metrics" or options == HEADER:
            with proxied(apply(config, found[wrong]["remedy"]), flower, tmp_path / "cured") as url:
                assert ask(url).wrong == []
    if wrong == "trust":
        told = found[wrong]["remedy"].rpartition(" ")[2]
        with launch("ours", worker, tmp_path / "again", url_prefix=PREFIX, options=[told]) as flower:
            wait_until(lambda: knows_workers(flower), what="Flower hears the worker")
            with proxied(config, flower, tmp_path / "nginx") as url:
                assert ask(url).wrong == []


def knows_workers(flower: Flower) -> bool:
    """Whether a worker is heard of, and the broker has answered."""
    found = ask(f"http://{flower.address}{PREFIX}")
    return not {"workers", "broker"} & {name for status in ("failed", "skipped") for name in found.named(status)}


# A cluster that is not well


@contextlib.contextmanager
def cluster(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[tuple[Broker, str]]:
    """A broker and a worker of its own, and Flower without a proxy in front of it."""
    with (
        redis(folder) as broker,
        worker_process(broker, folder, env=env),
        launch("ours", broker, folder / "flower", url_prefix=PREFIX, options=options) as flower,
    ):
        wait_until(lambda: knows_workers(flower), what="Flower hears the worker")
        yield broker, f"http://{flower.address}{PREFIX}"


def failed(url: str) -> list[str]:
    return ask(url).named("failed")


def test_events_that_are_off_come_up_and_the_remedy_cures_it(tmp_path: Path) -> None:
    """As "no task is ever shown" mostly is; a worker that has nothing to do cannot be told from one that is silent."""
    off = {"WITHOUT_TASK_EVENTS": "1"}
    with (
        redis(tmp_path) as broker,
        launch("ours", broker, tmp_path / "flower", url_prefix=PREFIX, options=["--enable_events=false"]) as flower,
    ):
        url = f"http://{flower.address}{PREFIX}"
        with worker_process(broker, tmp_path / "silent", env=off):
            wait_until(lambda: knows_workers(flower), what="Flower hears the worker")
            found = ask(url)
            assert (found["events"]["status"], found.named("failed")) == ("skipped", []), found
            wait_until(lambda: broker.run_tasks() and failed(url), what="it is seen that tasks run without events")
            found = ask(url)
            assert found.named("failed") == ["events"]
        assert found["events"]["remedy"].startswith("start the worker with -E,")
        with worker_process(broker, tmp_path / "cured", env=off, options=["-E"]):
            wait_until(lambda: broker.run_tasks() and "events" in ask(url).named("passed"), what="events come")


def test_no_worker_comes_up(tmp_path: Path) -> None:
    with redis(tmp_path) as broker, launch("ours", broker, tmp_path / "flower", url_prefix=PREFIX) as flower:
        url = f"http://{flower.address}{PREFIX}"
        wait_until(lambda: "broker" in ask(url).named("passed"), what="the broker answers")
        found = ask(url)
    assert found.named("failed") == ["workers"]
    assert found["events"]["message"] == "not looked at, because of workers"


def test_a_broker_that_is_gone_comes_up(tmp_path: Path) -> None:
    port = free_port()
    broker = Broker(f"redis://127.0.0.1:{port}/0")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server(tmp_path, port, keeps=False))
        flower = stack.enter_context(launch("ours", broker, tmp_path / "flower", url_prefix=PREFIX))
        url = f"http://{flower.address}{PREFIX}"
        wait_until(lambda: "broker" in ask(url).named("passed"), what="the broker answers")
        stop(server)
        assert wait_until(lambda: failed(url) != ["workers"] and failed(url), what="it is noticed") == ["broker"]
        assert PASSWORD not in str(ask(url))


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_worker_in_another_time_zone_is_no_problem(tmp_path: Path, zone: str) -> None:
    with cluster(tmp_path, env={"TZ": zone}) as (_, url):
        assert "clocks" in ask(url).named("passed")


@pytest.mark.parametrize(("step", "told"), [(600, "ahead of"), (-600, "behind")])
def test_a_worker_whose_clock_is_wrong_comes_up(tmp_path: Path, step: int, told: str) -> None:
    clock = Clock(tmp_path)
    clock.step(step)
    with cluster(tmp_path, env=clock.environment) as (_, url):
        found = ask(url)
    assert found.named("failed") == ["clocks"], found
    assert re.search(rf"the clock of w1@\S+ is (599|600|601) seconds {told} Flower's", found["clocks"]["message"])


@pytest.mark.parametrize("seconds", [600, -600])
def test_a_clock_that_is_wrong_here_comes_up(
    flower: Flower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr("flower_proxy.check.evidence.time", SimpleNamespace(time=lambda: time.time() + seconds))
    with proxied(healthy(), flower, tmp_path) as url:
        found = ask(url)
    assert found.wrong == ["failed clocks"], found
    assert f"seconds {'behind' if seconds > 0 else 'ahead of'} that of this machine" in found["clocks"]["message"]


def test_another_version_than_the_one_that_checks_comes_up(
    flower: Flower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_proxy.check.checks.__version__", "99.0")
    with proxied(healthy(), flower, tmp_path) as url:
        found = ask(url)
    assert (found.exit_code, found.wrong) == (0, ["warning versions"]), found
    assert "checked by 99.0" in found["versions"]["message"]


# Somebody else answers, or nobody


ELSEWHERE = """
  server { listen 80;
    location = /flower/login-page/-/check { return 302 https://login.example/authorize?state=secret; }
    location = /flower/moved/-/check { return 301 /flower/new/-/check; }
    location /flower/private/ { auth_basic "intranet"; auth_basic_user_file USERS; }
    location /flower/down/ { proxy_pass http://127.0.0.1:CLOSED; }
    location /flower/text/ { default_type text/html; return 200 "<title>Another application</title>"; }
    location /flower/closed/ { deny all; }
    location /flower/prefix/ { proxy_pass http://127.0.0.1:5555; }
    location /flower/stock/ { rewrite ^/flower/stock(.*)$ /flower$1 break; proxy_pass http://STOCK; }
  }
"""


@pytest.fixture(scope="module")
def elsewhere(flower: Flower, worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where nginx answers in many ways that are not Flower's."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "users").touch()
    with launch("stock", worker, folder / "stock", url_prefix=PREFIX) as stock:
        config = substitute(
            ELSEWHERE, {"USERS": str(folder / "users"), "CLOSED": str(free_port()), "STOCK": str(stock.address)}
        )
        with proxied(config, flower, folder) as url:
            yield url


@pytest.mark.parametrize(
    ("path", "says", "remedy"),
    [
        pytest.param("login-page/", "a page to log in at, https://login.example/authorize,", "", id="login-page"),
        pytest.param("moved/", "/flower/moved/ leads to http://localhost:", "check that address", id="moved"),
        pytest.param("private/", "the proxy asks for a password of its own", "one file of users", id="auth-basic"),
        pytest.param("down/", "nginx answers 502 Bad Gateway: it does not reach flower-proxy", "start", id="502"),
        pytest.param("text/", "nginx answers 200 OK, which is not Flower", "mistake in the address", id="other"),
        pytest.param("nothing/", "nginx answers 404 Not Found, which is not Flower", "pass /flower/nothing/", id="404"),
        pytest.param("closed/", "403 Forbidden", "nginx refuses", id="403"),
        pytest.param("prefix/", "Flower answers, but finds no page at", "--url_prefix=/flower/prefix", id="prefix"),
        pytest.param("stock/", "but not flower-proxy", "in place of celery flower", id="stock"),
    ],
)
def test_who_else_answers_is_said_in_one_line(elsewhere: str, path: str, says: str, remedy: str) -> None:
    found = ask(elsewhere + path)
    (finding,) = found.findings
    assert (finding["name"], finding["status"], found.exit_code) == ("launcher", "failed", 1)
    assert says in finding["message"]
    assert remedy in finding["remedy"]
    assert "\n" not in finding["message"]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("user", "password", "says", "remedy"),
    [
        pytest.param("", "", "a password is asked for", "--user NAME", id="nobody"),
        pytest.param(USER, "wrong", "the password of demo, or the name, is wrong", "made up", id="wrong"),
    ],
)
def test_a_password_that_does_not_fit_is_said(flower: Flower, user: str, password: str, says: str, remedy: str) -> None:
    (finding,) = ask(f"http://{flower.address}{PREFIX}", user=user, password=password).findings
    assert says in finding["message"]
    assert remedy in finding["remedy"]


def test_a_refusal_of_the_launcher_is_passed_on(worker: Broker, tmp_path: Path) -> None:
    changes = {**no_header("X-Forwarded-Host"), "Host               $http_host": "Host flower.example"}
    with (
        launch("ours", worker, tmp_path, url_prefix=PREFIX, authenticates=False, options=["--no_auth"]) as flower,
        proxied(substitute(healthy(), changes), flower, tmp_path / "nginx") as url,
    ):
        (finding,) = ask(url, user="").findings
    assert "add --allowed_hosts=flower.example" in finding["message"]


def test_what_cannot_be_reached_is_said(flower: Flower, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    config = "ssl_certificate {}; ssl_certificate_key {}; {}".format(*certificate, healthy())
    with proxied(config, flower, tmp_path / "tls", tls=True) as https, proxied(config, flower, tmp_path / "no") as http:
        said = {
            "nobody listens at": ask(f"http://127.0.0.1:{free_port()}/flower/"),
            "the name flower.invalid is not known": ask("http://flower.invalid/flower/"),
            "does not speak TLS": ask(http.replace("http", "https", 1)),
            "is not good: self-signed certificate": ask(https),
            "400 Bad Request": ask(https.replace("https", "http")),
        }
    for says, found in said.items():
        assert (len(found.findings), found.exit_code) == (1, 1)
        assert says in found["launcher"]["message"], found


def test_what_is_not_http_is_said(worker: Broker) -> None:
    found = ask(worker.url.replace("redis:", "http:").replace("/0", "/flower/"), user="")
    assert (len(found.findings), found.exit_code) == (1, 1)
    assert "does not speak HTTP" in found["launcher"]["message"]


def test_an_answer_that_is_cut_off_is_said() -> None:
    with serving(CutOff) as address:
        found = ask(f"http://{address}/flower/")
    assert (found["launcher"]["message"], found.exit_code) == ("the answer is cut off", 1)


# The command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], "Missing argument 'URL'", id="none"),
        pytest.param(["ftp://example.com/flower"], "'ftp://example.com/flower' is not an address such as", id="ftp"),
        pytest.param(["example.com/flower"], "is not an address such as https://", id="no-scheme"),
        pytest.param(["http://me:hidden@example.com/"], "URL holds a password", id="password"),
        pytest.param(["http://example.com/flower?x=1"], "leave out what stands behind the path", id="query"),
        pytest.param(["http://example.com:99999/"], "URL 'http://example.com:99999/': Port out of range", id="port"),
        pytest.param(["http://me:hidden@example.com:99999/"], "URL holds a password", id="password-and-port"),
        pytest.param(["--user=a:b", "http://example.com/"], "--user: a colon", id="user"),
        pytest.param(["http://example.com/a\\b/"], "a path such as /flower", id="path"),
        pytest.param(["--ca=/dev/null", "https://example.com/"], "--ca: '/dev/null' holds no certificates", id="ca"),
        pytest.param(["--proxy=iis", "https://example.com/"], "'iis' is not one of", id="proxy"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "flower_proxy", "check", *arguments]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "hidden" not in ended.stderr
