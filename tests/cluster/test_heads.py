"""The first comments in the output of ``flower-proxy config``: the path of the file, and commands.

The commands run under ``sh``, with a folder in place of the root and stubs for programs that would change the machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.configurations import printed

WHERE = {
    "nginx": ("/etc/nginx/conf.d/flower.conf", "nginx -t && systemctl reload nginx"),
    "nginx --snippet": ("/etc/nginx/snippets/flower.conf", "nginx -t && systemctl reload nginx"),
    "apache": ("/etc/apache2/sites-available/flower.conf", "apachectl configtest && systemctl reload apache2"),
    "apache --snippet": ("/etc/apache2/flower.conf", "apachectl configtest && systemctl reload apache2"),
    "caddy": ("/etc/caddy/Caddyfile", "caddy validate --config /etc/caddy/Caddyfile && systemctl reload caddy"),
    "caddy --snippet": (
        "/etc/caddy/flower.caddy",
        "caddy validate --config /etc/caddy/Caddyfile && systemctl reload caddy",
    ),
    "haproxy": ("/etc/haproxy/haproxy.cfg", "haproxy -c -f /etc/haproxy/haproxy.cfg && systemctl reload haproxy"),
    "traefik": ("/etc/traefik/dynamic/flower.yml", "/srv/app/.venv/bin/flower-proxy check http://example.com/"),
    "ingress-nginx": (
        "flower-ingress.yml",
        "kubectl apply --dry-run=server -f flower-ingress.yml && kubectl apply -f flower-ingress.yml",
    ),
    "systemd": ("/etc/systemd/system/flower-proxy.service", "systemctl daemon-reload && systemctl enable --now"),
    "supervisor": ("/etc/supervisor/conf.d/flower-proxy.conf", "supervisorctl reread && supervisorctl update"),
    "compose": ("compose.yml", "docker compose config -q && docker compose up -d --build"),
    "dockerfile": ("Dockerfile", "docker run --rm registry.example.com/flower-proxy:1 --version"),
    "kubernetes": (
        "flower-proxy.yml",
        "kubectl apply --dry-run=server -f flower-proxy.yml && kubectl apply -f flower-proxy.yml",
    ),
    "prometheus": (
        "/etc/prometheus/prometheus.yml",
        "promtool check config /etc/prometheus/prometheus.yml && systemctl reload prometheus",
    ),
}
PASSWORD = "--proxy_basic_auth --auth_file=/etc/flower/htpasswd"
WITH_USERS = [f"nginx {PASSWORD}", f"apache {PASSWORD}", f"traefik {PASSWORD}", "supervisor", "compose", "kubernetes"]
WITH_SECRET = ["supervisor", "compose", "kubernetes"]
STUBS = (
    *("useradd", "chown", "chgrp", "docker", "kubectl", "supervisorctl", "systemctl", "journalctl"),
    *("nginx", "apachectl", "a2enmod", "a2ensite"),
)


def head(text: str) -> str:
    return re.match(r"([#;].*\n)*", text)[0]  # type: ignore[index]


def commands(text: str) -> list[str]:
    """Return the commands of the first comment, without the flower-proxy command at its beginning."""
    return re.findall(r"^   (\S.*)$", re.sub(r"^[#;]", "", head(text), flags=re.MULTILINE).replace("\\\n", ""), re.M)[
        1:
    ]


class Root:
    """A folder that replaces the root of the file system, with a project in it."""

    def __init__(self, folder: Path, *, without: Sequence[str] = ()) -> None:
        self.folder = folder
        self.project = folder / "srv/app"
        self.calls = folder / "calls"
        self.programs = folder / "bin"
        for path in (self.project, self.programs, folder / "etc/supervisor/conf.d"):
            path.mkdir(parents=True)
        scripts = {name: f'echo {name} "$@" >> {self.calls}' for name in STUBS}
        scripts |= {name: f'exec {shutil.which(name)} "$@"' for name in ("install", "chmod")}
        scripts["python3"] = f'exec {sys.executable} "$@"'
        for name in scripts.keys() - {*without}:
            (self.programs / name).write_text(f"#!/bin/sh\n{scripts[name]}\n")
            (self.programs / name).chmod(0o755)
        self.calls.touch()

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a shell, with a password on standard input."""
        here = re.sub(r"(?<![\w.])/(?=(etc|srv)/)", f"{self.folder}/", command)
        env = {"PATH": str(self.programs)}
        return subprocess.run(
            ["/bin/sh", "-c", here], cwd=self.project, env=env, input="secret\n", capture_output=True, text=True
        )

    def files(self, name: str) -> list[Path]:
        return [*self.folder.rglob(name)]


@pytest.mark.parametrize("words", WHERE)
def test_the_comment_has_the_path_and_the_commands_that_test_and_load_the_file(words: str) -> None:
    path, command = WHERE[words]
    text = printed(words)
    assert re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w/])", head(text))
    assert any(found.startswith(command) for found in commands(text)), commands(text)


@pytest.mark.parametrize("words", WITH_USERS)
def test_the_commands_create_the_password_file(words: str, tmp_path: Path) -> None:
    root = Root(tmp_path)
    (root.project / ".venv").symlink_to(sys.prefix)
    text = printed(words)
    (root.folder / "etc/supervisor/conf.d/flower-proxy.conf").write_text(text)
    for command in commands(text):
        # Needs a running proxy
        if "flower-proxy check" not in command:
            done = root.run(command)
            assert done.returncode == 0, (command, done.stderr)
    (file,) = root.files("htpasswd")
    assert file.read_text().startswith("me:$2b$")
    assert not file.stat().st_mode & 0o027


@pytest.mark.parametrize("words", WITH_USERS)
def test_a_failed_command_leaves_no_password_file(words: str, tmp_path: Path) -> None:
    root = Root(tmp_path)
    (command,) = (one for one in commands(printed(words)) if "hash-password" in one)
    done = root.run(command)
    assert done.returncode != 0
    assert "/srv/app/.venv/bin/flower-proxy: not found" in done.stderr
    assert root.files("htpasswd") == []
    assert root.calls.read_text() == ""


@pytest.mark.parametrize("words", WITH_SECRET)
@pytest.mark.parametrize("missing", [[], ["python3"]], ids=["python", "without-python"])
def test_the_command_for_the_cookie_secret_generates_it(words: str, missing: list[str], tmp_path: Path) -> None:
    root = Root(tmp_path, without=missing)
    text = printed(words)
    (command,) = re.findall(r"^[#;]   (.*secrets\.token_hex.*)$", re.sub(r"\\\n[#;]", "", text), re.MULTILINE)
    done = root.run(command)
    made = done.stdout + root.calls.read_text() + "".join(file.read_text() for file in root.files(".env"))
    assert (done.returncode == 0) is not bool(missing)
    assert len(re.findall(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", made)) == (not missing)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in root.files(".env"))
    assert not missing or made == ""


def test_commands_use_the_virtual_environment_of_the_project() -> None:
    assert "/srv/other/.venv/bin/flower-proxy hash-password" in printed("supervisor --workdir=/srv/other")


def test_files_with_secrets_are_excluded_from_the_image(tmp_path: Path) -> None:
    root = Root(tmp_path)
    (command,) = (one for one in commands(printed("dockerfile")) if ".dockerignore" in one)
    assert root.run(command).returncode == 0
    assert {".env", "htpasswd"} <= {*(root.project / ".dockerignore").read_text().split()}
