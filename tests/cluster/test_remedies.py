"""Configuration lines suggested by ``flower-proxy check``, validated by each proxy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flower_proxy.check.evidence import SPOOFED_HEADERS
from flower_proxy.check.remedies import LINES, Advice
from tests.support.processes import program

INSTRUCTIONS = ("configure", "remove", "see")


def nginx(remedies: Sequence[str], folder: Path) -> list[str]:
    lines = [remedy for remedy in remedies if not remedy.startswith(("location", *INSTRUCTIONS))]
    locations = [remedy for remedy in remedies if remedy.startswith("location")]
    text = "\n".join(remedy + "}" if remedy.endswith("{") else remedy for remedy in locations)
    config = f"events {{}} http {{ access_log off; server {{ {text} location /x/ {{ {' '.join(lines)} }} }} }}"
    (folder / "nginx.conf").write_text(config)
    return [program("nginx"), "-t", "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "pid nginx.pid;"]


def apache(remedies: Sequence[str], folder: Path) -> list[str]:
    modules = "mpm_event authz_core headers alias proxy"
    loaded = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules.split()]
    lines = [remedy for remedy in remedies if not remedy.startswith(INSTRUCTIONS)]
    (folder / "apache.conf").write_text(
        "\n".join([*loaded, "ServerName localhost", "Listen 127.0.0.1:1", "ErrorLog error.log", *lines])
    )
    return [program("apache2"), "-t", "-d", str(folder), "-f", str(folder / "apache.conf")]


def caddy(remedies: Sequence[str], folder: Path) -> list[str]:
    upstream = [remedy for remedy in remedies if remedy.startswith("header_up")]
    lines = [remedy for remedy in remedies if not remedy.startswith(("header_up", *INSTRUCTIONS))]
    proxy = ["reverse_proxy /flower/* 127.0.0.1:5555 {", *upstream, "}"]
    (folder / "Caddyfile").write_text("\n".join(["http://localhost:1 {", *lines, *proxy, "}"]))
    return [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.mark.parametrize("command", [nginx, apache, caddy])
def test_suggested_lines_are_valid(command: Callable[[Sequence[str], Path], list[str]], tmp_path: Path) -> None:
    name = command.__name__
    advice = Advice(name, "/flower")
    remedies = [advice.line(key) for key in LINES]
    remedies += advice.set_headers(*SPOOFED_HEADERS).splitlines()
    result = subprocess.run(command(remedies, tmp_path), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
