"""Loading and validation of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flower_proxy.settings.loader import OptionError, make_parser, read
from flower_proxy.settings.options import OPTIONS
from flower_proxy.settings.validators import parse_size


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*, environ: dict[str, str] | None = None, **given: list[str]) -> dict[str, Any]:
    return read(OPTIONS, environ=environ or {}, given=given)[0]


def test_precedence_is_command_line_then_file_then_environment(folder: Path) -> None:
    environ = {"FLOWER_PORT": "1", "FLOWER_ADDRESS": "a", "FLOWER_DB": "x"}
    (folder / "flowerconfig.py").write_text("port = 2\naddress = 'b'\n")
    assert values(environ=environ, port=["3"]) == {"port": 3, "address": "b", "db": "x"}


def test_the_environment_can_name_the_file(folder: Path) -> None:
    (folder / "mine.py").write_text("import os\nport = 10 * 10\n_helper = 1\nshelves = ['a']\n")
    assert values(environ={"FLOWER_CONF": "mine.py"}) == {"conf": "mine.py", "port": 100}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("True", True),
        ("1", True),
        ("yes", True),
        ("on", True),
        ("false", False),
        ("0", False),
        ("No", False),
    ],
)
def test_booleans_have_several_spellings(folder: Path, text: str, expected: bool) -> None:
    assert values(read_only=[text]) == {"read_only": expected}
    assert values(environ={"FLOWER_READ_ONLY": text}) == {"read_only": expected}


def test_lists_are_separated_by_commas_or_repeated_options(folder: Path) -> None:
    expected = {"basic_auth": ["a:1", "b:2", "c:3"]}
    assert values(basic_auth=["a:1,b:2", "c:3"]) == expected
    assert values(environ={"FLOWER_BASIC_AUTH": "a:1,b:2,c:3"}) == expected
    (folder / "flowerconfig.py").write_text("basic_auth = ['a:1', 'b:2', 'c:3']\n")
    assert values() == expected
    (folder / "flowerconfig.py").write_text("basic_auth = 'a:1,b:2,c:3'\n")
    assert values() == expected


def test_integers_are_accepted_for_floats_in_the_file(folder: Path) -> None:
    (folder / "flowerconfig.py").write_text("inspect_timeout = 500\ntask_runtime_metric_buckets = [1, 2.5]\n")
    parser = make_parser(OPTIONS, values())
    assert (parser.inspect_timeout, parser.task_runtime_metric_buckets) == (500.0, [1.0, 2.5])


def test_transport_options_are_json_or_a_dict_in_the_file(folder: Path) -> None:
    options = {"master_name": "mymaster"}
    (folder / "flowerconfig.py").write_text(f"broker_transport_options = {options}\n")
    assert values()["broker_transport_options"] == options
    given = values(broker_transport_options=['{"master_name": "other"}'])
    assert make_parser(OPTIONS, given).broker_transport_options == {"master_name": "other"}


def test_functions_are_accepted_only_in_the_file(folder: Path) -> None:
    (folder / "flowerconfig.py").write_text("def format_task(task):\n    return task\n")
    assert callable(values()["format_task"])
    with pytest.raises(OptionError, match="--format_task: 'f' is not a function; set it in the configuration file"):
        values(format_task=["f"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": ["abc"]}, "--port: 'abc' is not a whole number"),
        ({"port": ["70000"]}, "--port: 70000 is not between 0 and 65535"),
        ({"port": [""]}, "--port: '' is not a whole number"),
        ({"read_only": ["maybe"]}, "--read_only: 'maybe' is not true or false"),
        ({"inspect_timeout": ["1s"]}, "--inspect_timeout: '1s' is not a number"),
        ({"purge_offline_workers": ["10s"]}, "--purge_offline_workers: '10s' is not a whole number"),
        ({"max_tasks": ["0"]}, "--max_tasks: 0 is not 1 or more"),
        ({"url_prefix": ["https://host/flower"]}, "--url_prefix: 'https://host/flower' is not a path such as /flower"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "--trusted_proxies: '10.0.0.1/8' has host bits set"),
        ({"static_overrides": ["/nowhere"]}, "--static_overrides: '/nowhere' is not a folder"),
        ({"tasks_columns": ["name,uid"]}, "--tasks_columns: 'uid' is not one of name, uuid"),
        ({"broker_api": ["localhost:15672"]}, "--broker_api: the URL has the scheme 'localhost'; use http://"),
        ({"broker_api": ["http://me:a/b@host/api"]}, "--broker_api: the user or password contains / ? or #; write %2F"),
        ({"broker_api": ["http://me:a#b@host/api"]}, "--broker_api: the user or password contains / ? or #; write %2F"),
        (
            {"broker_transport_options": ["a=b"]},
            "--broker_transport_options: the value is not a JSON object such as '{",
        ),
        (
            {"broker_transport_options": ["[1]"]},
            "--broker_transport_options: the value is not a JSON object such as '{",
        ),
        ({"broker_transport_options": ["[" * 99999]}, "--broker_transport_options: the value is not a JSON object"),
        ({"auth": [".*@.*"]}, "--auth: '.*@.*' is not an e-mail address"),
        ({"certfile": ["/nowhere.pem"]}, "--certfile: '/nowhere.pem' is not a readable file"),
        ({"logging": ["loud"]}, "--logging: 'loud' is not one of debug"),
        ({"basic_auth": ["user:p,ss"]}, "--basic_auth: entry 2 is not user:password"),
        ({"basic_auth": ["user:pass,"]}, "--basic_auth: entry 2 is not user:password"),
        ({"basic_auth": [":pass"]}, "--basic_auth: entry 1 is not user:password"),
        ({"conf": ["/nowhere.py"]}, "--conf: file '/nowhere.py' does not exist"),
        ({"auth_file": [""]}, "--auth_file: the path is empty"),
        ({"basic_auth_file": ["/nowhere"]}, "--basic_auth_file: '/nowhere' is not a readable file"),
        ({"metrics_auth": ["prometheus"]}, "--metrics_auth: entry 1 is not user:password"),
        ({"auth_header": ["Authorization"]}, "--auth_header: 'Authorization' is not a header for the user's name"),
        ({"auth_header": ["X User"]}, "--auth_header: 'X User' is not a header for the user's name"),
        ({"allowed_hosts": ["host:80"]}, "--allowed_hosts: 'host:80' is not a host name"),
        ({"cors_origins": ["host"]}, "--cors_origins: 'host' is not an origin"),
        ({"cors_origins": ["https://host/path"]}, "--cors_origins: 'https://host/path' is not an origin"),
        ({"frame_ancestors": ["https://host/path"]}, "--frame_ancestors: 'https://host/path' is not self, none"),
        ({"frame_ancestors": ["self,none"]}, "--frame_ancestors: none cannot be combined"),
        ({"events_buffer": ["64"]}, "--events_buffer: '64' is not a size, such as 64MB or 512KB"),
        ({"events_buffer": ["0MB"]}, "--events_buffer: '0MB' is not a size, such as 64MB or 512KB"),
        ({"unix_socket_mode": ["660x"]}, "--unix_socket_mode: '660x' is not an octal file mode, such as 0660"),
        ({"metrics_port": ["70000"]}, "--metrics_port: 70000 is not between 0 and 65535"),
        ({"cookie_secret": [""]}, "--cookie_secret: the secret is empty"),
        ({"auth": [""]}, "--auth: '' is not an e-mail address"),
        ({"db": ["/nowhere/db"]}, "--db: '/nowhere/db' is not writable"),
        ({"inspect_timeout": ["inf"]}, "--inspect_timeout: inf is not between 1 and 3600000"),
        ({"task_runtime_metric_buckets": ["1,nan"]}, "--task_runtime_metric_buckets: 1.0,nan are not increasing"),
        ({"task_runtime_metric_buckets": ["2,1"]}, "--task_runtime_metric_buckets: 2.0,1.0 are not increasing"),
        ({"trusted_proxies": ["fe80::1%eth0"]}, "--trusted_proxies: 'fe80::1%eth0': omit the zone"),
    ],
)
def test_an_invalid_option_is_an_error(folder: Path, given: dict[str, list[str]], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        read(OPTIONS, environ={}, given=given)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FLOWER_PORT": "true"}, "FLOWER_PORT: 'true' is not a whole number"),
        ({"FLOWER_BASIC_AUTH": ""}, "FLOWER_BASIC_AUTH: entry 1 is not user:password"),
        ({"FLOWER_CONF": "/nowhere.py"}, "FLOWER_CONF: file '/nowhere.py' does not exist"),
        ({"FLOWER_BASIC_AUHT": "a:b"}, "FLOWER_BASIC_AUHT: unknown option; did you mean FLOWER_BASIC_AUTH?"),
    ],
)
def test_an_invalid_variable_is_an_error(folder: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        values(environ=environ)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\nport = 'abc'\n", "line 2: port: 'abc' is not a whole number"),
        ("port = [1]\n", "line 1: port: [1] is not a whole number"),
        ("port = True\n", "line 1: port: True is not a whole number"),
        ("basic_auth = ['a:b', 'c']\n", "line 1: basic_auth: entry 2 is not user:password"),
        ("x = 1\nbasic_auht = ['a:b']\n", "line 2: basic_auht: unknown option; did you mean basic_auth?"),
        ("x = 1\nport =\n", "line 2: SyntaxError: invalid syntax"),
        ("BASIC_AUTH = ['a:b']\n", "line 1: BASIC_AUTH: unknown option; did you mean basic_auth?"),
        ("from os import path as basic_auht\n", "line 1: basic_auht: unknown option"),
        ("basic_auth = None\n", "line 1: basic_auth: None is not a value; set it"),
        ("basic_auth = []\n", "line 1: basic_auth: the list is empty; add user:password"),
        ("auth = ''\n", "line 1: auth: '' is not an e-mail address"),
        ("def f():\n    port = 1\nport = 'x'\n", "line 3: port: 'x' is not a whole number"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("x = 1\n\nport = y\n", "line 3: NameError: "),
    ],
)
def test_an_invalid_line_of_the_file_is_an_error(folder: Path, source: str, message: str) -> None:
    (folder / "flowerconfig.py").write_text(source)
    with pytest.raises(OptionError) as raised:
        values()
    assert str(raised.value).startswith(f"{folder / 'flowerconfig.py'}, {message}")


def test_errors_do_not_contain_secrets(folder: Path) -> None:
    for given in (
        {"basic_auth": ["hush"]},
        {"broker_api": ["hush://x:hush@host"]},
        {"broker_api": ["http://x:/hush@host"]},
        {"broker_transport_options": ["'hush'"]},
    ):
        with pytest.raises(OptionError) as raised:
            read(OPTIONS, environ={}, given=given)
        assert "hush@" not in str(raised.value)
        assert "'hush'" not in str(raised.value).replace("scheme 'hush'", "")


def test_variables_of_kubernetes_are_ignored_with_a_warning(folder: Path) -> None:
    """Stock Flower does not start (mher/flower#738)."""
    environ = {
        "FLOWER_PORT": "tcp://10.0.0.1:5555",
        "FLOWER_SERVICE_HOST": "10.0.0.1",
        "FLOWER_SERVICE_PORT": "5555",
        "FLOWER_SERVICE_PORT_HTTP": "5555",
        "FLOWER_PORT_5555_TCP": "tcp://10.0.0.1:5555",
        "FLOWER_PORT_5555_TCP_ADDR": "10.0.0.1",
        "FLOWER_PROXY_PORT": "tcp://10.0.0.1:5555",
        "FLOWER_PROXY_SERVICE_HOST": "10.0.0.1",
        "FLOWER_MAX_TASKS": "10",
        "FLOWER_IMAGE_TAG": "latest",
    }
    found, notes = read(OPTIONS, environ=environ, given={})
    assert found == {"max_tasks": 10}
    assert len(notes) == 1
    for name in set(environ) - {"FLOWER_MAX_TASKS", "FLOWER_IMAGE_TAG"}:
        assert name in notes[0]


@pytest.mark.parametrize("name", ["static_overrides", "url_prefix", "broker_api"])
def test_an_empty_value_means_unset(folder: Path, name: str) -> None:
    """As in stock Flower, so that systemd units can pass optional variables."""
    assert values(environ={f"FLOWER_{name.upper()}": ""}) == {name: ""}


@pytest.mark.parametrize(
    ("text", "size"), [("64MB", 64_000_000), ("512kb", 512_000), ("2 GB", 2_000_000_000), ("1KB", 1000)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("level", ["INFO", "Debug", "warning"])
def test_log_levels_are_case_insensitive(folder: Path, level: str) -> None:
    assert values(logging=[level]) == {"logging": level}


def test_tls_requires_certificate_and_key(folder: Path) -> None:
    (folder / "cert.pem").touch()
    with pytest.raises(OptionError, match="--certfile and --keyfile: TLS needs both"):
        values(certfile=["cert.pem"])
    with pytest.raises(OptionError, match="--ca_certs: TLS is not configured; add --certfile and --keyfile"):
        values(ca_certs=["cert.pem"])


@pytest.mark.parametrize("value", ["true", "enabled"])
def test_the_variable_that_opens_flowers_api_has_no_effect(folder: Path, value: str) -> None:
    """Stock Flower disables the authentication of its API, or fails for values such as "enabled" (mher/flower#1231)."""
    values_, notes = read(OPTIONS, environ={"FLOWER_UNAUTHENTICATED_API": value}, given={})
    assert values_ == {}
    assert notes == ["FLOWER_UNAUTHENTICATED_API has no effect; use --no_auth if the reverse proxy authenticates users"]
