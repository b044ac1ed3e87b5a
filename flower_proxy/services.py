"""What keeps flower-proxy running, and what scrapes it: the targets that are no proxies.

Each function returns what its template has to know besides the `Deployment`. Where a service has a place of its own
for a file (a credential, a secret, a folder for state), the command is changed to name that place.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from flower_proxy.deployment import Deployment, DeploymentError, Target

_FOLDER = "/srv/app"
_USERS_FILE = "/etc/flower/htpasswd"
_STATE = "flower.db"
# Files that only flower-proxy may read
_SECRET_FILES = ("auth_file", "basic_auth_file", "certfile", "keyfile")
_WAYS_IN = {"auth_file", "basic_auth_file", "auth", "auth_header", "no_auth"}
_PRIVILEGED = 1024
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._@+/-]*")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@+=:,./~*|-]+")


def told(words: Iterable[str], **options: str | None) -> list[str]:
    """Return the command with these options in place of what it says about them; None takes one away."""
    names = {f"--{name}" for name in options}
    kept = [word for word in words if word.partition("=")[0] not in names]
    return [*kept, *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _systemd(deployment: Deployment) -> Mapping[str, Any]:
    folder, words = _in_folder(_command(deployment))
    files = {name: path for name, path in _secret_files(deployment, words).items() if path}
    if relative := [name for name, path in files.items() if not _PLAIN_PATH.fullmatch(path)]:
        raise DeploymentError(f"--{relative[0]}: {files[relative[0]]!r} is not an absolute path without spaces")
    credentials = {PurePosixPath(path).name if name == "auth_file" else name: path for name, path in files.items()}
    words = told(words, **dict.fromkeys(files))
    places = [f"--{name}=%d/{credential}" for name, credential in zip(files, credentials, strict=True)]
    keeps = bool(deployment.settings.get("persistent"))
    if keeps:
        words = told(words, db=None)
        places.append(f"--db=%S/flower-proxy/{_STATE}")
    start = [f"{folder}/.venv/bin/flower-proxy", *map(_for_systemd, words[1:]), *places]
    activated = bool(deployment.unix_socket) or deployment.port < _PRIVILEGED
    return {
        **_common(deployment),
        "folder": folder,
        "start": " ".join(start),
        "credentials": credentials,
        "keeps": keeps,
        "activated": activated,
    }


def _systemd_socket(deployment: Deployment) -> Mapping[str, Any]:
    _check_service(deployment)
    mode = deployment.settings.get("unix_socket_mode", "0660")
    return {"listen": deployment.unix_socket or deployment.upstream, "mode": mode}


def _supervisor(deployment: Deployment) -> Mapping[str, Any]:
    folder, words = _in_folder(_command(deployment))
    line = shlex.join([f"{folder}/.venv/bin/flower-proxy", *words[1:]])
    if re.search(r"\s[;#]", line):
        raise DeploymentError("what stands behind ' ;' or ' #' is a comment to supervisor: set that option in --conf")
    return {**_common(deployment), "folder": folder, "start": line.replace("%", "%%")}


def _in_container(deployment: Deployment, *, users_file: str, trusted: str) -> list[str]:
    """Return the command, for a container.

    :param users_file: where the file of users is mounted.
    :param trusted: the network that the proxy is in, if the options name none.
    """
    address = deployment.settings.get("address")
    if address and (address == "localhost" or _is_loopback(address)):
        raise DeploymentError(f"--address: {address!r} cannot be reached from outside the container; leave it out")
    for name in ("unix_socket", "certfile"):
        if deployment.settings.get(name):
            raise DeploymentError(f"--{name}: the proxy reaches a container at a port, by HTTP; leave it out")
    words = _command(deployment)
    for name, path in _secret_files(deployment, words).items():
        if path:
            words = told(words, **{name: users_file})
    if deployment.settings.get("persistent"):
        words = told(words, db=f"/var/lib/flower/{_STATE}")
    if "trusted_proxies" not in deployment.settings:
        words = told(words, trusted_proxies=f"127.0.0.0/8,{trusted}")
    return words


def _compose(deployment: Deployment) -> Mapping[str, Any]:
    network = "172.31.255.0/24"
    words = _in_container(deployment, users_file="/run/secrets/htpasswd", trusted=network)
    return {
        **_common(deployment),
        "network": network,
        "arguments": json.dumps(words[1:], ensure_ascii=False).replace("$", "$$"),
        "has_users": _has_users(words),
        "keeps": bool(deployment.settings.get("persistent")),
    }


def _dockerfile(deployment: Deployment) -> Mapping[str, Any]:
    words = _in_container(deployment, users_file="/run/secrets/htpasswd", trusted="172.31.255.0/24")
    return {**_common(deployment), "arguments": json.dumps(words[1:], ensure_ascii=False)}


def _kubernetes(deployment: Deployment) -> Mapping[str, Any]:
    if deployment.asks_nobody and "trusted_proxies" not in deployment.settings:
        raise DeploymentError(
            "--trusted_proxies: name the network of the ingress' pods; else every pod could say who it is"
        )
    words = _in_container(deployment, users_file="/etc/flower/htpasswd", trusted="10.0.0.0/8")
    return {
        **_common(deployment),
        "arguments": [json.dumps(word.replace("$(", "$$("), ensure_ascii=False) for word in words[1:]],
        "has_users": _has_users(words),
        "keeps": bool(deployment.settings.get("persistent")),
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
    port = deployment.metrics_port if own_port else deployment.port
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
        "target": json.dumps(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
        "path": path,
        "scheme": scheme,
        "user": json.dumps(deployment.metrics_user or "prometheus") if asks else "",
    }
