"""What can be set, from where, and what is said when it cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flower_proxy.settings.loader import OptionError, make_parser, read
from flower_proxy.settings.options import OPTIONS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the launcher is started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*, environ: dict[str, str] | None = None, **given: list[str]) -> dict[str, Any]:
    return read(OPTIONS, environ=environ or {}, given=given)[0]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(folder: Path) -> None:
    environ = {"FLOWER_PORT": "1", "FLOWER_ADDRESS": "a", "FLOWER_DB": "x"}
    (folder / "flowerconfig.py").write_text("port = 2\naddress = 'b'\n")
    assert values(environ=environ, port=["3"]) == {"port": 3, "address": "b", "db": "x"}


def test_the_file_may_be_named_by_the_environment(folder: Path) -> None:
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
def test_true_and_false_in_every_spelling(folder: Path, text: str, expected: bool) -> None:
    assert values(read_only=[text]) == {"read_only": expected}
    assert values(environ={"FLOWER_READ_ONLY": text}) == {"read_only": expected}


def test_lists_are_written_with_commas_or_by_repeating(folder: Path) -> None:
    expected = {"basic_auth": ["a:1", "b:2", "c:3"]}
    assert values(basic_auth=["a:1,b:2", "c:3"]) == expected
    assert values(environ={"FLOWER_BASIC_AUTH": "a:1,b:2,c:3"}) == expected
    (folder / "flowerconfig.py").write_text("basic_auth = ['a:1', 'b:2', 'c:3']\n")
    assert values() == expected
    (folder / "flowerconfig.py").write_text("basic_auth = 'a:1,b:2,c:3'\n")
    assert values() == expected


def test_a_whole_number_is_a_number_in_the_file(folder: Path) -> None:
    (folder / "flowerconfig.py").write_text("inspect_timeout = 500\ntask_runtime_metric_buckets = [1, 2.5]\n")
    parser = make_parser(OPTIONS, values())
    assert (parser.inspect_timeout, parser.task_runtime_metric_buckets) == (500.0, [1.0, 2.5])


def test_transport_options_are_json_or_a_dict_of_the_file(folder: Path) -> None:
    options = {"master_name": "mymaster"}
    (folder / "flowerconfig.py").write_text(f"broker_transport_options = {options}\n")
    assert values()["broker_transport_options"] == options
    given = values(broker_transport_options=['{"master_name": "other"}'])
    assert make_parser(OPTIONS, given).broker_transport_options == {"master_name": "other"}


def test_a_function_comes_from_the_file_only(folder: Path) -> None:
    (folder / "flowerconfig.py").write_text("def format_task(task):\n    return task\n")
    assert callable(values()["format_task"])
    with pytest.raises(OptionError, match="--format_task: 'f' is not a function, which only the configuration file"):
        values(format_task=["f"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": ["abc"]}, "--port: 'abc' is not a whole number"),
        ({"port": ["70000"]}, "--port: 70000 is not 0 to 65535"),
        ({"port": [""]}, "--port: '' is not a whole number"),
        ({"read_only": ["maybe"]}, "--read_only: 'maybe' is not true or false"),
        ({"inspect_timeout": ["1s"]}, "--inspect_timeout: '1s' is not a number"),
        ({"purge_offline_workers": ["10s"]}, "--purge_offline_workers: '10s' is not a whole number"),
        ({"max_tasks": ["0"]}, "--max_tasks: 0 is not 1 or more"),
        ({"url_prefix": ["https://host/flower"]}, "--url_prefix: 'https://host/flower' is not a path such as /flower"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "--trusted_proxies: '10.0.0.1/8' has host bits set"),
        ({"static_overrides": ["/nowhere"]}, "--static_overrides: '/nowhere' is not a folder"),
        ({"tasks_columns": ["name,uid"]}, "--tasks_columns: 'uid' is not one of name, uuid"),
        ({"broker_api": ["localhost:15672"]}, "--broker_api: invalid scheme"),
        ({"broker_api": ["http://me:a/b@host/api"]}, "--broker_api: / ? # in the user or password must be written %2F"),
        ({"broker_api": ["http://me:a#b@host/api"]}, "--broker_api: / ? # in the user or password must be written %2F"),
        (
            {"broker_transport_options": ["a=b"]},
            "--broker_transport_options: the value is not a JSON object such as '{",
        ),
        (
            {"broker_transport_options": ["[1]"]},
            "--broker_transport_options: the value is not a JSON object such as '{",
        ),
        ({"broker_transport_options": ["[" * 99999]}, "--broker_transport_options: the value is not a JSON object"),
        ({"auth": [".*@.*"]}, "--auth: '.*@.*' is not an address"),
        ({"certfile": ["/nowhere.pem"]}, "--certfile: '/nowhere.pem' is not a file that can be read"),
        ({"logging": ["loud"]}, "--logging: 'loud' is not one of debug"),
        ({"basic_auth": ["user:p,ss"]}, "--basic_auth: entry 2 is not user:password"),
        ({"basic_auth": ["user:pass,"]}, "--basic_auth: entry 2 is not user:password"),
        ({"basic_auth": [":pass"]}, "--basic_auth: entry 1 is not user:password"),
        ({"conf": ["/nowhere.py"]}, "--conf: there is no file '/nowhere.py'"),
        ({"auth_file": [""]}, "--auth_file: it is empty"),
        ({"basic_auth_file": ["/nowhere"]}, "--basic_auth_file: '/nowhere' is not a file that can be read"),
        ({"metrics_auth": ["prometheus"]}, "--metrics_auth: entry 1 is not user:password"),
        ({"auth_header": ["Authorization"]}, "--auth_header: 'Authorization' is not a header in which a proxy names"),
        ({"auth_header": ["X User"]}, "--auth_header: 'X User' is not a header in which a proxy names the user"),
        ({"allowed_hosts": ["host:80"]}, "--allowed_hosts: 'host:80' is not a host name"),
        ({"cors_origins": ["host"]}, "--cors_origins: 'host' is not an origin"),
        ({"cors_origins": ["https://host/path"]}, "--cors_origins: 'https://host/path' is not an origin"),
        ({"frame_ancestors": ["https://host/path"]}, "--frame_ancestors: 'https://host/path' is not self, none"),
        ({"frame_ancestors": ["self,none"]}, "--frame_ancestors: none allows nobody"),
        ({"unix_socket_mode": ["660x"]}, "--unix_socket_mode: '660x' is not a mode such as 0660"),
        ({"metrics_port": ["70000"]}, "--metrics_port: 70000 is not 0 to 65535"),
        ({"cookie_secret": [""]}, "--cookie_secret: it is empty"),
        ({"auth": [""]}, "--auth: '' is not an address"),
        ({"db": ["/nowhere/db"]}, "--db: '/nowhere/db' cannot be written"),
        ({"inspect_timeout": ["inf"]}, "--inspect_timeout: inf is not 1 to 3600000"),
        ({"task_runtime_metric_buckets": ["1,nan"]}, "--task_runtime_metric_buckets: 1.0,nan are not bounds that rise"),
        ({"task_runtime_metric_buckets": ["2,1"]}, "--task_runtime_metric_buckets: 2.0,1.0 are not bounds that rise"),
        ({"trusted_proxies": ["fe80::1%eth0"]}, "--trusted_proxies: 'fe80::1%eth0': omit the zone"),
    ],
)
def test_a_bad_value_on_the_command_line_is_named(folder: Path, given: dict[str, list[str]], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        read(OPTIONS, environ={}, given=given)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FLOWER_PORT": "true"}, "FLOWER_PORT: 'true' is not a whole number"),
        ({"FLOWER_BASIC_AUTH": ""}, "FLOWER_BASIC_AUTH: entry 1 is not user:password"),
        ({"FLOWER_CONF": "/nowhere.py"}, "FLOWER_CONF: there is no file '/nowhere.py'"),
        ({"FLOWER_BASIC_AUHT": "a:b"}, "FLOWER_BASIC_AUHT: there is no such option; did you mean FLOWER_BASIC_AUTH?"),
    ],
)
def test_a_bad_variable_is_named(folder: Path, environ: dict[str, str], message: str) -> None:
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
        ("x = 1\nbasic_auht = ['a:b']\n", "line 2: basic_auht: there is no such option; did you mean basic_auth?"),
        ("x = 1\nport =\n", "line 2: SyntaxError: invalid syntax"),
        ("BASIC_AUTH = ['a:b']\n", "line 1: BASIC_AUTH: there is no such option; did you mean basic_auth?"),
        ("from os import path as basic_auht\n", "line 1: basic_auht: there is no such option"),
        ("basic_auth = None\n", "line 1: basic_auth: it is None, which would let everybody in"),
        ("basic_auth = []\n", "line 1: basic_auth: it is empty: leave it out, or name a user"),
        ("auth = ''\n", "line 1: auth: '' is not an address"),
        ("def f():\n    port = 1\nport = 'x'\n", "line 3: port: 'x' is not a whole number"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("x = 1\n\nport = y\n", "line 3: NameError: "),
    ],
)
def test_a_bad_line_of_the_file_is_named(folder: Path, source: str, message: str) -> None:
    (folder / "flowerconfig.py").write_text(source)
    with pytest.raises(OptionError) as raised:
        values()
    assert str(raised.value).startswith(f"{folder / 'flowerconfig.py'}, {message}")


def test_no_secret_is_repeated(folder: Path) -> None:
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


def test_what_kubernetes_sets_is_left_alone_with_a_note(folder: Path) -> None:
    """P5."""
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
def test_an_empty_value_is_none(folder: Path, name: str) -> None:
    """As in stock Flower: units name variables that may be unset."""
    assert values(environ={f"FLOWER_{name.upper()}": ""}) == {name: ""}


@pytest.mark.parametrize("level", ["INFO", "Debug", "warning"])
def test_levels_in_any_case(folder: Path, level: str) -> None:
    assert values(logging=[level]) == {"logging": level}


def test_tls_needs_both_files(folder: Path) -> None:
    (folder / "cert.pem").touch()
    with pytest.raises(OptionError, match="--certfile and --keyfile: one without the other"):
        values(certfile=["cert.pem"])
    with pytest.raises(OptionError, match="--ca_certs: without --certfile and --keyfile there is no TLS"):
        values(ca_certs=["cert.pem"])


@pytest.mark.parametrize("value", ["true", "enabled"])
def test_the_variable_that_opens_flowers_api_has_no_effect(folder: Path, value: str) -> None:
    """P8: stock Flower drops every connection for a value that it cannot read, and opens itself for the others."""
    values_, notes = read(OPTIONS, environ={"FLOWER_UNAUTHENTICATED_API": value}, given={})
    assert values_ == {}
    assert notes == [
        "FLOWER_UNAUTHENTICATED_API has no effect: --no_auth says that somebody in front asks who is asking"
    ]
