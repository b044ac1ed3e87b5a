"""What keeps flower-proxy running, and what scrapes it: the targets that are no proxies.

Each function returns what its template has to know besides the `Deployment`. Where a service has a place of its own
for a file (a credential, a secret, a folder for state), the command is changed to name that place.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from flower_proxy.deploy.plan import Deployment, DeploymentError, Target, host_and_port, is_ip, values_by_option

_FOLDER = "/srv/app"
_USERS_FILE = "/etc/flower/htpasswd"
_STATE_FOLDER = "/var/lib/flower"
_STATE = "flower.db"
# Of the network that compose.yml makes: this machine, and an address that is kept free for a proxy in a container
_COMPOSE_PROXIES = "172.31.255.1,172.31.255.2"
# Files that only flower-proxy may read
_CREDENTIALS = {"auth_file": "htpasswd", "basic_auth_file": "passwords", "certfile": "certificate", "keyfile": "key"}
_WAYS_IN = {"auth_file", "basic_auth_file", "auth", "auth_header", "no_auth"}
_PRIVILEGED = 1024
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._@+/-]*")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@+=:,./~*|-]+")


def told(words: Iterable[str], **options: str | None) -> list[str]:
    """Return the command with these options in place of what it says about them; None takes one away."""
    names = {f"--{name}" for name in options}
    kept = [word for word in words if word.partition("=")[0] not in names]
    return [*kept, *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _command(deployment: Deployment) -> list[str]:
    """Return the command as the service starts it: nobody sees a password that is made up, so a file says who enters.

    :raises DeploymentError: no service can start it like that.
    """
    if deployment.strips and not deployment.prefix:
        raise DeploymentError("--strip: there is nothing to strip; add --url_prefix with the public prefix")
    if deployment.port == 0 or deployment.metrics_port == 0:
        raise DeploymentError(
            "--port and --metrics_port: 0 is a free port, but who connects has to know which; name one"
        )
    if deployment.settings.get("log_file_prefix"):
        raise DeploymentError("--log_file_prefix: the log is kept by what starts the service; leave it out")
    words = list(deployment.words)
    if not _WAYS_IN & deployment.settings.keys() and "FLOWER_BASIC_AUTH" not in deployment.secrets:
        words = told(words, auth_file=_USERS_FILE)
    return words


def _common(deployment: Deployment) -> dict[str, Any]:
    return {
        # without it everybody has to log in again after a restart
        "environment": list(dict.fromkeys(["FLOWER_COOKIE_SECRET", *deployment.secrets])),
        "keeps": bool(deployment.settings.get("persistent")),
    }


def _in_folder(words: list[str]) -> tuple[str, list[str]]:
    """Return the project's folder, and the command without it."""
    if "--workdir" not in words:
        return _FOLDER, words
    at = words.index("--workdir")
    folder = words[at + 1]
    if not _PLAIN_PATH.fullmatch(folder):
        raise DeploymentError(f"--workdir: {folder!r} is not an absolute path of letters, digits and ._@+-")
    return folder.rstrip("/"), words[:at] + words[at + 2 :]


def _files(words: Iterable[str]) -> dict[str, str]:
    """Return the files in a command that only flower-proxy may read, by option."""
    named = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
    return {name: path for name, _, path in named if name in _CREDENTIALS}


def _for_systemd(word: str) -> str:
    """Write a word for ExecStart: no specifier, no variable, and quoted where it has to be."""
    word = word.replace("%", "%%").replace("$", "$$")
    return word if _PLAIN_WORD.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _systemd(deployment: Deployment) -> Mapping[str, Any]:
    folder, words = _in_folder(_command(deployment))
    files = _files(words)
    for name, path in files.items():
        if not _PLAIN_PATH.fullmatch(path):
            raise DeploymentError(f"--{name}: {path!r} is not an absolute path of letters, digits and ._@+-")
    words = told(words, **dict.fromkeys(files))
    places = [f"--{name}=%d/{_CREDENTIALS[name]}" for name in files]
    if deployment.settings.get("persistent"):
        words = told(words, db=None)
        places.append(f"--db=%S/flower-proxy/{_STATE}")
    start = [f"{folder}/.venv/bin/flower-proxy", *map(_for_systemd, words[1:]), *places]
    activated = bool(deployment.unix_socket) or deployment.port < _PRIVILEGED
    return {
        **_common(deployment),
        "folder": folder,
        "start": " ".join(start),
        "credentials": [f"{_CREDENTIALS[name]}:{path}" for name, path in files.items()],
        "activated": activated,
    }


def _systemd_socket(deployment: Deployment) -> Mapping[str, Any]:
    _command(deployment)
    mode = deployment.settings.get("unix_socket_mode", "0660")
    return {"listen": [deployment.unix_socket] if deployment.unix_socket else _listen(deployment), "mode": mode}


def _listen(deployment: Deployment) -> Sequence[str]:
    """Return what systemd is to listen on: addresses, as it resolves no names."""
    address = deployment.settings["address"]
    if address != "localhost" and not is_ip(address):
        raise DeploymentError(f"--address: {address!r} is a name, but systemd listens on addresses; name the address")
    addresses = ["127.0.0.1", "::1"] if address == "localhost" else [address]
    return [host_and_port(one, deployment.port) for one in addresses]


def _supervisor(deployment: Deployment) -> Mapping[str, Any]:
    folder, words = _in_folder(_command(deployment))
    if deployment.settings.get("persistent") and "db" not in deployment.settings:
        words = told(words, db=f"{_STATE_FOLDER}/{_STATE}")
    line = shlex.join([f"{folder}/.venv/bin/flower-proxy", *words[1:]])
    for name, value in values_by_option(words[1:]):
        if re.search(r"\s[;#]", value):
            raise DeploymentError(
                f"{name}: {value!r}: supervisor takes ' ;' and ' #' for the beginning of a comment; set it in --conf"
            )
    return {
        **_common(deployment),
        "folder": folder,
        "start": line.replace("%", "%%"),
        "users_from": _files(words).get("auth_file"),
        "folder_of_state": shlex.quote(
            str(PurePosixPath(deployment.settings.get("db") or f"{_STATE_FOLDER}/{_STATE}").parent)
        ),
    }


def _in_container(deployment: Deployment, *, users_file: str, trusted: str) -> list[str]:
    """Return the command, for a container.

    :param users_file: where the file of users is mounted.
    :param trusted: where the proxy is, if the options name none.
    """
    address = deployment.settings.get("address")
    if address and _is_loopback(address):
        raise DeploymentError(f"--address: {address!r} cannot be reached from outside the container; leave it out")
    for name in ("unix_socket", "certfile"):
        if deployment.settings.get(name):
            raise DeploymentError(f"--{name}: the proxy reaches a container at a port, by HTTP; leave it out")
    words = _command(deployment)
    files = _files(words)
    if len(files) > 1:
        raise DeploymentError(
            "--auth_file and --basic_auth_file: one secret holds the users here; leave one of them out"
        )
    words = told(words, **dict.fromkeys(files, users_file))
    if deployment.settings.get("persistent"):
        words = told(words, db=f"{_STATE_FOLDER}/{_STATE}")
    if "trusted_proxies" not in deployment.settings:
        words = told(words, trusted_proxies=f"127.0.0.0/8,{trusted}")
    return words


def _compose(deployment: Deployment) -> Mapping[str, Any]:
    words = _in_container(deployment, users_file="/run/secrets/htpasswd", trusted=_COMPOSE_PROXIES)
    return {
        **_common(deployment),
        "arguments": [word.replace("$", "$$") for word in words[1:]],
        "has_users": bool(_files(words)),
    }


def _dockerfile(deployment: Deployment) -> Mapping[str, Any]:
    words = _in_container(deployment, users_file="/run/secrets/htpasswd", trusted=_COMPOSE_PROXIES)
    return {**_common(deployment), "arguments": json.dumps(words[1:], ensure_ascii=False)}


def _kubernetes(deployment: Deployment) -> Mapping[str, Any]:
    if deployment.asks_nobody and "trusted_proxies" not in deployment.settings:
        raise DeploymentError(
            "--trusted_proxies: name the network of the ingress' pods; else every pod could say who it is"
        )
    words = _in_container(deployment, users_file="/etc/flower/htpasswd", trusted="10.0.0.0/8")
    return {
        **_common(deployment),
        # Kubernetes turns $$ into $ anywhere, not only before a bracket
        "arguments": [word.replace("$", "$$") for word in words[1:]],
        "has_users": bool(_files(words)),
    }


def _prometheus(deployment: Deployment) -> Mapping[str, Any]:
    settings = deployment.settings
    over_proxy = deployment.tls or deployment.server_name != "example.com"
    own_port = deployment.metrics_port is not None
    if deployment.metrics_port == 0 or (deployment.port == 0 and not own_port):
        raise DeploymentError("--port: 0 is a free port, but Prometheus has to know which; name one")
    if deployment.unix_socket and not own_port and not over_proxy:
        raise DeploymentError("--unix_socket: Prometheus cannot scrape one; add --metrics_port, or --server_name")
    host = settings.get("metrics_address") if own_port else deployment.upstream.rpartition(":")[0].strip("[]")
    port = deployment.port if deployment.metrics_port is None else deployment.metrics_port
    path = "/metrics" if own_port or deployment.strips else f"{deployment.prefix}/metrics"
    scheme = "https" if settings.get("certfile") else "http"
    if over_proxy and not own_port:
        host, port = deployment.server_name, 443 if deployment.tls else 80
        path, scheme = f"{deployment.prefix}/metrics", "https" if deployment.tls else "http"
    if not host or host in ("0.0.0.0", "::"):  # noqa: S104  compared, not listened on
        host = "127.0.0.1"
    asks = not settings.get("metrics_open") and not settings.get("no_auth")
    return {
        "over_proxy": over_proxy and not own_port,
        "target": host_and_port(host, port),
        "path": path,
        "scheme": scheme,
        "user": (deployment.metrics_user or "prometheus") if asks else "",
    }


_SERVICE = frozenset({"strip", "unix_socket"})

SERVICES = {
    "systemd": Target("flower-proxy.service", _SERVICE, is_local=True, more=_systemd),
    "systemd-socket": Target("flower-proxy.socket", _SERVICE, is_local=True, more=_systemd_socket),
    "supervisor": Target("supervisor.conf", _SERVICE, is_local=True, more=_supervisor),
    "compose": Target("compose.yml", _SERVICE, more=_compose),
    "dockerfile": Target("Dockerfile", _SERVICE, more=_dockerfile),
    "kubernetes": Target("kubernetes.yml", _SERVICE, more=_kubernetes),
    "prometheus": Target(
        "prometheus.yml", frozenset({"strip", "unix_socket", "server_name", "tls"}), is_local=True, more=_prometheus
    ),
}
