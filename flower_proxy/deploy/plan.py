"""Validation of the options of ``flower-proxy config``, and derivation of the template variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flower_proxy.deploy.command import Command
from flower_proxy.proxy.addresses import UNIX, TrustedProxies, host_and_port, is_ip
from flower_proxy.proxy.paths import parse_mount
from flower_proxy.settings.options import Option

EXAMPLE_HOST = "example.com"
"""The default of ``--server_name``."""

SOCKET_GROUP = "www-data"
"""The default of ``--socket_group``: the group of Debian's proxies."""

USERS_FILE = "/etc/flower/htpasswd"
"""The password file if ``--auth_file`` is not set."""

NOTHING_TO_STRIP = "--strip: there is no prefix; add --url_prefix with the public prefix"

# nginx rejects comments of 4096 bytes, and the command is in a comment
_MAX_COMMAND = 4000
_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104  compared, not listened on
_REACHED_BY_LOOPBACK = (*_ANY_ADDRESS, "localhost", "127.0.0.1", "::1")

# RFC 1123, section 2.1
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")
_PROVIDER = re.compile(r"https?://(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^\[\]:/]*))(?::(?P<port>[0-9]{1,5}))?/?")


class DeploymentError(ValueError):
    """An invalid deployment; the message is one line that names the option and what to do."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """The folders of a service, on the machine that runs it.

    :ivar folder: the working directory, which contains the Celery application.
    :ivar venv: the virtual environment that contains flower-proxy.
    :ivar python: the base Python installation of the virtual environment, or empty if unknown.
    """

    folder: str
    venv: str
    python: str = ""


EXAMPLE_PROJECT = Project(folder="/srv/app", venv="/srv/app/.venv")
"""The project if neither ``--workdir`` nor the current folder has one."""


@dataclass(frozen=True, kw_only=True)
class DeploymentSpec:
    """The input of ``flower-proxy config``.

    :ivar values: the settings for Flower and flower-proxy, by name.
    :ivar celery: Celery's options, as in `Command`.
    :ivar secrets: environment variables for Celery's options that may contain a password.
    :ivar strip: whether the proxy strips the prefix.
    :ivar server_name: the public host name.
    :ivar tls: whether the proxy serves HTTPS.
    :ivar forward_auth: URL of the identity provider for authentication subrequests, or empty.
    :ivar proxy_basic_auth: whether the proxy requires HTTP Basic authentication (RFC 7617).
    :ivar snippet: whether to print only the part to include in an existing server.
    :ivar socket_group: the group that may connect to the unix socket.
    :ivar project: the folders of a service.
    """

    values: Mapping[str, Any]
    celery: Mapping[str, str | None]
    secrets: Sequence[str]
    strip: bool
    server_name: str
    tls: bool
    forward_auth: str
    proxy_basic_auth: bool
    snippet: bool = False
    socket_group: str
    project: Project


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The variables of a template. They contain no secrets.

    :ivar command: the command that starts flower-proxy.
    :ivar secrets: environment variables for secret options, which the command lacks.
    :ivar prefix: the public prefix, such as ``/flower``; empty for the root.
    :ivar strips: whether the proxy strips the prefix.
    :ivar pattern: the prefix as a regular expression.
    :ivar server_name: the public host name.
    :ivar tls: whether the proxy serves HTTPS.
    :ivar upstream: host and port at which the proxy reaches Flower, ``127.0.0.1:5555``; empty with a unix socket.
    :ivar unix_socket: the path of the unix socket, or empty.
    :ivar socket_group: the group that may connect to the unix socket.
    :ivar project: the folders of a service.
    :ivar port: the port that Flower listens on.
    :ivar forward_auth: URL of the identity provider, without a trailing slash, or empty.
    :ivar users_file: the password file of the proxy, or empty.
    :ivar user_header: the header in which the proxy sends the user, or empty.
    :ivar trusts_proxy: whether Flower leaves authentication to the proxy, which must then validate the Host header.
    :ivar metrics_port: the separate port for /metrics, or None.
    :ivar metrics_user: the user of --metrics_auth, or empty.
    :ivar snippet: whether to print only the part to include in an existing server.
    :ivar is_elsewhere: whether the proxy may run on another machine that --trusted_proxies does not include.
    """

    command: Command
    secrets: tuple[str, ...]
    prefix: str
    strips: bool
    pattern: str
    server_name: str
    tls: bool
    upstream: str
    unix_socket: str
    socket_group: str
    project: Project
    port: int
    forward_auth: str
    users_file: str
    user_header: str
    trusts_proxy: bool
    metrics_port: int | None
    metrics_user: str
    snippet: bool = False
    is_elsewhere: bool


@dataclass(frozen=True)
class Target:
    """One kind of configuration.

    :ivar name: the name on the command line.
    :ivar template: the file in ``templates``.
    :ivar takes: the supported options among `PROXY_OPTIONS`.
    :ivar is_proxy: whether it is a reverse proxy, whose authentication must match Flower's.
    :ivar is_local: whether it runs on Flower's machine; Flower then listens on loopback by default.
    :ivar context: returns additional template variables; raises DeploymentError.
    """

    name: str
    template: str
    takes: frozenset[str]
    is_proxy: bool = False
    is_local: bool = True
    context: Callable[[Deployment], Mapping[str, Any]] = lambda _: {}


def plan(target: Target, spec: DeploymentSpec, options: Mapping[str, Option]) -> Deployment:
    """Validate the options and return the variables of the target's template.

    :param target: the kind of configuration.
    :param spec: the input.
    :param options: the option table.
    :raises DeploymentError: the target does not support an option, or the options contradict each other.
    """
    values = {name: value for name, value in spec.values.items() if value != options[name].default}
    spec = replace(spec, values=values)
    _check_support(target, spec)
    started_with = _options_of_command(target, spec)
    prefix = parse_mount(values.get("url_prefix", ""))
    unix_socket = values.get("unix_socket") or ""
    port = int(values.get("port", options["port"].default))
    user_header = values.get("auth_header") or ""
    deployment = Deployment(
        command=Command(spec.celery, dict(_shown(started_with, options))),
        secrets=(*spec.secrets, *(options[name].variable for name in started_with if options[name].secret)),
        prefix=prefix,
        strips=spec.strip,
        pattern=re.escape(prefix),
        server_name=spec.server_name.lower(),
        tls=spec.tls,
        upstream="" if unix_socket else host_and_port(reachable(started_with.get("address", "")), port),
        unix_socket=unix_socket,
        socket_group=spec.socket_group,
        project=spec.project,
        port=port,
        forward_auth=spec.forward_auth.rstrip("/"),
        users_file=(values.get("auth_file") or USERS_FILE) if spec.proxy_basic_auth else "",
        user_header=user_header,
        trusts_proxy=bool(user_header or values.get("no_auth")),
        metrics_port=values.get("metrics_port"),
        metrics_user=(values.get("metrics_auth") or "").partition(":")[0],
        snippet=spec.snippet,
        is_elsewhere=not (_is_here(target, spec) or values.get("trusted_proxies")),
    )
    _validate(target, spec, deployment)
    return deployment


def reachable(address: str) -> str:
    """Return the address at which local clients reach a server that listens on `address`."""
    return "127.0.0.1" if address in _ANY_ADDRESS else address


def _shown(values: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    for name, option in options.items():
        # Functions are only available in the configuration file
        if name in values and not option.secret and not callable(values[name]):
            yield name, values[name]


def _options_of_command(target: Target, spec: DeploymentSpec) -> Mapping[str, Any]:
    values = dict(spec.values)
    if spec.strip:
        values.pop("url_prefix", None)
    if spec.proxy_basic_auth and values.get("auth_header"):
        # Only the proxy reads the password file
        values.pop("auth_file", None)
    if target.is_local and not values.get("unix_socket") and not values.get("address"):
        values["address"] = "127.0.0.1"
    return values


def _is_here(target: Target, spec: DeploymentSpec) -> bool:
    return target.is_local and spec.values.get("address", "") in _REACHED_BY_LOOPBACK


def _validate(target: Target, spec: DeploymentSpec, deployment: Deployment) -> None:
    _check_texts(spec)
    if target.is_proxy:
        _check_connection(spec, deployment, is_here=_is_here(target, spec))
        _check_authentication(spec)
    _check_command(deployment, is_limited=target.is_proxy)


def _check_support(target: Target, spec: DeploymentSpec) -> None:
    asked = {
        "strip": spec.strip,
        "tls": spec.tls,
        "forward_auth": spec.forward_auth,
        "proxy_basic_auth": spec.proxy_basic_auth,
        "snippet": spec.snippet,
        "server_name": spec.server_name != EXAMPLE_HOST,
        "unix_socket": spec.values.get("unix_socket"),
        "socket_group": spec.socket_group != SOCKET_GROUP,
    }
    for name, is_asked in asked.items():
        if is_asked and name not in target.takes:
            raise DeploymentError(f"--{name}: not supported for {target.name}; leave it out")
    if asked["socket_group"] and not asked["unix_socket"]:
        raise DeploymentError("--socket_group: only a unix socket has a group; add --unix_socket, or leave it out")


def _is_host(text: str, versions: Collection[int] = (4, 6)) -> bool:
    return bool(_NAME.fullmatch(text)) or is_ip(text, versions)


def _is_provider(text: str) -> bool:
    parts = _PROVIDER.fullmatch(text)
    if not parts or int(parts["port"] or 1) not in range(1, 65536):
        return False
    return _is_host(parts["name"], [4]) if parts["v6"] is None else is_ip(parts["v6"], [6])


# Restricted so that no value needs quoting in any of the templates
_PLAIN: Mapping[str, tuple[Callable[[str], object], str]] = {
    "url_prefix": (partial(re.fullmatch, r"[A-Za-z0-9._~@+=/-]+"), "a path of letters, digits and ._~@+=-"),
    "server_name": (partial(_is_host, versions=[4]), "a host name such as example.com"),
    "address": (_is_host, "an address to listen on"),
    "metrics_address": (_is_host, "an address to listen on"),
    "unix_socket": (
        # The limit is 107 bytes in unix(7), 94 in Apache, 96 in HAProxy
        partial(re.fullmatch, r"/[A-Za-z0-9._@+/-]{1,89}"),
        "an absolute path of letters, digits and ._@+-, of at most 90 bytes",
    ),
    # systemd's rule for group names (systemd.io/USER_NAMES)
    "socket_group": (partial(re.fullmatch, r"[A-Za-z_][A-Za-z0-9_-]{0,30}"), "a group name such as www-data"),
    "auth_file": (partial(re.fullmatch, r"/[A-Za-z0-9._@+/-]+"), "an absolute path of letters, digits and ._@+-"),
    "auth_header": (
        # Longer names exceed nginx's default proxy_headers_hash_bucket_size
        partial(re.fullmatch, r"[A-Za-z0-9][A-Za-z0-9-]{0,39}"),
        "a header name of at most 40 letters, digits and -, such as X-Forwarded-User",
    ),
    "forward_auth": (_is_provider, "the base URL of an identity provider, such as http://127.0.0.1:4180"),
}


def _check_texts(spec: DeploymentSpec) -> None:
    texts = {**spec.values, **{name: getattr(spec, name) for name in ("server_name", "forward_auth", "socket_group")}}
    for name, (is_plain, expected) in _PLAIN.items():
        text = str(texts.get(name) or "")
        if (text or name in ("server_name", "socket_group")) and not is_plain(text):
            raise DeploymentError(f"--{name}: {text!r} is not {expected}")


def _check_connection(spec: DeploymentSpec, deployment: Deployment, *, is_here: bool) -> None:
    if spec.strip and not deployment.prefix:
        raise DeploymentError(NOTHING_TO_STRIP)
    if spec.values.get("certfile"):
        raise DeploymentError("--certfile: the proxy terminates TLS; leave it out, and add --tls")
    if deployment.port == 0 and not deployment.unix_socket:
        raise DeploymentError("--port: 0 selects a random port, which the proxy cannot know; set a port")
    peer = UNIX if deployment.unix_socket else "127.0.0.1"
    trusted = spec.values.get("trusted_proxies")
    if is_here and trusted and peer not in TrustedProxies(trusted):
        raise DeploymentError(f"--trusted_proxies: the proxy connects from {peer}; add it, or set another --address")


def _check_authentication(spec: DeploymentSpec) -> None:
    given = {name for name in ("auth_file", "auth_header", "no_auth") if spec.values.get(name)}
    if spec.forward_auth and spec.proxy_basic_auth:
        raise DeploymentError("--proxy_basic_auth and --forward_auth: both authenticate users; leave one of them out")
    for name in ("auth_header", "no_auth"):
        if name in given and not (spec.forward_auth or spec.proxy_basic_auth):
            raise DeploymentError(
                f"--{name}: the proxy must authenticate users; add --forward_auth or --proxy_basic_auth"
            )
    if spec.forward_auth and not given & {"auth_header", "no_auth"}:
        raise DeploymentError("--forward_auth: Flower would authenticate again; add --auth_header=X-Forwarded-User")
    if spec.proxy_basic_auth and not given:
        raise DeploymentError(
            "--proxy_basic_auth: the proxy and Flower need a common password file; add --auth_file=PATH"
        )


def _check_command(deployment: Deployment, *, is_limited: bool) -> None:
    texts = list(deployment.command.texts())
    for option, text in (*texts, ("--metrics_auth", deployment.metrics_user)):
        if not text.isprintable():
            raise DeploymentError(f"{option}: {text!r} contains a line break or another control character; remove it")
    if is_limited and len(str(deployment.command).encode()) > _MAX_COMMAND:
        option, _ = max(texts, key=lambda pair: len(pair[1]))
        raise DeploymentError(f"{option}: the command exceeds {_MAX_COMMAND} bytes; set it in the file of --conf")
