"""The command line: spellings of options, errors, start-up summary and help."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import celery
import pytest
import tornado

import flower_proxy
from flower_proxy._flower import FLOWER_JS, flower_settings, flower_version
from flower_proxy.cli import serve
from flower_proxy.settings.options import OPTIONS
from tests.support import command, forks
from tests.support.command import APPLICATION, OPEN, environment, started
from tests.support.forks import run, run_python
from tests.support.processes import Address, answers, free_port, request, running, wait_until


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a Celery application named ``shop``."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("flower_proxy -A shop --port=PORT", id="celery-option-first"),
        pytest.param("flower_proxy --port=PORT -A shop", id="celery-option-last"),
        pytest.param("flower_proxy --port PORT --app=shop", id="space-and-equals"),
        pytest.param("flower_proxy --app shop:app --port PORT --url_prefix flower", id="underscores"),
        pytest.param("flower_proxy -A shop --port PORT --url-prefix=flower --max-tasks 10", id="dashes"),
        pytest.param("flower_proxy --read_only -A shop --debug no --auto-refresh=False --port PORT", id="flags"),
        pytest.param("flower_proxy -b memory:// --port PORT", id="broker-only"),
        pytest.param("flower_proxy -A shop -port=PORT", id="single-dash-as-in-flower"),
        pytest.param("celery -A shop flower-proxy --port=PORT --url-prefix flower", id="celery-subcommand"),
    ],
)
def test_options_are_accepted_in_any_position_and_spelling(project: Path, words: str) -> None:
    """In stock Flower they depend on the position and on the equals sign (mher/flower#1103)."""
    with started(words.split(), project) as (address, _, _):
        assert request(address, "/").status == 200
        if "prefix" in words:
            assert 'href="/flower/tasks"' in request(address, "/flower/").text


# Part of an application
COLLECTOR = """
import gc, json, pathlib, sys, threading, time

def wait():
    while not gc.get_freeze_count():
        time.sleep(0.01)
    pathlib.Path("collector.new").write_text(json.dumps([gc.get_threshold(), sys.getswitchinterval()]))
    pathlib.Path("collector.new").rename("collector.json")

threading.Thread(target=wait, daemon=True).start()
"""


def test_the_event_loop_is_held_briefly(project: Path) -> None:
    """A full collection held it for 353 ms."""
    (project / "shop.py").write_text(APPLICATION + COLLECTOR)
    with started(["flower_proxy", "-A", "shop", "--port", "PORT"], project):
        wait_until((project / "collector.json").exists, what="all objects of the start are frozen")
    thresholds, interval = json.loads((project / "collector.json").read_text())
    assert tuple(thresholds) == serve._GC_THRESHOLDS
    assert interval == pytest.approx(serve._SWITCH_INTERVAL)


def test_workdir_is_the_folder_of_the_application(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    words = ["flower_proxy", "--workdir", str(project), "-A", "shop", "--port", "PORT"]
    with started(words, elsewhere) as (address, _, _):
        assert request(address, "/").status == 200


def test_options_are_read_from_environment_and_file(project: Path) -> None:
    (project / "flowerconfig.py").write_text("url_prefix = 'from-file'\nnatural_time = True\n")
    with started(["flower_proxy", "--port=PORT"], project, APP="shop", FLOWER_URL_PREFIX="from-variable") as (
        address,
        _,
        _,
    ):
        assert 'href="/from-file/tasks"' in request(address, "/").text
        assert 'value="natural-time' in request(address, "/tasks").text


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["-A", "shop", "--basic_auht=a:b"], "--basic_auht: unknown option; did you mean --basic_auth?", 2),
        (["-A", "shop", "--basic-auht", "a:b"], "--basic_auht: unknown option; did you mean --basic_auth?", 2),
        (["-A", "shop", "--nonsense-indeed"], "--nonsense_indeed: unknown option; run flower-proxy --help", 2),
        (["-A", "shop", "--port"], "--port", 2),
        (["-A", "shop", "--port=abc"], "--port: 'abc' is not a whole number", 2),
        (["-A", "shop", "--debug=maybe"], "--debug: 'maybe' is not true or false", 2),
        (["-A", "shop", "--conf=missing.py"], "--conf: file 'missing.py' does not exist", 2),
        (["-A", "shop", "surplus"], "'surplus' is neither a command nor the value of an option; separate", 2),
        (["demoo"], "'demoo' is neither a command nor the value of an option; did you mean demo?", 2),
        (["-A", "shop", "--port=0", "demo"], "-A: place options of demo after it; see flower-proxy demo --help", 2),
        (["--port=0", "hash-password", "me"], "--port: place options of hash-password after it", 2),
        (["--no_auth", "check", "http://localhost:1/"], "--no_auth: place options of check after it", 2),
        (["-A", "shop", "-l", "loud"], "--logging: 'loud' is not one of debug, info", 2),
        (["-A", "shop", "--loglevel"], "--loglevel: the value is missing", 2),
        (["-A", "shop", "-basic_auht=a:b"], "-basic_auht: unknown option; did you mean --basic_auth?", 2),
        (["-A", "shop", "-basic_auth=a"], "--basic_auth: entry 1 is not user:password", 2),
        (["-A", "shop", "--db", "--basic_auth=a:b"], "--db: the value is missing", 2),
        (["-A", "shop", "--result-backend", "--basic_auth=a:b"], "--result-backend: the value is missing", 2),
        (["-A", "shop:"], "-A: 'shop:' is not a Celery application", 2),
        (["-A", "crooked"], "-A: 'crooked' cannot be imported: ", 2),
        (["-b", "redis://u:TOPSEC/x@h:1/0"], "the broker URL is malformed; percent-encode", 2),
        (["-A", "shop", "--unix_socket=shop.py"], "--unix_socket: cannot listen on 'shop.py'", 1),
        (["-A", "shop", "--log_file_prefix=/nowhere/x"], "the --log_ options cannot be used: ", 2),
        (["-A", "shop", "--address=300.1.1.1"], "--address: '300.1.1.1': ", 2),
        (["-A", "shop", "--workdir=/nowhere"], "--workdir: '/nowhere': No such file or directory", 2),
        (["-A", "missing"], "-A: 'missing' cannot be imported: ModuleNotFoundError: No module named 'missing'", 2),
        (["-A", "os"], "-A: 'os' contains no Celery application; name it with -A MODULE:ATTRIBUTE", 2),
        (["-A", "broken"], "-A: 'broken' cannot be imported: ZeroDivisionError: division by zero (", 2),
        ([], "no application or broker is given; add -A", 2),
        (["-b", "nope://host"], "the broker URL cannot be used: No such transport: nope", 2),
        (
            ["-b", "memory://", "--config=missing_settings"],
            "Celery's configuration cannot be loaded: ModuleNotFoundError: No module",
            2,
        ),
        (["-A", "configured"], "-A: 'configured': Celery's configuration cannot be loaded: ModuleNotFoundError", 2),
        (["-A", "shop", "--certfile=shop.py", "--keyfile=shop.py"], "--certfile and --keyfile: ", 2),
        (
            ["-A", "shop", "--unix_socket=/nowhere/flower.sock"],
            "--unix_socket: cannot listen on '/nowhere/flower.sock'",
            1,
        ),
        (["-A", "shop", "--port=0", "--address=192.0.2.1"], "--port: cannot listen on 192.0.2.1, port 0", 1),
    ],
)
def test_an_error_is_one_line_and_prevents_the_start(
    project: Path, arguments: list[str], message: str, status: int
) -> None:
    """Stock Flower ignores unknown options (mher/flower#892)."""
    (project / "broken.py").write_text("x = 1\ny = 1 / 0\n")
    (project / "crooked.py").write_text("x = 1\ny =\n")
    configured = f"{APPLICATION}app.config_from_object('missing_settings')\n"
    (project / "configured.py").write_text(configured)
    result = run(arguments, project)
    assert "TOPSEC" not in result.stderr
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("flower-proxy: ")
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        ("-A shop --basic_auht=a:b", 2, "flower-proxy: --basic_auht: unknown option; did you mean --basic_auth?\n"),
        ("-A shop --port=abc", 2, "flower-proxy: --port: 'abc' is not a whole number\n"),
        ("-A os", 2, "flower-proxy: -A: 'os' contains no Celery application; name it with -A MODULE:ATTRIBUTE\n"),
    ],
)
def test_a_new_process_reports_errors_like_a_fork(project: Path, words: str, status: int, error: str) -> None:
    result = command.run(words.split(), project)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", error)


@pytest.mark.parametrize("option", ["--basic_auht=a:b", "--port=abc", "--db --basic_auth=a:b", "-basic_auth=a"])
def test_an_error_of_the_celery_subcommand_is_one_line(project: Path, option: str) -> None:
    result = run_python(["-m", "celery", "-A", "shop", "flower-proxy", *option.split()], project)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr


def test_options_of_celery_take_effect(project: Path) -> None:
    words = ["flower_proxy", "-b", "memory://", "--result-backend=cache+memory://", "--loader=app", "-C", "-q"]
    with started([*words, "--skip-checks", "--port=PORT", "--url_prefix=quiet"], project) as (address, _, log):
        assert request(address, "/quiet/").status == 200
        assert "Visit me" not in log.read_text()
        assert "\x1b[" not in log.read_text()


def test_an_error_in_the_application_is_shown_with_its_line(project: Path) -> None:
    (project / "broken.py").write_text("x = 1\ny = 1 / 0\n")
    assert f"({project / 'broken.py'}, line 2)" in run(["-A", "broken"], project).stderr


def test_a_port_in_use_is_an_error(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command.run(["-A", "shop", "--address=127.0.0.1", f"--port={port}"], project)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"--port: cannot listen on 127.0.0.1, port {port}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_newer_flower_starts_with_a_warning(project: Path) -> None:
    newer = "import flower; flower.__version__ = '2.99.0'; from flower_proxy.cli.main import main; main()"
    with changed(newer, project) as (address, log):
        assert request(address, "/").status == 200
        assert log.read_text().count("Flower 2.99.0 is newer than ") == 1


def test_an_unknown_flower_js_is_served_unchanged_with_a_warning(project: Path) -> None:
    shutil.copytree(flower_settings["static_path"], project / "static")
    script = project / "static" / FLOWER_JS
    script.write_text(script.read_text().replace("function active_page(", "function is_active("))
    moved = "import flower.urls; flower.urls.settings['static_path'] = 'static'; "
    with changed(f"{moved}from flower_proxy.cli.main import main; main()", project) as (address, log):
        assert request(address, "/static/js/flower.js").text.endswith(script.read_text())
        assert log.read_text().count("Cannot correct Flower's js/flower.js: it has no function active_page") == 1


@contextmanager
def changed(program: str, project: Path) -> Iterator[tuple[Address, Path]]:
    """Run a program that modifies Flower and then runs the command."""
    address, log = Address(free_port()), project / "log"
    words = [sys.executable, "-c", program, "-A", "shop", f"--port={address.port}"]
    with running(words, log=log, ready=lambda: answers(address, "/healthcheck"), cwd=project, env=environment(OPEN)):
        yield address, log


def test_a_stale_unix_socket_is_replaced_but_not_one_in_use(project: Path) -> None:
    path = project / "flower.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        result = run(["-A", "shop", f"--unix_socket={path}"], project)
        assert result.returncode == 1
        assert "another process listens on it" in result.stderr
    address = Address(socket_path=path)
    words = [sys.executable, "-m", "flower_proxy", "-A", "shop", f"--unix_socket={path}"]
    with running(
        words, log=project / "log", ready=lambda: answers(address, "/healthcheck"), cwd=project, env=environment(OPEN)
    ):
        assert request(address, "/").status == 200


def test_variables_of_kubernetes_are_ignored_with_a_warning(project: Path) -> None:
    """Stock Flower does not start (mher/flower#738)."""
    with started(
        ["flower_proxy", "-A", "shop", "--port=PORT"],
        project,
        FLOWER_PORT="tcp://10.0.0.1:5555",
        FLOWER_SERVICE_HOST="h",
    ) as (_, _, log):
        assert "Ignoring variables that Kubernetes or Docker set: FLOWER_PORT, FLOWER_SERVICE_HOST" in log.read_text()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server(project: Path, signal_number: int) -> None:
    with started(["flower_proxy", "-A", "shop", "--port=PORT"], project) as (address, process, log):
        process.send_signal(signal_number)
        assert process.wait(timeout=30) == 0
        assert not address.accepts()
        assert "Traceback" not in log.read_text()


def test_sigterm_stops_the_server_while_the_broker_does_not_respond(project: Path) -> None:
    """Stock Flower has to be killed (mher/flower#771)."""
    with socket.create_server(("127.0.0.1", 0)) as unresponsive:
        unresponsive.settimeout(30)
        broker = f"redis://127.0.0.1:{unresponsive.getsockname()[1]}/0"
        with started(["flower_proxy", "-b", broker, "--port=PORT"], project) as (_, process, _):
            connection, _ = unresponsive.accept()
            with connection:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["--address=127.0.0.1"],
            [
                r"Visit me at http://127\.0\.0\.1:PORT/$",
                r"Authentication: generated password for one user$",
                r"Trusted proxies: 127\.0\.0\.0/8, ::1, unix$",
                r"Broker: memory://",
            ],
        ),
        (
            ["--url_prefix=/a/flower/", "--basic_auth=demo:secret,bob:secret", "--trusted_proxies=10.0.0.0/8"],
            [
                r"Visit me at http://127\.0\.0\.1:PORT/a/flower/$",
                r"^\[W .*Listening on all interfaces, so other hosts can connect; set --address=127\.0\.0\.1 if ",
                r"Authentication: passwords of 2 user\(s\)$",
                r"Trusted proxies: 10\.0\.0\.0/8$",
            ],
        ),
        (["--address=::1", "--url_prefix=/"], [r"Visit me at http://\[::1\]:PORT/$"]),
        (["--address=0.0.0.0"], [r"Visit me at http://127\.0\.0\.1:PORT/$"]),
    ],
)
def test_the_start_up_summary_shows_the_configuration(project: Path, arguments: list[str], lines: list[str]) -> None:
    """Stock Flower listens on all interfaces but logs 127.0.0.1."""
    address = Address(free_port())
    words = [sys.executable, "-m", "flower_proxy", "-A", "shop", f"--port={address.port}", *arguments]
    log = project / "log"
    with running(words, log=log, ready=lambda: "Broker: " in log.read_text(), cwd=project, env=environment()):
        summary = log.read_text()
    for line in lines:
        assert re.search(line.replace("PORT", str(address.port)), summary, re.MULTILINE), summary
    assert ("all interfaces" in summary) == ("--address" not in " ".join(arguments))
    assert "secret" not in summary


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("-l DEBUG", "debug"),
        ("-l debug", "debug"),
        ("-ldebug", "debug"),
        ("--loglevel=debug", "debug"),
        ("--loglevel info", "info"),
        ("-l=warning", "warning"),
        ("-l FATAL", "critical"),
        ("--loglevel=CRITICAL", "critical"),
        ("-logging=error", "error"),
    ],
)
def test_the_loglevel_of_celery_sets_logging_with_a_warning(project: Path, words: str, level: str) -> None:
    result = run_python(["-c", LEVEL, "-A", "shop", *words.split()], project)
    note = f"Interpreting -l or --loglevel as --logging={level}, the name of the option in Flower"
    assert result.stdout == f"{level} {[] if 'logging' in words else [note]}\n", result.stderr


def test_the_loglevel_of_celery_works_in_the_celery_subcommand(project: Path) -> None:
    with started(["celery", "-A", "shop", "flower-proxy", "--port=PORT", "-l", "info"], project) as (_, _, log):
        assert log.read_text().count("Interpreting -l or --loglevel as --logging=info") == 1


LEVEL = """\
from flower_proxy.cli import serve
from flower_proxy.cli.main import main

serve.serve = lambda app, options, notes, **_: print(options.logging, notes)
main()
"""


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("-A server --url_prefix=flower config nginx", "-A server --address=127.0.0.1 --url_prefix=flower"),
        ("-A server --url-prefix flower --persistent yes config nginx -A shop --url_prefix=x",
         "-A shop --address=127.0.0.1 --url_prefix=x --persistent"),
        ("-A server config nginx --tls", "-A server --address=127.0.0.1"),
    ],
)  # fmt: skip
def test_options_before_config_are_passed_on_to_it(project: Path, arguments: str, printed: str) -> None:
    result = run(arguments.split(), project, env={"APP": "other"})
    assert result.returncode == 0, result.stderr
    assert f"flower-proxy {printed}\n" in result.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_help_has_valid_examples_and_fits_the_terminal(project: Path, columns: int) -> None:
    text = run(["--help"], project, env={"COLUMNS": str(columns)}).stdout
    examples = re.findall("^ +(flower-proxy .+)$", text, re.MULTILINE)
    assert len(examples) == 2
    assert all(run([*example.split()[1:], "--help"], project).returncode == 0 for example in examples)
    assert "..." not in text.split("Celery and general")[0].partition("\n")[2]
    buckets = OPTIONS["task_runtime_metric_buckets"].shown_default.split(",")
    assert f"default: {', '.join(buckets)};" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= columns


def test_help_shows_every_option_with_its_default_and_variable(project: Path) -> None:
    result = run(["--help"], project)
    text = " ".join(result.stdout.split())
    assert result.returncode == 0
    for option in OPTIONS.values():
        assert f"--{option.name} " in text
        # click wraps long lines
        assert option.variable in text.replace(" ", "")
    assert "[default: 5555; FLOWER_PORT]" in text
    assert "Reverse proxy:" in text
    assert "--workdir" in text


LOADED = """\
import sys
from tornado.options import options

before = options.as_dict()
from flower_proxy.cli.main import main

try:
    main()
except SystemExit:
    print(sorted({"flower", "tornado.web"} & set(sys.modules)), options.as_dict() == before)
"""


@pytest.mark.parametrize(
    "words", ["--help", "--version", "config nginx --url_prefix=flower", "config --help", "check http://127.0.0.1:1/"]
)
def test_flower_is_loaded_only_to_start_it(project: Path, words: str) -> None:
    result = run_python(["-c", LOADED, *words.split()], project, preload=forks.LIGHT)
    assert result.stdout.splitlines()[-1] == "[] True", result.stderr


LATER_FLOWER = """\
from flower.options import define, options

define("brand_new", type=int, default=7)
define("switch", type=bool, default=False)
before = options.as_dict()

from flower_proxy.cli import serve
from flower_proxy.cli.main import main

serve.serve = lambda capp, ours, notes, **_: print(ours.brand_new, ours.switch, options.as_dict() == before)
main()
"""


@pytest.mark.parametrize(
    ("arguments", "env", "file", "printed"),
    [
        pytest.param([], {}, "", "7 False", id="default"),
        pytest.param(["--switch", "--brand-new", "8"], {}, "", "8 True", id="command-line"),
        pytest.param([], {"FLOWER_BRAND_NEW": "8", "FLOWER_SWITCH": "yes"}, "", "8 True", id="environment"),
        pytest.param([], {}, "brand_new = 8", "8 False", id="file"),
    ],
)
def test_an_option_of_a_newer_flower_is_accepted(
    project: Path, arguments: list[str], env: dict[str, str], file: str, printed: str
) -> None:
    (project / "flowerconfig.py").write_text(file)
    result = run_python(["-c", LATER_FLOWER, "-A", "shop", *arguments], project, env)
    assert result.stdout == f"{printed} True\n", result.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--brand_new=x", "--brand_new: 'x' is not a whole number"),
        ("--brand_nwe=8", "--brand_nwe: unknown option; did you mean --brand_new?"),
    ],
)
def test_an_error_in_an_option_of_a_newer_flower_is_one_line(project: Path, word: str, message: str) -> None:
    result = run_python(["-c", LATER_FLOWER, "-A", "shop", word], project)
    assert result.stderr == f"flower-proxy: {message}\n"


def test_the_celery_subcommand_has_help(project: Path) -> None:
    result = run_python(["-m", "celery", "-A", "shop", "flower-proxy", "--help"], project)
    assert result.returncode == 0
    assert "--url_prefix" in result.stdout


def test_version_shows_the_versions_of_dependencies(project: Path) -> None:
    versions = run(["--version"], project).stdout
    for version in (flower_proxy.__version__, flower_version, celery.__version__, tornado.version):
        assert version in versions
