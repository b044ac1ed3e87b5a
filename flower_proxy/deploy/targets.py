"""Targets of ``flower-proxy config``: reverse proxies, service managers, containers and Prometheus.

The context function of a target returns its additional template variables. It replaces paths in the command where the
service manager provides its own (credentials, secrets, the state directory).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from flower_proxy.deploy.command import Command
from flower_proxy.deploy.plan import (
    EXAMPLE_HOST,
    NOTHING_TO_STRIP,
    USERS_FILE,
    Deployment,
    DeploymentError,
    Project,
    Target,
    reachable,
)
from flower_proxy.proxy.addresses import host_and_port, is_ip, is_loopback

PROXY_OPTIONS = frozenset({"strip", "server_name", "tls", "forward_auth", "proxy_basic_auth", "unix_socket", "snippet"})
"""Options that some targets do not support."""

REQUIREMENT = "/path/to/flower-proxy"
"""The requirement for pip: a clone, as the package is not on PyPI.

After publication it becomes ``flower-proxy``; `tests.process.test_package` then lists the other files to change.
"""

_SERVICE_OPTIONS = frozenset({"strip", "unix_socket"})
_BASIC_OPTIONS = _SERVICE_OPTIONS | {"server_name", "tls"}
_UNIT_OPTIONS = _SERVICE_OPTIONS | {"socket_group"}
# flower-proxy requires Python, so it is available
_RANDOM_HEX = "python3 -c 'import secrets; print(secrets.token_hex(32))'"
_STATE = "flower.db"
_STATE_FILE = f"/var/lib/flower/{_STATE}"
# In the network of compose.yml: the host, and the address reserved for a containerized proxy
_COMPOSE_PROXIES = "172.31.255.1,172.31.255.2"
# Private files, and their names as systemd credentials
_CREDENTIALS = {"auth_file": "htpasswd", "basic_auth_file": "passwords", "certfile": "certificate", "keyfile": "key"}
_AUTHENTICATION = {"auth_file", "basic_auth_file", "auth", "auth_header", "no_auth"}
_FIRST_UNPRIVILEGED_PORT = 1024
# Hidden by ProtectHome=
_HOMES = ("/home", "/root", "/run/user")
# Hidden by PrivateTmp=
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._@+/-]*")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@+=:,./~*|-]+")


def _command(deployment: Deployment) -> Command:
    """Return the command for a service, with a password file if no authentication is configured.

    Otherwise Flower would print a generated password, which is lost in a service.

    :raises DeploymentError: an option is not suitable for a service.
    """
    if deployment.strips and not deployment.prefix:
        raise DeploymentError(NOTHING_TO_STRIP)
    if deployment.port == 0 or deployment.metrics_port == 0:
        raise DeploymentError(
            "--port and --metrics_port: 0 selects a random port, which clients cannot know; set a port"
        )
    command = deployment.command
    if command.options.get("log_file_prefix"):
        raise DeploymentError("--log_file_prefix: the service manager stores the log; leave it out")
    if not _AUTHENTICATION & command.options.keys() and "FLOWER_BASIC_AUTH" not in deployment.secrets:
        command = command.with_options(auth_file=USERS_FILE)
    return command


def _common(deployment: Deployment) -> dict[str, Any]:
    return {
        # Without a fixed secret, sessions end at each restart
        "environment": list(dict.fromkeys(["FLOWER_COOKIE_SECRET", *deployment.secrets])),
        "random_hex": _RANDOM_HEX,
        "venv": deployment.project.venv,
        "keeps": bool(deployment.command.options.get("persistent")),
    }


def _proxy(deployment: Deployment) -> Mapping[str, Any]:
    return {"venv": deployment.project.venv}


def _command_in_folder(deployment: Deployment) -> tuple[Project, Command]:
    """Return the project, and the command without ``--workdir``."""
    project = deployment.project
    _check_path("--workdir", project.folder)
    _check_path("the virtual environment", project.venv)
    return project, _command(deployment).without_celery("--workdir")


def _files(command: Command) -> dict[str, str]:
    """Return the private files of the command, by option."""
    return {name: str(path) for name, path in command.options.items() if name in _CREDENTIALS}


def _check_path(where: str, path: str) -> None:
    if not _PLAIN_PATH.fullmatch(path):
        raise DeploymentError(f"{where}: {path!r} is not an absolute path of letters, digits and ._@+-")


def _systemd_word(word: str) -> str:
    """Escape a word of ExecStart: specifiers, variables and quotes (systemd.service(5))."""
    word = word.replace("%", "%%").replace("$", "$$")
    return word if _PLAIN_WORD.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _systemd(deployment: Deployment) -> Mapping[str, Any]:
    project, command = _command_in_folder(deployment)
    files = _files(command)
    for name, path in files.items():
        _check_path(f"--{name}", path)
    command = command.with_options(**dict.fromkeys(files))
    # The specifiers %d and %S must not be escaped
    places = [f"--{name}=%d/{_CREDENTIALS[name]}" for name in files]
    if command.options.get("persistent"):
        command = command.with_options(db=None)
        places.append(f"--db=%S/flower-proxy/{_STATE}")
    start = [f"{project.venv}/bin/flower-proxy", *map(_systemd_word, command.arguments()), *places]
    return {
        **_common(deployment),
        **vars(project),
        **_hidden(project),
        "start": " ".join(start),
        "users_from": files.get("auth_file"),
        "credentials": [f"{_CREDENTIALS[name]}:{path}" for name, path in files.items()],
        "activated": bool(deployment.unix_socket) or deployment.port < _FIRST_UNPRIVILEGED_PORT,
    }


def _hidden(project: Project) -> Mapping[str, Any]:
    """Return the project folders that the sandbox would hide, and whether one is in a home directory."""
    hidden: list[PurePosixPath] = []
    for folder in sorted(map(PurePosixPath, vars(project).values())):
        if _is_below(folder, (*_HOMES, *_TEMPORARY)) and not _is_below(folder, hidden):
            hidden.append(folder)
    return {"hidden": hidden, "in_home": any(_is_below(folder, _HOMES) for folder in hidden)}


def _is_below(path: PurePosixPath, folders: Iterable[str | PurePosixPath]) -> bool:
    return any(map(path.is_relative_to, folders))


def _systemd_socket(deployment: Deployment) -> Mapping[str, Any]:
    options = _command(deployment).options
    return {
        "venv": deployment.project.venv,
        "listen": [deployment.unix_socket] if deployment.unix_socket else _listen(options["address"], deployment.port),
        "mode": options.get("unix_socket_mode", "0660"),
    }


def _listen(address: str, port: int) -> list[str]:
    """Return the addresses and ports for ListenStream, which does not accept host names."""
    if address != "localhost" and not is_ip(address):
        raise DeploymentError(
            f"--address: {address!r} is a host name, which systemd does not resolve; set an IP address"
        )
    return [host_and_port(one, port) for one in (["127.0.0.1", "::1"] if address == "localhost" else [address])]


def _supervisor(deployment: Deployment) -> Mapping[str, Any]:
    project, command = _command_in_folder(deployment)
    if command.options.get("persistent") and "db" not in command.options:
        command = command.with_options(db=_STATE_FILE)
    for option, text in command.texts():
        if re.search(r"\s[;#]", text):
            raise DeploymentError(
                f"{option}: {text!r} contains a comment for supervisor, ' ;' or ' #'; set it in --conf"
            )
    return {
        **_common(deployment),
        **vars(project),
        "start": shlex.join([f"{project.venv}/bin/flower-proxy", *command.arguments()]).replace("%", "%%"),
        "users_from": _files(command).get("auth_file"),
        "folder_of_state": shlex.quote(str(PurePosixPath(command.options.get("db") or _STATE_FILE).parent)),
    }


def _in_container(
    deployment: Deployment, *, users_file: str = "/run/secrets/htpasswd", trusted: str = _COMPOSE_PROXIES
) -> Command:
    """Return the command for a container.

    :param users_file: the path at which the password file is mounted.
    :param trusted: the network of the proxy, the default of ``--trusted_proxies``.
    :raises DeploymentError: an option is not suitable for a container.
    """
    options = deployment.command.options
    address = options.get("address")
    if address and is_loopback(address):
        raise DeploymentError(f"--address: {address!r} is not reachable from outside the container; leave it out")
    for name in ("unix_socket", "certfile"):
        if options.get(name):
            raise DeploymentError(f"--{name}: the proxy connects to the container over TCP, without TLS; leave it out")
    command = _command(deployment)
    files = _files(command)
    if len(files) > 1:
        raise DeploymentError(
            "--auth_file and --basic_auth_file: the container has a single secret for users; leave one of them out"
        )
    command = command.with_options(**dict.fromkeys(files, users_file))
    if options.get("persistent"):
        command = command.with_options(db=_STATE_FILE)
    if "trusted_proxies" not in options:
        command = command.with_options(trusted_proxies=f"127.0.0.0/8,{trusted}")
    return command


def _without_variables(words: Iterable[str]) -> list[str]:
    """Escape dollar signs, which start a variable in Compose and Kubernetes."""
    return [word.replace("$", "$$") for word in words]


def _compose(deployment: Deployment) -> Mapping[str, Any]:
    command = _in_container(deployment)
    arguments = _without_variables(command.arguments())
    return {**_common(deployment), "arguments": arguments, "has_users": bool(_files(command))}


def _dockerfile(deployment: Deployment) -> Mapping[str, Any]:
    arguments = _in_container(deployment).arguments()
    return {**_common(deployment), "arguments": json.dumps(arguments, ensure_ascii=False), "requirement": REQUIREMENT}


def _kubernetes(deployment: Deployment) -> Mapping[str, Any]:
    if deployment.trusts_proxy and "trusted_proxies" not in deployment.command.options:
        raise DeploymentError("--trusted_proxies: any pod could spoof the user; set the network of the ingress pods")
    command = _in_container(deployment, users_file=USERS_FILE, trusted="10.0.0.0/8")
    arguments = _without_variables(command.arguments())
    return {**_common(deployment), "arguments": arguments, "has_users": bool(_files(command))}


def _prometheus(deployment: Deployment) -> Mapping[str, Any]:
    options, port = deployment.command.options, deployment.metrics_port
    own_port = port is not None
    over_proxy = not own_port and (deployment.tls or deployment.server_name != EXAMPLE_HOST)
    port = deployment.port if port is None else port
    if port == 0:
        raise DeploymentError("--port and --metrics_port: 0 selects a random port; set a port for Prometheus")
    if deployment.unix_socket and not own_port and not over_proxy:
        raise DeploymentError(
            "--unix_socket: Prometheus cannot scrape a unix socket; add --metrics_port or --server_name"
        )
    host, tls = options.get("metrics_address" if own_port else "address"), options.get("certfile")
    if over_proxy:
        host, tls, port = deployment.server_name, deployment.tls, 443 if deployment.tls else 80
    at_root = own_port or (deployment.strips and not over_proxy)
    needs_password = not options.get("metrics_open") and not options.get("no_auth")
    return {
        "over_proxy": over_proxy,
        "target": host_and_port(reachable(host or ""), port),
        "path": "/metrics" if at_root else f"{deployment.prefix}/metrics",
        "scheme": "https" if tls else "http",
        "user": (deployment.metrics_user or "prometheus") if needs_password else "",
    }


_ALL = (
    Target("nginx", "nginx.conf", PROXY_OPTIONS, is_proxy=True, context=_proxy),
    Target("apache", "apache.conf", PROXY_OPTIONS - {"forward_auth"}, is_proxy=True, context=_proxy),
    Target("caddy", "Caddyfile", PROXY_OPTIONS - {"proxy_basic_auth"}, is_proxy=True),
    Target("haproxy", "haproxy.cfg", _BASIC_OPTIONS, is_proxy=True),
    Target("traefik", "traefik.yml", PROXY_OPTIONS - {"unix_socket", "snippet"}, is_proxy=True, context=_proxy),
    Target(
        "ingress-nginx",
        "ingress-nginx.yml",
        PROXY_OPTIONS - {"proxy_basic_auth", "unix_socket", "snippet"},
        is_proxy=True,
        is_local=False,
    ),
    Target("systemd", "flower-proxy.service", _UNIT_OPTIONS, context=_systemd),
    Target("systemd-socket", "flower-proxy.socket", _UNIT_OPTIONS, context=_systemd_socket),
    Target("supervisor", "supervisor.conf", _UNIT_OPTIONS, context=_supervisor),
    Target("compose", "compose.yml", _SERVICE_OPTIONS, is_local=False, context=_compose),
    Target("dockerfile", "Dockerfile", _SERVICE_OPTIONS, is_local=False, context=_dockerfile),
    Target("kubernetes", "kubernetes.yml", _SERVICE_OPTIONS, is_local=False, context=_kubernetes),
    Target("prometheus", "prometheus.yml", _BASIC_OPTIONS, context=_prometheus),
)

TARGETS = {target.name: target for target in _ALL}
"""All targets, by their names on the command line."""
