"""``flower-proxy check``: each defect fails its own check and no other."""

from __future__ import annotations

import contextlib
import io
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
from flower_proxy.cli.main import main
from tests.support import proxies
from tests.support.clock import Clock
from tests.support.doctor import PASSWORD, ask
from tests.support.examples import read
from tests.support.processes import PROJECT, Address, free_port, program, running, stop, wait_until
from tests.support.programs import (
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


@contextlib.contextmanager
def proxied(config: str, flower: Flower, folder: Path) -> Iterator[str]:
    """Run nginx with this configuration, and yield the URL of Flower behind it."""
    public = Address(free_port())
    with nginx(listening(config, flower, public), folder, ready=public):
        yield url_of(public)


def listening(config: str, flower: Flower, public: Address) -> str:
    """Let a server configuration listen at this address in front of this Flower."""
    listen = f"listen {public} {'ssl' if public.tls else ''};"
    return substitute(config, {"listen 80;": listen, "127.0.0.1:5555": str(flower.address)})


def url_of(public: Address) -> str:
    return f"{'https' if public.tls else 'http'}://localhost:{public.port}{PREFIX}/"


def substitute(config: str, changes: Mapping[str, str]) -> str:
    """Replace each key by its value; every key must be in the configuration."""
    missing = [old for old in changes if old not in config]
    assert not missing, f"not in the configuration: {missing}"
    return proxies.substitute(config, changes)


def healthy() -> str:
    """Return the README's configuration, in a server."""
    config, _ = read("README.md")
    return config


def apply(config: str, remedy: str) -> str:
    """Insert the lines of a remedy in place of existing ones for the same header or location."""
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


@pytest.fixture(scope="module")
def urls(
    flower: Flower, certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    """Run one nginx with a server for each misconfiguration and two healthy ones; yield URLs by name."""
    servers = {case.id: (substitute(healthy(), case.changes), case.tls) for case in MISCONFIGURATIONS}
    servers |= {"http": (healthy(), False), "https": (healthy(), True)}
    addresses = {name: Address(free_port(), tls=tls) for name, (_, tls) in servers.items()}
    configs = [listening(config, flower, addresses[name]) for name, (config, _) in servers.items()]
    config = "\n".join([with_certificate(certificate), *configs])
    with nginx(config, tmp_path_factory.mktemp("nginx"), ready=addresses["http"]):
        yield {name: url_of(address) for name, address in addresses.items()}


def with_certificate(certificate: tuple[Path, Path]) -> str:
    return "ssl_certificate {}; ssl_certificate_key {};".format(*certificate)


# A healthy deployment


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_healthy_deployment_passes(urls: Mapping[str, str], certificate: tuple[Path, Path], scheme: str) -> None:
    found = ask(urls[scheme], *([f"--ca={certificate[0]}"] if scheme == "https" else []))
    assert (found.exit_code, found.named("passed")) == (0, CHECKS), found


def test_readme_sample_matches_the_output(urls: Mapping[str, str]) -> None:
    """The README shows a proxy that loses the port; "…" in the sample stands for any lines."""
    url = urls["host-without-port"]
    command = [sys.executable, "-m", "flower_proxy", "check", url, "--user", USER]
    result = subprocess.run(command, input=f"{PASSWORD}\n", capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (1, "")
    (sample,) = re.findall(
        r"<!-- check -->\n```\n(.*?)```\n<!-- /check -->", (PROJECT / "README.md").read_text(), re.DOTALL
    )
    port = url.split(":")[2].partition("/")[0]
    output = f"$ flower-proxy check {url} --user {USER}\nPassword:\n{result.stdout}"
    parts = sample.split("…\n")
    assert len(parts) > 1
    assert re.fullmatch("(?:.*\n)*?".join(map(re.escape, parts)), re.sub(rf":{port}\b", ":8080", output)), output


@pytest.mark.parametrize("color", [False, True])
def test_output_is_coloured_only_on_terminals(flower: Flower, color: bool) -> None:
    url = f"http://{flower.address}{PREFIX}"
    result = CliRunner().invoke(check, ["--user", USER, url], input=f"{PASSWORD}\n", color=color)
    assert ("\x1b[32mpassed" in result.stdout) is color
    assert PASSWORD not in result.stdout


# A misconfigured proxy


@dataclass(frozen=True)
class Misconfiguration:
    """A defect of the nginx configuration.

    :ivar changes: text of the healthy configuration, and its replacement.
    :ivar wrong: status and name of the only finding.
    :ivar message: part of its message.
    :ivar manual: whether the remedy is an instruction instead of configuration lines.
    """

    id: str
    changes: Mapping[str, str]
    wrong: str
    message: str
    tls: bool = False
    manual: bool = False


def without_header(name: str) -> dict[str, str]:
    """Remove the line that sets a header."""
    (line,) = re.findall(rf"proxy_set_header {name} .*?;", healthy())
    return {line: ""}


def in_location(text: str) -> dict[str, str]:
    return {"location /flower/ {": f"location /flower/ {{ {text}"}


def for_static_files(text: str) -> dict[str, str]:
    return {"location = /flower/metrics": f"location /flower/static/ {{ {text} }} location = /flower/metrics"}


REDIRECT = re.findall(r"location = /flower \{.*?\}", healthy())[0]
PASS = "proxy_pass http://127.0.0.1:5555;"

MISCONFIGURATIONS = [
    Misconfiguration(
        "host-without-port",
        {"X-Forwarded-Host   $http_host": "X-Forwarded-Host $host"},
        "failed host",
        "the host localhost, but",
    ),
    Misconfiguration(
        "missing-host",
        {**without_header("Host"), **without_header("X-Forwarded-Host")},
        "failed host",
        "Flower sees the host 127.0.0.1",
    ),
    Misconfiguration(
        "missing-scheme", without_header("X-Forwarded-Proto"), "failed scheme", "Flower sees the scheme http,", tls=True
    ),
    Misconfiguration(
        "wrong-scheme",
        {"X-Forwarded-Proto  $scheme": "X-Forwarded-Proto https"},
        "failed scheme",
        "but the URL has http",
    ),
    Misconfiguration(
        "wrong-prefix", {"X-Forwarded-Prefix /flower": "X-Forwarded-Prefix /other"}, "failed prefix", "/other"
    ),
    Misconfiguration(
        "missing-redirect",
        {REDIRECT: "location = /flower { return 404; }"},
        "failed slash",
        "does not redirect to /flower/: 404",
    ),
    Misconfiguration(
        "redirect-without-port",
        {REDIRECT: "port_in_redirect off; location = /flower { return 301 /flower/; }"},
        "failed slash",
        "redirects to http://localhost/flower/",
    ),
    Misconfiguration(
        "missing-client",
        without_header("X-Forwarded-For"),
        "failed client",
        "every client's address as the proxy's, 127.0.0.1",
    ),
    Misconfiguration("spoofable-scheme", without_header("X-Forwarded-Proto"), "failed forwarded", "X-Forwarded-Proto"),
    Misconfiguration(
        "spoofable-prefix", without_header("X-Forwarded-Prefix"), "failed forwarded", "can spoof X-Forwarded-Prefix"
    ),
    Misconfiguration(
        "spoofable-host", without_header("X-Forwarded-Host"), "failed forwarded", "can spoof X-Forwarded-Host"
    ),
    Misconfiguration(
        "static-location",
        {"location /flower/ {": "location ~ \\.(css|js)$ { root /nowhere; } location /flower/ {"},
        "failed static",
        "/flower/static/js/theme.js does not load: 404 Not Found",
    ),
    Misconfiguration(
        "wrong-content-type",
        for_static_files(f"{PASS} proxy_hide_header Content-Type; add_header Content-Type text/plain;"),
        "failed static",
        "its Content-Type is text/plain",
        manual=True,
    ),
    Misconfiguration(
        "missing-compression",
        in_location('proxy_set_header Accept-Encoding "";'),
        "warning compression",
        "kB of scripts",
        manual=True,
    ),
    Misconfiguration(
        "missing-cache",
        for_static_files(f"{PASS} proxy_hide_header Cache-Control; add_header Cache-Control no-store;"),
        "warning cache",
        "Cache-Control is no-store",
        manual=True,
    ),
    Misconfiguration(
        "blocked-post", in_location("limit_except GET { deny all; }"), "failed post", "403 Forbidden", manual=True
    ),
    Misconfiguration(
        "decoded-path",
        {PASS: "proxy_pass http://127.0.0.1:5555/flower/;"},
        "warning encoding",
        "arrives as /a/b",
        manual=True,
    ),
    Misconfiguration(
        "missing-origin",
        in_location('proxy_set_header Origin "";'),
        "failed origin",
        "because Origin does not reach Flower",
        manual=True,
    ),
    Misconfiguration(
        "missing-fetch-metadata",
        in_location('proxy_set_header Sec-Fetch-Site "";'),
        "failed origin",
        "because Sec-Fetch-Site does not reach Flower",
        manual=True,
    ),
    Misconfiguration(
        "small-body-limit", in_location("client_max_body_size 8k;"), "failed body", "413 Request Entity Too Large"
    ),
    Misconfiguration(
        "proxy-adds-credentials",
        in_location('proxy_set_header Authorization "Basic ZGVtbzpzZWNyZXQ=";'),
        "failed authentication",
        "the proxy adds credentials",
        manual=True,
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in MISCONFIGURATIONS])
def test_misconfiguration_is_reported_with_an_effective_remedy(
    flower: Flower, urls: Mapping[str, str], certificate: tuple[Path, Path], tmp_path: Path, case: Misconfiguration
) -> None:
    options = ["--insecure"] if case.tls else []
    found = ask(urls[case.id], *options)
    status, name = case.wrong.split()
    assert found.wrong == [case.wrong], found
    assert case.message in found[name]["message"]
    assert found[name]["remedy"]
    assert found.exit_code == (status == "failed")
    if not case.manual:
        public = Address(free_port(), tls=case.tls)
        config = listening(apply(substitute(healthy(), case.changes), found[name]["remedy"]), flower, public)
        with nginx(with_certificate(certificate) + config, tmp_path, ready=public):
            assert ask(url_of(public), *options).wrong == [], found


# Other proxies, and none


def test_stripping_proxy_without_forwarded_prefix_gets_a_warning(worker: Broker, tmp_path: Path) -> None:
    config, _ = read("nginx/stripped.conf")
    broken = config.replace("proxy_set_header X-Forwarded-Prefix /flower;", "")
    with launch("ours", worker, tmp_path / "flower") as flower:
        wait_until(lambda: knows_workers(flower), what="Flower knows the worker")
        with proxied(broken, flower, tmp_path / "broken") as url:
            found = ask(url)
        assert (found.exit_code, found.wrong) == (0, ["warning prefix"]), found
        with proxied(apply(broken, found["prefix"]["remedy"]), flower, tmp_path / "cured") as url:
            assert ask(url).wrong == []


def caddy(flower: Flower, public: Address, remedies: Sequence[str], folder: Path) -> list[str]:
    inside = [line for line in remedies if line.startswith("header_up")]
    beside = [line for line in remedies if line not in inside]
    upstream = [f"reverse_proxy {PREFIX}* {flower.address} {{", *inside, "}"]
    off = "{\n admin off\n auto_https off\n}"
    (folder / "config").write_text("\n".join([off, f"http://{public} {{", *beside, *upstream, "}\n"]))
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "config")]


def apache(flower: Flower, public: Address, remedies: Sequence[str], folder: Path) -> list[str]:
    modules = "mpm_event authz_core headers alias proxy proxy_http"
    loaded = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules.split()]
    own = ["ServerName localhost", f"Listen {public}", "ErrorLog error.log", "PidFile apache.pid"]
    passes = f"ProxyPass {PREFIX} http://{flower.address}{PREFIX}"
    (folder / "config").write_text("\n".join([*loaded, *own, *remedies, passes, ""]))
    return [program("apache2"), "-D", "FOREGROUND", "-d", str(folder), "-f", str(folder / "config")]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        pytest.param(caddy, ["failed forwarded"], id="caddy"),
        pytest.param(apache, ["failed forwarded", "warning encoding"], id="apache"),
    ],
)
def test_unconfigured_proxy_passes_with_the_suggested_lines(
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


def test_direct_connection_lacks_nothing(flower: Flower) -> None:
    found = ask(f"http://{flower.address}{PREFIX}")
    assert (found.exit_code, found.wrong) == (0, []), found
    assert found["trust"]["message"] == "there is no reverse proxy"


# Unsuitable options of flower-proxy


HEADER = ["--auth_header=X-Forwarded-User"]


@pytest.mark.parametrize(
    ("options", "wrong", "message"),
    [
        pytest.param(
            ["--trusted_proxies=192.0.2.1"], "trust", "127.0.0.1 is not trusted, so its headers are ignored", id="trust"
        ),
        pytest.param(["--metrics_open"], "metrics", "/metrics is public", id="metrics"),
        pytest.param(HEADER, "authentication", "accepted with a spoofed X-Forwarded-User", id="header"),
    ],
)
def test_unsuitable_option_is_reported(
    worker: Broker, tmp_path: Path, options: list[str], wrong: str, message: str
) -> None:
    config = healthy()
    with launch("ours", worker, tmp_path / "flower", url_prefix=PREFIX, options=options) as flower:
        wait_until(lambda: knows_workers(flower), what="Flower knows the worker")
        with proxied(config, flower, tmp_path / "nginx") as url:
            found = ask(url)
        assert found.wrong == [f"failed {wrong}"], found
        assert message in found[wrong]["message"]
        if wrong != "trust":
            with proxied(apply(config, found[wrong]["remedy"]), flower, tmp_path / "cured") as url:
                assert ask(url).wrong == []
    if wrong == "trust":
        option = found[wrong]["remedy"].rpartition(" ")[2]
        with launch("ours", worker, tmp_path / "cured", url_prefix=PREFIX, options=[option]) as flower:
            wait_until(lambda: knows_workers(flower), what="Flower knows the worker")
            with proxied(config, flower, tmp_path / "nginx") as url:
                assert ask(url).wrong == []


def knows_workers(flower: Flower) -> bool:
    """Return whether events of a worker have been received, and the broker has answered."""
    found = ask(f"http://{flower.address}{flower.path}")
    return not {"workers", "broker"} & {name for status in ("failed", "skipped") for name in found.named(status)}


@pytest.fixture(scope="module")
def public_flower(worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder, options = tmp_path_factory.mktemp("public"), ["--no_auth"]
    with launch("ours", worker, folder, url_prefix=PREFIX, authenticates=False, options=options) as flower:
        wait_until(lambda: knows_workers(flower), what="Flower knows the worker")
        yield flower


def test_disabled_authentication_is_reported(public_flower: Flower, tmp_path: Path) -> None:
    with proxied(healthy(), public_flower, tmp_path) as url:
        found = ask(url)
    assert found.wrong == ["failed authentication"], found
    assert "--no_auth" in found["authentication"]["message"]


def test_rejection_by_flower_is_shown(public_flower: Flower, tmp_path: Path) -> None:
    changes = {**without_header("X-Forwarded-Host"), "Host               $http_host": "Host flower.example"}
    with proxied(substitute(healthy(), changes), public_flower, tmp_path) as url:
        (finding,) = ask(url, user="").findings
    assert "add --allowed_hosts=flower.example" in finding["message"]


# An unhealthy cluster


def failed(url: str) -> list[str]:
    return ask(url).named("failed")


def test_missing_task_events_are_reported(tmp_path: Path) -> None:
    """An idle worker cannot be distinguished from one that sends no task events."""
    off = {"WITHOUT_TASK_EVENTS": "1"}
    # The check compares heartbeats
    options = ["--heartbeat-interval=1"]
    with (
        redis(tmp_path) as broker,
        launch("ours", broker, tmp_path / "flower", url_prefix=PREFIX, options=["--enable_events=false"]) as flower,
    ):
        url = f"http://{flower.address}{PREFIX}"
        with worker_process(broker, tmp_path / "broken", env=off, options=options):
            wait_until(lambda: knows_workers(flower), what="Flower knows the worker")
            found = ask(url)
            assert (found["events"]["status"], found.named("failed")) == ("skipped", []), found
            wait_until(lambda: broker.run_tasks() and failed(url), what="the missing task events are noticed")
            found = ask(url)
            assert found.named("failed") == ["events"]
        assert found["events"]["remedy"].startswith("start the worker with -E,")
        with worker_process(broker, tmp_path / "cured", env=off, options=["-E", *options]):
            wait_until(lambda: broker.run_tasks() and "events" in ask(url).named("passed"), what="task events arrive")


def test_missing_workers_and_broker_are_reported(tmp_path: Path) -> None:
    port = free_port()
    broker = Broker(f"redis://127.0.0.1:{port}/0")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_server(tmp_path, port, keeps=False))
        flower = stack.enter_context(launch("ours", broker, tmp_path / "flower", url_prefix=PREFIX))
        url = f"http://{flower.address}{PREFIX}"
        wait_until(lambda: "broker" in ask(url).named("passed"), what="the broker answers")
        found = ask(url)
        assert found.named("failed") == ["workers"]
        assert found["events"]["message"] == "depends on workers, which did not pass"
        stop(server)
        assert wait_until(lambda: failed(url) != ["workers"] and failed(url), what="it is noticed") == ["broker"]
        assert PASSWORD not in str(ask(url))


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clock, str]]:
    """Run two workers in different time zones, and Flower; yield the clock of the first worker, and Flower's URL."""
    folder = tmp_path_factory.mktemp("clocked")
    clock = Clock(folder)
    tokyo, new_york = ({"TZ": zone} for zone in ("Asia/Tokyo", "America/New_York"))
    with (
        redis(folder) as broker,
        worker_process(broker, folder / "tokyo", env={**clock.environment, **tokyo}),
        worker_process(broker, folder / "new-york", name="w2@%h", env=new_york),
        launch("ours", broker, folder / "flower", url_prefix=PREFIX) as flower,
    ):
        url = f"http://{flower.address}{PREFIX}"
        wait_until(lambda: knows_workers(flower) and "2 online" in ask(url)["workers"]["message"], what="both online")
        yield clock, url


def test_time_zones_of_workers_do_not_matter(clocked: tuple[Clock, str]) -> None:
    assert "clocks" in ask(clocked[1]).named("passed")


@pytest.mark.parametrize(("step", "direction"), [(600, "ahead of"), (-600, "behind")])
def test_wrong_clock_of_a_worker_is_reported(clocked: tuple[Clock, str], step: int, direction: str) -> None:
    clock, url = clocked
    clock.step(step)
    try:
        wait_until(lambda: direction in ask(url)["clocks"]["message"], what="Flower receives a heartbeat")
        found = ask(url)
    finally:
        clock.step(0)
    assert found.named("failed") == ["clocks"], found
    assert re.search(rf"the clock of w1@\S+ is (599|600|601) seconds {direction} Flower's", found["clocks"]["message"])
    wait_until(lambda: "clocks" in ask(url).named("passed"), what="the clock is correct again")


@pytest.mark.parametrize("seconds", [600, -600])
def test_wrong_local_clock_is_reported(urls: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    monkeypatch.setattr("flower_proxy.check.evidence.time", SimpleNamespace(time=lambda: time.time() + seconds))
    found = ask(urls["http"])
    assert found.wrong == ["failed clocks"], found
    assert f"seconds {'behind' if seconds > 0 else 'ahead of'} this machine's" in found["clocks"]["message"]


def test_other_version_of_flower_proxy_is_reported(urls: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flower_proxy.check.checks.__version__", "99.0")
    found = ask(urls["http"])
    assert (found.exit_code, found.wrong) == (0, ["warning versions"]), found
    assert "checked with flower-proxy 99.0" in found["versions"]["message"]


# Other servers, and none


OTHER_SERVERS = """
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
def other_servers(flower: Flower, worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run nginx with responses that are not flower-proxy's, and yield its URL."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "users").touch()
    with launch("stock", worker, folder / "stock", url_prefix=PREFIX) as stock:
        config = substitute(
            OTHER_SERVERS, {"USERS": str(folder / "users"), "CLOSED": str(free_port()), "STOCK": str(stock.address)}
        )
        with proxied(config, flower, folder) as url:
            yield url


@pytest.mark.parametrize(
    ("path", "message", "remedy"),
    [
        pytest.param(
            "login-page/", "the proxy redirects to a login page, https://login.example/authorize", "", id="login-page"
        ),
        pytest.param("moved/", "/flower/moved/ redirects to http://localhost:", "check that URL", id="moved"),
        pytest.param(
            "private/", "the proxy itself requires authentication (Basic)", "one password file", id="auth-basic"
        ),
        pytest.param("down/", "nginx answers 502 Bad Gateway: it does not reach flower-proxy", "start", id="502"),
        pytest.param("text/", "nginx answers 200 OK, but is not Flower", "check the URL", id="other"),
        pytest.param("nothing/", "nginx answers 404 Not Found, but is not Flower", "pass /flower/nothing/", id="404"),
        pytest.param("closed/", "nginx answers 403 Forbidden", "see its log", id="403"),
        pytest.param("prefix/", "Flower answers, but has no page at", "--url_prefix=/flower/prefix", id="prefix"),
        pytest.param("stock/", "but without flower-proxy", "instead of 'celery flower'", id="stock"),
    ],
)
def test_response_of_another_server_is_explained(other_servers: str, path: str, message: str, remedy: str) -> None:
    found = ask(other_servers + path)
    (finding,) = found.findings
    assert (finding["name"], finding["status"], found.exit_code) == ("launcher", "failed", 1)
    assert message in finding["message"]
    assert remedy in finding["remedy"]
    assert "\n" not in finding["message"]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("user", "password", "message", "remedy"),
    [
        pytest.param("", "", "Flower requires authentication", "--user NAME", id="no-user"),
        pytest.param(USER, "wrong", "wrong username or password (user demo)", "generated password", id="wrong"),
    ],
)
def test_rejected_credentials_are_reported(flower: Flower, user: str, password: str, message: str, remedy: str) -> None:
    (finding,) = ask(f"http://{flower.address}{PREFIX}", user=user, password=password).findings
    assert message in finding["message"]
    assert remedy in finding["remedy"]


def test_unreachable_server_is_explained(urls: Mapping[str, str]) -> None:
    http, https = urls["http"], urls["https"]
    results = {
        "refuses the connection": ask(f"http://127.0.0.1:{free_port()}/flower/"),
        "the hostname flower.invalid does not resolve": ask("http://flower.invalid/flower/"),
        "the TLS handshake with localhost": ask(http.replace("http", "https", 1)),
        "is not valid: self-signed certificate": ask(https),
        "400 Bad Request": ask(https.replace("https", "http")),
    }
    for message, found in results.items():
        assert (len(found.findings), found.exit_code) == (1, 1)
        assert message in found["launcher"]["message"], found


def test_other_protocol_is_reported(worker: Broker) -> None:
    found = ask(worker.url.replace("redis:", "http:").replace("/0", "/flower/"), user="")
    assert (len(found.findings), found.exit_code) == (1, 1)
    assert "does not answer in HTTP" in found["launcher"]["message"]


def test_incomplete_response_is_reported() -> None:
    with serving(CutOff) as address:
        found = ask(f"http://{address}/flower/")
    assert (found["launcher"]["message"], found.exit_code) == ("the response is incomplete", 1)


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "Missing argument 'URL'", id="none"),
        pytest.param(["ftp://example.com/flower"], "'ftp://example.com/flower': expected an address such as", id="ftp"),
        pytest.param(["example.com/flower"], "expected an address such as https://", id="no-scheme"),
        pytest.param(["http://me:hidden@example.com/"], "URL contains a password", id="password"),
        pytest.param(["http://example.com/flower?x=1"], "remove the query and the fragment", id="query"),
        pytest.param(["http://example.com:99999/"], "URL 'http://example.com:99999/': Port out of range", id="port"),
        pytest.param(["http://me:hidden@example.com:99999/"], "URL contains a password", id="password-and-port"),
        pytest.param(["--user=a:b", "http://example.com/"], "contains a colon", id="user"),
        pytest.param(["http://example.com/a\\b/"], "a path such as /flower", id="path"),
        pytest.param(["--ca=/dev/null", "https://example.com/"], "--ca: '/dev/null' contains no certificates", id="ca"),
        pytest.param(["--proxy=iis", "https://example.com/"], "'iis' is not one of", id="proxy"),
    ],
)
def test_invalid_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (2, "")
    assert message in output.err
    assert len(output.err.splitlines()) == 1
    assert "hidden" not in output.err
