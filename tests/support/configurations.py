"""The output of ``flower-proxy config``, and the examples generated with it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from flower_proxy.cli.main import main

from .processes import PROJECT

EXAMPLES = {
    "nginx/kept.conf": "nginx --url_prefix=flower",
    "nginx/stripped.conf": "nginx --url_prefix=flower --strip",
    "nginx/tls.conf": "nginx --url_prefix=flower --tls",
    "nginx/unix-socket.conf": "nginx --url_prefix=flower --unix_socket=/run/flower/flower.sock",
    "nginx/auth_basic.conf": "nginx --url_prefix=flower --proxy_basic_auth --auth_file=/etc/flower/htpasswd",
    "nginx/auth_request.conf": (
        "nginx --url_prefix=flower --forward_auth=http://127.0.0.1:4180 --auth_header=X-Forwarded-User"
    ),
    "apache/kept.conf": "apache --url_prefix=flower",
    "apache/stripped.conf": "apache --url_prefix=flower --strip",
    "caddy/kept.Caddyfile": "caddy --url_prefix=flower",
    "caddy/stripped.Caddyfile": "caddy --url_prefix=flower --strip",
    "haproxy/kept.cfg": "haproxy --url_prefix=flower",
    "haproxy/stripped.cfg": "haproxy --url_prefix=flower --strip",
    "systemd/flower-proxy.service": "systemd --url_prefix=flower",
    "systemd/with-socket.service": "systemd --url_prefix=flower --unix_socket=/run/flower/flower.sock",
    "systemd/flower-proxy.socket": "systemd-socket --url_prefix=flower --unix_socket=/run/flower/flower.sock",
    "supervisor/flower-proxy.conf": "supervisor --url_prefix=flower",
    "compose/compose.yml": "compose --url_prefix=flower",
    "compose/Dockerfile": "dockerfile --url_prefix=flower",
    "kubernetes/flower-proxy.yml": "kubernetes --url_prefix=flower",
    "prometheus/prometheus.yml": "prometheus --url_prefix=flower --metrics_auth=prometheus:secret",
    "prometheus/over-proxy.yml": "prometheus --url_prefix=flower --metrics_auth=prometheus:secret --tls",
    "prometheus/own-port.yml": (
        "prometheus --url_prefix=flower --metrics_port=9808 --metrics_address=127.0.0.1 --metrics_open"
    ),
    "traefik/kept.yml": "traefik --url_prefix=flower",
    "traefik/stripped.yml": "traefik --url_prefix=flower --strip",
    "ingress-nginx/kept.yml": "ingress-nginx --url_prefix=flower",
    "ingress-nginx/stripped.yml": "ingress-nginx --url_prefix=flower --strip",
}
"""Files in ``examples``, and the arguments of ``flower-proxy config`` that print them."""

# In a fixed order, in which pytest-xdist requires the tests
BY_HAND = ("nginx/host-application.conf", "nginx/replicas.conf", "prometheus/rules.yml", "prometheus/rules_test.yml")
"""Files in the same folders that are not generated."""


def config(*words: str, env: Mapping[str, str] | None = None, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run ``flower-proxy config`` in this process, with only these settings in the environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "CELERY_"))}
    output, errors = io.StringIO(), io.StringIO()
    status: object = 0
    with (
        _inside(cwd),
        mock.patch.dict(os.environ, {**plain, **(env or {})}, clear=True),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main(["config", *words])
        except SystemExit as error:
            status = error.code
    return subprocess.CompletedProcess(words, int(str(status or 0)), output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def printed(words: str, *, cwd: Path = PROJECT) -> str:
    """Return the output for these arguments, in this folder."""
    result = config(*shlex.split(words), cwd=cwd)
    if result.returncode != 0:
        raise ValueError(f"flower-proxy config {words}: {result.stderr}")
    return result.stdout


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader that reads numbers of YAML 1.1 and 1.2, like Go's parsers."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+)\Z"),
    list("-+.0123456789"),
)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML file."""
    return list(yaml.load_all(text, _Yaml))


def write_examples() -> None:
    """Regenerate the examples: ``python -m tests.support.configurations``."""
    for name, words in EXAMPLES.items():
        file = PROJECT / "examples" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(printed(words))


if __name__ == "__main__":
    write_examples()
