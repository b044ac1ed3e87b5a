"""Real proxies with the configurations that ``flower-proxy config`` prints; ports, paths and host names differ."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .processes import Address, program, running
from .programs import nginx_command

MODULES = Path("/usr/lib/apache2/modules")
# Enabled by default in Debian's Apache
BASE_MODULES = [
    "mpm_event",
    "authz_core",
    "authz_host",
    "authn_core",
    "authz_user",
    "filter",
    "alias",
    "env",
    "setenvif",
]

LISTEN: Mapping[str, Callable[[Address, Address], dict[str, str]]] = {
    "nginx": lambda plain, tls: {
        "listen 80;": f"listen {plain};",
        "listen 80 default_server;": f"listen {plain} default_server;",
        "listen 443 ssl;": f"listen {tls} ssl;",
        "listen 443 ssl default_server;": f"listen {tls} ssl default_server;",
    },
    "apache": lambda plain, tls: {
        "<VirtualHost *:80>": f"<VirtualHost {plain}>",
        "<VirtualHost *:443>": f"<VirtualHost {tls}>",
    },
    "caddy": lambda plain, tls: {},
    "haproxy": lambda plain, tls: {"bind :80\n": f"bind {plain}\n", "bind :443 ": f"bind {tls} "},
}

# Servers into which the output of `--snippet` is inserted
OWN_SERVERS = {
    "nginx": "server {{\nlisten 80;\nserver_name example.com;\n{}}}\n",
    "apache": "<VirtualHost *:80>\nServerName example.com\n{}</VirtualHost>\n",
    "caddy": "http://example.com {{\n{}}}\n",
}


def substitute(text: str, table: Mapping[str, str]) -> str:
    """Replace each key with its value, the longest first."""
    return re.sub("|".join(map(re.escape, sorted(table, key=len, reverse=True))), lambda match: table[match[0]], text)


@contextlib.contextmanager
def proxy(
    kind: str, text: str, folder: Path, *, plain: Address, tls: Address, files: Mapping[str, str]
) -> Iterator[None]:
    """Run a proxy with this configuration.

    :param kind: the target of ``flower-proxy config``.
    :param plain: its address for HTTP.
    :param tls: its address for HTTPS, if configured.
    :param files: paths in the configuration, and those that replace them.
    """
    text = substitute(text, {**LISTEN[kind](plain, tls), **files, "example.com": "localhost"})
    if kind == "apache":
        text = f"Listen {plain}\nListen {tls}\n{text}"
    elif kind == "caddy":
        options = f"admin off\n http_port {plain.port}\n https_port {tls.port}\n default_bind 127.0.0.1\n"
        certfile, keyfile = (file for name, file in files.items() if name.startswith("/etc/letsencrypt/"))
        site = f"https://localhost {{\n tls {certfile} {keyfile}"
        text = f"{{\n {options} }}\n{text.replace('https://localhost {', site)}"
    with running(checked(kind, text, folder), log=folder / f"{kind}.log", ready=plain.accepts, env=_folders(folder)):
        yield


def checked(kind: str, text: str, folder: Path) -> list[str]:
    """Return the command that runs a proxy with this configuration.

    :raises RuntimeError: the proxy rejects it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "nginx":
        return nginx_command(text, folder)
    if kind == "apache":
        command = [program("apache2"), "-d", str(folder), "-f", "apache2.conf", "-DFOREGROUND"]
        (folder / "apache2.conf").write_text(f"{_apache_modules(text)}\n{text}")
        check = [*command[:-1], "-t"]
    elif kind == "caddy":
        (folder / "Caddyfile").write_text(text)
        command = [program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
        check = [command[0], "validate", *command[2:]]
    else:
        (folder / "haproxy.cfg").write_text(text)
        command = [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        check = [*command, "-c"]
    done = subprocess.run(check, capture_output=True, text=True, env=_folders(folder))
    if done.returncode != 0:
        raise RuntimeError(f"{kind} rejects the configuration:\n{done.stdout}{done.stderr}")
    return command


def _folders(folder: Path) -> dict[str, str]:
    return {name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME")}


def _apache_modules(text: str) -> str:
    """Return the directives that load the modules in the configuration's a2enmod command."""
    (enabled,) = re.findall(r"^#   a2enmod (.*)$", text, re.MULTILINE)
    loads = [f"LoadModule {name}_module {MODULES / f'mod_{name}.so'}" for name in (*BASE_MODULES, *enabled.split())]
    return "\n".join([*loads, "PidFile apache2.pid", "ErrorLog error.log", "ServerName localhost"])
