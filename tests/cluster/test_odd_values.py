"""``flower-proxy config`` with hostile values: the parser of each format returns the same value, or it is refused."""

from __future__ import annotations

import configparser
import functools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_proxy.deploy.targets import PROXY_OPTIONS, TARGETS
from flower_proxy.proxy.addresses import is_ip
from flower_proxy.proxy.paths import parse_mount
from tests.cluster.test_services import FLOWER_PROXY, INSTALLED, container_words, dumped, setting
from tests.support.configurations import config, documents
from tests.support.processes import program
from tests.support.prometheus import promtool
from tests.support.proxies import checked

# The first example of Hypothesis takes seconds
SLOW_EXAMPLES = settings(suppress_health_check=[HealthCheck.too_slow])
HOSTILE = [
    *(
        "yes",
        "No",
        "null",
        "~",
        "on",
        "1",
        "1e3",
        "0x1f",
        "0o17",
        "1_000",
        "12:30:45",
        ".inf",
        "2024-01-01",
        "---",
        "...",
    ),
    *("-x", "#x", "?", "@x", "!x", "*x", "&x", "|", ">", "[x", "{x", "x]", "x}", "x, y", "x: y", "x #y", "x ;y", ";"),
    *('"', "'", "`", "\\", "x\\", '\\"', "\\n", "x'y\"z", "$HOME", "${HOME}", "$(HOME)", "$$(x)", "$$", "$", "{$HOME}"),
    *("%", "%n", "%(x)s", "%%", "{{ port }}", "{% raw x %}", "{# x #}", "{http.request.uri}", "<x>", "</VirtualHost>"),
    *("a\nb", "a\rb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "a\ufeffb", "a\udc80b"),
    *(
        " x",
        "x ",
        "a b",
        "a\u00a0b",
        "é",
        "日本",
        "😀",
        "\u202ex",
        "a;b",
        "a|b",
        "a&&b",
        "../x",
        "x=y",
        "--x=y",
        "import",
    ),
    *(
        "/a.b",
        "/~x",
        "/-/x",
        "/a+b",
        "/@=_",
        "/a.b/c-d/e~f",
        "//x//",
        "/%41",
        "/a?b",
        "/yes",
        "/null",
        "/[x]",
        "/(x)",
        "/x$",
    ),
    *("a.b-c", "-a.b", "a-.b", "a..b", "1.2.3.4", "1.2.3.4:80", "::", "::1", "[::1]", "fe80::1%eth0", "0.0.0.0"),
    *(
        "localhost",
        "null.example",
        "http://[",
        "http://[::1]:1",
        "http://h:99999",
        "http://h/",
        "https://h:1/",
        "http://a:\u0661",
    ),
    *("X-A", "Yes", "X_A", "X A", "-X", "X:", "/run/f.sock", "/run/@a+b.sock", "x" * 300, "/" + "x" * 300),
]
"""Values that are special in one of the formats, or valid only for some options."""

OPTIONS: dict[str, tuple[str, Sequence[str]]] = {
    "--url_prefix": ("/flower", []),
    "--server_name": ("flower.test", []),
    "--address": ("10.0.0.5", []),
    "--unix_socket": ("/run/flower.sock", []),
    "--auth_file": ("/etc/flower/users", ["--proxy_basic_auth", ""]),
    "--auth_header": (
        "X-User",
        ["--forward_auth=http://127.0.0.1:4180", "--proxy_basic_auth", "--trusted_proxies=127.0.0.1"],
    ),
    "--forward_auth": ("http://127.0.0.1:4180", ["--auth_header=X-User"]),
    "--metrics_address": ("10.0.0.6", ["--metrics_port=9808"]),
    "--metrics_auth": ("prometheus", []),
    "--queues": ("emails", []),
    "--oauth2_key": ("key", []),
    "--workdir": ("/srv/other", []),
    "-A": ("server", []),
}
"""Options whose values are part of the output, with a valid value, and required options of which one is added."""

IN_THE_COMMAND = ("--queues", "--workdir", "-A")
"""Options whose values may be any text, and are part of the command only."""

OF_YAML = ("traefik", "ingress-nginx", "compose", "kubernetes", "prometheus")
PROXIES = ("nginx", "apache", "caddy", "haproxy")


def systemd_words(unit: str) -> list[str]:
    """Parse ExecStart: quotes, specifiers (only %d and %S), and variables."""
    (line,) = setting(unit, "ExecStart")
    words = [re.sub(r"%(.)", lambda match: {"%": "%", "d": "", "S": ""}[match[1]], word) for word in shlex.split(line)]
    return [re.sub(r"\$(.?)", lambda match: {"$": "$"}[match[1]], word) for word in words]


def supervisor_words(text: str) -> list[str]:
    """Parse the command like supervisor."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=True)
    parser.read_string(text)
    return shlex.split(parser["program:flower-proxy"]["command"] % {})


READERS_OF_WORDS: Mapping[str, Callable[[str], list[str]]] = {
    "systemd": systemd_words,
    "supervisor": supervisor_words,
    **{name: partial(container_words, name) for name in ("compose", "dockerfile", "kubernetes")},
}


def command_of(text: str) -> list[str]:
    """Return the command in the first comment."""
    line = next(line for line in text.split("\n") if re.match(r"[#;]   flower-proxy ", line))
    return shlex.split(line.lstrip("#; "))


def leaves(document: Any) -> Iterator[Any]:
    if isinstance(document, dict):
        for value in document.values():
            yield from leaves(value)
    elif isinstance(document, list):
        for value in document:
            yield from leaves(value)
    else:
        yield document


def shape(target: str, text: str) -> object:
    """Return the structure, which no value may change: keys and types in YAML, else the first word of each line.

    The first word may be the path of a program in ``--workdir``, of which only the slash counts.
    """
    if target not in OF_YAML:
        return re.findall(r"^[^\w/]*(?:/|\w*)", text, re.MULTILINE)

    def of(document: Any) -> Any:
        if isinstance(document, dict):
            return {key: of(value) for key, value in document.items()}
        return [of(value) for value in document] if isinstance(document, list) else type(document)

    return [of(document) for document in documents(text)]


def words_for(target: str, option: str, value: str) -> list[str]:
    text = f"{value}:secret" if option == "--metrics_auth" else value
    given = [option, text] if option == "-A" else [f"{option}={text}"]
    takes = TARGETS[target].takes
    for more in OPTIONS[option][1]:
        name = more.partition("=")[0].lstrip("-")
        if not more or name in takes or name not in PROXY_OPTIONS:
            return [target, *given, *([more] if more else [])]
    return [target, *given]


def written(option: str, value: str) -> str:
    """Return the expected value after parsing."""
    if option == "--metrics_auth":
        return value.partition(":")[0]
    return ",".join(part.strip() for part in value.split(",")) if option == "--queues" else value


def accepted(target: str, option: str, value: str) -> str | None:
    """Return the configuration; None if the value is refused with a one-line error that names the option."""
    done = config(*words_for(target, option, value))
    if done.returncode == 0:
        return done.stdout
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert option in done.stderr
    return None


@functools.cache
def accepted_values(option: str) -> list[str]:
    """Return the hostile values that at least nginx accepts."""
    return [value for value in HOSTILE if accepted("nginx", option, value)]


CASES = [
    *(
        (target, option)
        for target in TARGETS
        for option in OPTIONS
        if option not in (*IN_THE_COMMAND, "--metrics_auth", "--oauth2_key")
    ),
    *((target, "--queues") for target in ("nginx", "prometheus", *READERS_OF_WORDS)),
    *((target, option) for target in ("systemd", "supervisor", "kubernetes") for option in ("--workdir", "-A")),
    ("prometheus", "--metrics_auth"),
]


@pytest.mark.parametrize(("target", "option"), CASES)
def test_values_are_preserved_or_refused(target: str, option: str) -> None:
    fine, _ = OPTIONS[option]
    expected = accepted(target, option, fine)
    for value in accepted_values(option) if expected else ():
        text = accepted(target, option, value)
        if text is None:
            continue
        assert text.replace("\n", "").replace("\t", "").isprintable()
        if option not in ("--address", "--metrics_address"):
            assert shape(target, text) == shape(target, str(expected)), value
        expected_value = written(option, value)
        if option in IN_THE_COMMAND:
            word = f"{option}={expected_value}" if option == "--queues" else expected_value
            assert word in command_of(text)
            if target in READERS_OF_WORDS and option != "--workdir":
                assert word in READERS_OF_WORDS[target](text)
        elif target in OF_YAML and expected_value not in ("0.0.0.0", "::") and fine in str(documents(str(expected))):
            read = [leaf for leaf in leaves(documents(text)) if isinstance(leaf, str)]
            assert any(expected_value.strip("/").lower() in leaf.lower() for leaf in read), value


@SLOW_EXAMPLES
@given(st.text(max_size=40))
def test_any_text_is_preserved_in_the_command(value: str) -> None:
    for target, read in READERS_OF_WORDS.items():
        if (text := accepted(target, "--oauth2_key", value)) and value:
            assert f"--oauth2_key={value}" in read(text)


# Parsers of the real programs

IN_PROXIES = ("--url_prefix", "--server_name", "--address", "--unix_socket", "--auth_file", "--auth_header")


@pytest.mark.parametrize("target", PROXIES)
def test_proxies_accept_all_values_that_are_not_refused(target: str, tmp_path: Path) -> None:
    texts = {
        accepted(target, option, value)
        for option in IN_PROXIES
        for value in accepted_values(option)
        # Host names would need DNS
        if option != "--address" or is_ip(value)
    }
    for text in texts - {None}:
        checked(target, str(text), tmp_path)


def test_caddy_preserves_prefixes(tmp_path: Path) -> None:
    for prefix in accepted_values("--url_prefix"):
        (tmp_path / "Caddyfile").write_text(str(accepted("caddy", "--url_prefix", prefix)))
        command = [program("caddy"), "adapt", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
        read = list(leaves(json.loads(subprocess.run(command, capture_output=True, check=True).stdout)))
        mount = parse_mount(prefix)
        assert {mount, f"{mount}/*", f"{mount}/metrics"} - {""} <= set(read), prefix


def test_systemd_preserves_words(tmp_path: Path) -> None:
    values = [value for value in accepted_values("--queues") if accepted("systemd", "--queues", value)]
    units = [tmp_path / f"{number}.service" for number in range(len(values))]
    for unit, value in zip(units, values, strict=True):
        unit.write_text(str(accepted("systemd", "--queues", value)).replace(INSTALLED, FLOWER_PROXY))
    # systemd-analyze does not expand variables, and escapes $ and ` with a backslash
    lines = dumped(*units)["Command Line"]
    read = {word.replace("$$", "$") for line in lines for word in shlex.split(re.sub(r"\\([$`])", r"\1", line))}
    assert {f"--queues={written('--queues', value)}" for value in values} <= read


def test_prometheus_accepts_all_users_that_are_not_refused(tmp_path: Path) -> None:
    """One file has a job for each user."""
    texts = [str(accepted("prometheus", "--metrics_auth", value)) for value in accepted_values("--metrics_auth")]
    head, _ = texts[0].split("scrape_configs:\n")
    jobs = [text.split("scrape_configs:\n")[1].replace("celery", str(number)) for number, text in enumerate(texts)]
    (tmp_path / "rules.yml").touch()
    (tmp_path / "prometheus.yml").write_text(f"{head}scrape_configs:\n{''.join(jobs)}")
    promtool("check", "config", "--syntax-only", str(tmp_path / "prometheus.yml"))
