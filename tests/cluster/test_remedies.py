"""Configuration lines that ``flower-proxy check`` suggests, validated by the proxies they are for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flower_proxy.check.evidence import SPOOFED_HEADERS
from flower_proxy.check.remedies import LINES, Advice
from tests.support.processes import program


def nginx(remedies: Sequence[str], folder: Path) -> list[str]:
    # Where a line of one is to be put in place of another, or is for a person
    lines = [remedy for remedy in remedies if not remedy.startswith(("location", "remove", "look", "let"))]
    locations = [remedy for remedy in remedies if remedy.startswith("location")]
    text = "\n".join(remedy + "}" if remedy.endswith("{") else remedy for remedy in locations)
    config = f"events {{}} http {{ access_log off; server {{ {text} location /x/ {{ {' '.join(lines)} }} }} }}"
    (folder / "nginx.conf").write_text(config)
    return [program("nginx"), "-t", "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "pid nginx.pid;"]


def apache(remedies: Sequence[str], folder: Path) -> list[str]:
    modules = "mpm_event authz_core headers alias deflate filter proxy"
    loaded = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules.split()]
    lines = [remedy for remedy in remedies if not remedy.startswith("l")]
    (folder / "apache.conf").write_text(
        "\n".join([*loaded, "ServerName localhost", "Listen 127.0.0.1:1", "ErrorLog error.log", *lines])
    )
    return [program("apache2"), "-t", "-d", str(folder), "-f", str(folder / "apache.conf")]


def caddy(remedies: Sequence[str], folder: Path) -> list[str]:
    upstream = [remedy for remedy in remedies if remedy.startswith("header_up")]
    lines = [remedy for remedy in remedies if not remedy.startswith(("header_up", "l"))]
    proxy = ["reverse_proxy /flower/* 127.0.0.1:5555 {", *upstream, "}"]
    (folder / "Caddyfile").write_text("\n".join(["http://localhost:1 {", *lines, *proxy, "}"]))
    return [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.mark.parametrize("checked_by", [nginx, apache, caddy])
def test_each_line_is_one_that_the_proxy_takes(
    checked_by: Callable[[Sequence[str], Path], list[str]], tmp_path: Path
) -> None:
    name = checked_by.__name__
    advice = Advice(name, "/flower")
    remedies = [advice.line(key) for key in LINES]
    remedies += advice.set_headers(*SPOOFED_HEADERS).splitlines()
    ended = subprocess.run(checked_by(remedies, tmp_path), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
