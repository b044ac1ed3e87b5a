"""How Flower is to be reached, and the configuration that says so to the program in front of it or around it.

Pure: from settings to text. What is written comes from the files in ``templates``, templates of Tornado's with
every field of `Deployment` as a name.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tornado.template import DictLoader

from flower_proxy.proxy.addresses import UNIX, TrustedProxies
from flower_proxy.proxy.paths import parse_mount
from flower_proxy.settings.options import Option

_FOLDER = Path(__file__).with_name("templates")
# A block or a comment that has its line to itself is to leave no empty line
_LINE_OF_ITS_OWN = re.compile(r"^[ \t]*(\{[%#].*?[%#]\})\n", re.MULTILINE)

# RFC 1123, section 2.1
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")
_PROVIDER = re.compile(r"https?://(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^\[\]:/]*))(?::(?P<port>[0-9]{1,5}))?/?")


def is_ip(text: str, versions: Collection[int] = (4, 6)) -> bool:
    """Tell whether this is an IP address of one of these versions, without a scope."""
    try:
        return "%" not in text and ipaddress.ip_address(text).version in versions
    except ValueError:
        return False


def _is_host(text: str, versions: Collection[int] = (4, 6)) -> bool:
    return bool(_NAME.fullmatch(text)) or is_ip(text, versions)


def _is_provider(text: str) -> bool:
    parts = _PROVIDER.fullmatch(text)
    if not parts or int(parts["port"] or 1) not in range(1, 65536):
        return False
    return _is_host(parts["name"], [4]) if parts["v6"] is None else is_ip(parts["v6"], [6])


# What cannot end a value, or mean something else, in any of the files
_PLAIN: Mapping[str, tuple[Callable[[str], object], str]] = {
    "url_prefix": (partial(re.fullmatch, r"[A-Za-z0-9._~@+=/-]+"), "a path of letters, digits and ._~@+=-"),
    "server_name": (partial(_is_host, versions=[4]), "a host's name, such as example.com"),
    "address": (_is_host, "an address to listen on"),
    "metrics_address": (_is_host, "an address to listen on"),
    "unix_socket": (
        # unix(7) has room for 107 bytes; Apache takes 94, HAProxy 96
        partial(re.fullmatch, r"/[A-Za-z0-9._@+/-]{1,89}"),
        "an absolute path of letters, digits and ._@+-, of at most 90 bytes",
    ),
    "auth_file": (partial(re.fullmatch, r"/[A-Za-z0-9._@+/-]+"), "an absolute path of letters, digits and ._@+-"),
    "auth_header": (
        # nginx has room for no longer ones by default
        partial(re.fullmatch, r"[A-Za-z0-9][A-Za-z0-9-]{0,39}"),
        "a header of letters, digits and -, of at most 40, such as X-Forwarded-User",
    ),
    "forward_auth": (_is_provider, "where the identity provider listens, such as http://127.0.0.1:4180"),
}
# nginx refuses a comment of 4096 bytes, and the command is in one
_MAX_COMMAND = 4000
_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104  compared, not listened on
_USERS_FILE = "/etc/flower/htpasswd"


class DeploymentError(ValueError):
    """What was asked for cannot be had; the message is one line that names the option, and what to do."""


@dataclass(frozen=True)
class Target:
    """One kind of configuration.

    :ivar template: the file in ``templates``.
    :ivar takes: the options among `PROXY_OPTIONS` that it can follow; it refuses the others.
    :ivar is_proxy: whether it stands between browsers and Flower, and so has to settle who may enter.
    :ivar is_local: whether it runs on Flower's machine, which then listens on loopback unless it is told otherwise.
    :ivar more: further names for the template; raises DeploymentError if it cannot be had.
    """

    template: str
    takes: frozenset[str] = frozenset()
    is_proxy: bool = False
    is_local: bool = False
    more: Callable[[Deployment], Mapping[str, Any]] = lambda _: {}


PROXY_OPTIONS = ("strip", "server_name", "tls", "forward_auth", "proxy_basic_auth", "unix_socket")


def _proxy(template: str, *, refuses: Collection[str] = (), is_local: bool = True) -> Target:
    return Target(template, frozenset(PROXY_OPTIONS).difference(refuses), is_proxy=True, is_local=is_local)


TARGETS = {
    "nginx": _proxy("nginx.conf"),
    "apache": _proxy("apache.conf", refuses=["forward_auth"]),
    "caddy": _proxy("Caddyfile", refuses=["proxy_basic_auth"]),
    "haproxy": _proxy("haproxy.cfg", refuses=["forward_auth", "proxy_basic_auth"]),
    "traefik": _proxy("traefik.yml", refuses=["unix_socket"]),
    "ingress-nginx": _proxy("ingress-nginx.yml", refuses=["proxy_basic_auth", "unix_socket"], is_local=False),
}


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a template has to know. No secret is in it.

    :ivar words: the command that starts flower-proxy, as a list.
    :ivar command: the same as a line for a shell.
    :ivar secrets: environment variables that have to be set in addition, since their values are secret.
    :ivar settings: every option of Flower's and ours that is set and no secret, by name.
    :ivar prefix: the public prefix, ``/flower``; empty for the root.
    :ivar strips: whether the proxy takes it off.
    :ivar pattern: the prefix as a regular expression.
    :ivar server_name: the public host's name.
    :ivar tls: whether the proxy serves HTTPS.
    :ivar upstream: where the proxy finds Flower: ``127.0.0.1:5555``; empty with a unix socket.
    :ivar unix_socket: the path of the unix socket, or empty.
    :ivar port: what Flower listens on, also where the proxy finds it otherwise.
    :ivar forward_auth: where the identity provider listens, without a final slash, or empty.
    :ivar users_file: the file out of which the proxy asks for passwords, or empty.
    :ivar user_header: the header in which the proxy names the user, or empty.
    :ivar asks_nobody: whether Flower itself asks for no password, so that the host's name has to be right.
    :ivar metrics_port: the port of /metrics alone, or None.
    :ivar metrics_user: who --metrics_auth lets see the metrics, or empty.
    :ivar is_elsewhere: whether the proxy seems to be on another machine, and nothing says that it is trusted.
    """

    words: tuple[str, ...]
    command: str
    secrets: tuple[str, ...]
    settings: Mapping[str, Any]
    prefix: str
    strips: bool
    pattern: str
    server_name: str
    tls: bool
    upstream: str
    unix_socket: str
    port: int
    forward_auth: str
    users_file: str
    user_header: str
    asks_nobody: bool
    metrics_port: int | None
    metrics_user: str
    is_elsewhere: bool


def plan(
    target: str,
    kind: Target,
    options: Mapping[str, Option],
    values: Mapping[str, Any],
    *,
    front: Sequence[str],
    secrets: Sequence[str] = (),
    strip: bool = False,
    server_name: str = "example.com",
    tls: bool = False,
    forward_auth: str = "",
    proxy_basic_auth: bool = False,
) -> Deployment:
    """Decide what is to be written.

    :param target: how it is called.
    :param kind: what it is.
    :param options: all there are, by name.
    :param values: those that are set, by name.
    :param front: Celery's own part of the command: ``-A``, ``server``.
    :param secrets: environment variables that hold a secret of Celery's.
    :raises DeploymentError: it cannot be had.
    """
    values = {name: value for name, value in values.items() if value != options[name].default}
    prefix = parse_mount(values.get("url_prefix", ""))
    own = {"server_name": server_name, "forward_auth": forward_auth}
    for name, (is_plain, expected) in _PLAIN.items():
        text = str(own.get(name, values.get(name, "")) or "")
        if (text or name == "server_name") and not is_plain(text):
            raise DeploymentError(f"--{name}: {text!r} is not {expected}")
    asked = {"strip": strip, "tls": tls, "forward_auth": forward_auth, "proxy_basic_auth": proxy_basic_auth}
    asked["server_name"] = server_name != "example.com"
    asked["unix_socket"] = kind.is_proxy and values.get("unix_socket")
    is_here = kind.is_local and values.get("address", "") in (*_ANY_ADDRESS, "localhost", "127.0.0.1", "::1")
    if kind.is_proxy:
        _check_proxy(values, prefix, asked, is_here=is_here)
    for name, wanted in asked.items():
        if wanted and name not in kind.takes:
            raise DeploymentError(f"--{name}: this is not for {target}; leave it out")
    users_file = (values.get("auth_file") or _USERS_FILE) if proxy_basic_auth else ""
    user_header = values.get("auth_header") or ""
    told = dict(values)
    if strip:
        told.pop("url_prefix", None)
    if proxy_basic_auth and user_header:
        # its users come in by the proxy's word
        told.pop("auth_file", None)
    if kind.is_local and not values.get("unix_socket") and not values.get("address"):
        told["address"] = "127.0.0.1"
    hidden = [options[name].variable for name in told if options[name].secret]
    settings = {name: told[name] for name in options if name in told and not options[name].secret}
    words = ("flower-proxy", *front, *_words(options, settings))
    metrics_user = (values.get("metrics_auth") or "").partition(":")[0]
    for name, text in (*values_by_option(words), ("--metrics_auth", metrics_user)):
        if not text.isprintable():
            raise DeploymentError(f"{name}: {text!r}: a line break or the like cannot be written into a configuration")
    command = shlex.join(words)
    if kind.is_proxy and len(command.encode()) > _MAX_COMMAND:
        name, _ = max(values_by_option(words), key=lambda pair: len(pair[1]))
        raise DeploymentError(f"{name}: the command has more than {_MAX_COMMAND} bytes; set the option in --conf")
    return Deployment(
        words=words,
        command=command,
        secrets=(*secrets, *hidden),
        settings=settings,
        prefix=prefix,
        strips=strip,
        pattern=re.escape(prefix),
        server_name=server_name.lower(),
        tls=tls,
        upstream="" if values.get("unix_socket") else _upstream(told.get("address", ""), _port(options, values)),
        unix_socket=values.get("unix_socket") or "",
        port=_port(options, values),
        forward_auth=forward_auth.rstrip("/"),
        users_file=users_file,
        user_header=user_header,
        asks_nobody=bool(user_header or values.get("no_auth")),
        metrics_port=values.get("metrics_port"),
        metrics_user=metrics_user,
        is_elsewhere=not (is_here or values.get("trusted_proxies")),
    )


def render(target: Target, deployment: Deployment) -> str:
    """Write the configuration.

    :raises DeploymentError: the target cannot do what is asked for.
    """
    namespace = {field.name: getattr(deployment, field.name) for field in fields(deployment)}
    namespace |= {"yaml": _yaml, **target.more(deployment)}
    return _templates().load(target.template).generate(**namespace).decode()


def values_by_option(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return each word of a command without its option's name, and before it that name, for messages."""
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        is_whole = word.startswith("--") and equals
        yield (name, value) if is_whole else (option, word)
        option = name if word.startswith("-") else option


def _yaml(text: str) -> str:
    """Quote a text for YAML; parsers differ in which plain words are texts."""
    return yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True).rstrip("\n")


@functools.cache
def _templates() -> DictLoader:
    texts = {file.name: file.read_text(encoding="utf-8") for file in _FOLDER.iterdir() if file.is_file()}
    prepared = {name: _LINE_OF_ITS_OWN.sub(r"\1", text) for name, text in texts.items()}
    return DictLoader(prepared, autoescape=None, whitespace="all")


def _check_proxy(values: Mapping[str, Any], prefix: str, asked: Mapping[str, Any], *, is_here: bool) -> None:
    if asked["strip"] and not prefix:
        raise DeploymentError("--strip: there is nothing to strip; add --url_prefix with the public prefix")
    if values.get("certfile"):
        raise DeploymentError("--certfile: TLS is the proxy's part here; leave it out, and add --tls")
    if values.get("port") == 0 and not values.get("unix_socket"):
        raise DeploymentError("--port: 0 is a free port, but the proxy has to know which; name one")
    peer = UNIX if values.get("unix_socket") else "127.0.0.1"
    if is_here and values.get("trusted_proxies") and peer not in TrustedProxies(values["trusted_proxies"]):
        raise DeploymentError(f"--trusted_proxies: the proxy comes from {peer} here; add it, or name another --address")
    if asked["forward_auth"] and asked["proxy_basic_auth"]:
        raise DeploymentError("--proxy_basic_auth: --forward_auth asks already who it is; leave one of them out")
    vouches = asked["forward_auth"] or asked["proxy_basic_auth"]
    for name in ("auth_header", "no_auth"):
        if values.get(name) and not vouches:
            raise DeploymentError(
                f"--{name}: nobody would ask who people are; add --forward_auth=URL or --proxy_basic_auth"
            )
    if asked["forward_auth"] and not (values.get("auth_header") or values.get("no_auth")):
        raise DeploymentError("--forward_auth: Flower would ask once more; add --auth_header=X-Forwarded-User")
    if asked["proxy_basic_auth"] and not any(values.get(name) for name in ("auth_file", "auth_header", "no_auth")):
        raise DeploymentError("--proxy_basic_auth: Flower has to know these users too; add --auth_file=PATH for both")


def _port(options: Mapping[str, Option], values: Mapping[str, Any]) -> int:
    return int(values.get("port", options["port"].default))


def _upstream(address: str, port: int) -> str:
    host = "127.0.0.1" if address in _ANY_ADDRESS else address
    return host_and_port(host, port)


def host_and_port(host: str, port: int) -> str:
    """Write both as a URL has them: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _words(options: Mapping[str, Option], settings: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(f"--{name}")
        elif options[name].multiple:
            words.append(f"--{name}={','.join(map(str, value))}")
        elif not callable(value):
            words.append(f"--{name}={str(value).lower() if value is False else value}")
    return words
