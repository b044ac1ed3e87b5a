"""Proxy configurations that ``flower-proxy config`` prints, run in a real proxy in front of Flower."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .configurations import BY_HAND, EXAMPLES, printed
from .journey import Place
from .processes import PROJECT, Address, Answer, basic, free_port, request, wait_until
from .programs import CREDENTIALS
from .proxies import OWN_SERVERS, proxy, substitute
from .setups import Flowers
from .standins import HostApplication, IdentityProvider, serving

README = "README.md"
# Without one of these in an example's command, the tests add --basic_auth
AUTH_OPTIONS = {"auth_file", "auth_header"}
SOCKET = "/run/flower/flower.sock"
_AUTH_HEADER = "--url_prefix=flower --auth_header=X-Forwarded-User"
PROXY_BASIC_AUTH = [f"{kind} {_AUTH_HEADER} --proxy_basic_auth" for kind in ("nginx", "apache")]
_CADDY_FORWARD_AUTH = f"caddy {_AUTH_HEADER} --forward_auth=http://127.0.0.1:4180"
# Arguments of `flower-proxy config` whose output is in no file
VARIANTS = [
    *PROXY_BASIC_AUTH,
    f"nginx --url_prefix=flower --strip --tls --unix_socket={SOCKET}",
    "apache --url_prefix=flower --proxy_basic_auth --auth_file=/etc/flower/htpasswd",
    "apache --url_prefix=flower --tls",
    f"apache --url_prefix=flower --strip --unix_socket={SOCKET}",
    _CADDY_FORWARD_AUTH,
    "caddy --url_prefix=flower --tls",
    f"caddy --url_prefix=flower --strip --unix_socket={SOCKET}",
    "haproxy --url_prefix=flower --tls",
    f"haproxy --url_prefix=flower --strip --unix_socket={SOCKET}",
    "nginx --url_prefix=flower --strip --snippet",
    "apache --url_prefix=flower --snippet",
    "caddy --url_prefix=flower --snippet",
]
RUN = ("nginx/", "apache/", "caddy/", "haproxy/")
FILES = [README, *(name for name in (*EXAMPLES, *BY_HAND) if name.startswith(RUN))]
CASES = [*FILES, *VARIANTS]
WITH_TLS = [name for name in CASES if "tls" in name]
FORWARD_AUTH = ["nginx/auth_request.conf", _CADDY_FORWARD_AUTH]
SHARED_HTPASSWD = [
    "nginx/auth_basic.conf",
    "apache --url_prefix=flower --proxy_basic_auth --auth_file=/etc/flower/htpasswd",
]


@dataclass(frozen=True)
class Example:
    """A running proxy and the servers behind it.

    :ivar public: the address of the proxy.
    :ivar plain: its address without TLS.
    """

    public: Address
    plain: Address

    @property
    def place(self) -> Place:
        return Place(f"{'https' if self.public.tls else 'http'}://localhost:{self.public.port}", "/flower")

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        source: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send an authenticated request."""
        authenticated = {**basic(CREDENTIALS), "Cookie": IdentityProvider.SESSION}
        return request(self.public, path, method=method, source=source, headers={**authenticated, **(headers or {})})


def read(name: str) -> tuple[str, dict[str, str]]:
    """Return the configuration and the options of the Flower command in its comment."""
    if name == README:
        text = (PROJECT / README).read_text()
        (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
        return OWN_SERVERS["nginx"].format(block), {"url_prefix": "flower"}
    text = (PROJECT / "examples" / name).read_text() if name in FILES else printed(name)
    command = next(line for line in text.splitlines() if "flower-proxy -A" in line)
    if "--snippet" in name:
        text = OWN_SERVERS[name.split()[0]].format(text)
    return text, dict(word.lstrip("-").split("=", 1) for word in shlex.split(command.lstrip("# ")) if "=" in word)


@contextlib.contextmanager
def served(
    name: str,
    flower: Address,
    files: Mapping[str, str],
    folder: Path,
    *,
    provider: type[IdentityProvider] = IdentityProvider,
) -> Iterator[tuple[Address, Address]]:
    """Run the proxy with the configuration in front of this Flower; yield its public address and that without TLS."""
    text, _ = read(name)
    kind = "nginx" if name == README else re.split("[ /]", name)[0]
    plain, tls = Address(free_port()), Address(free_port(), tls=True)
    with contextlib.ExitStack() as stack:
        table = {SOCKET: str(flower.socket_path), "127.0.0.1:5555": str(flower)}
        if "127.0.0.1:4180" in text:
            table["127.0.0.1:4180"] = str(stack.enter_context(serving(provider)))
        if name == "nginx/host-application.conf":
            table["127.0.0.1:8000"] = str(stack.enter_context(serving(HostApplication)))
        stack.enter_context(proxy(kind, substitute(text, table), folder, plain=plain, tls=tls, files=files))
        public = tls if name in WITH_TLS else plain
        wait_until(public.accepts, what=f"{kind} listens on both ports")
        yield public, plain


def flower_options(name: str) -> tuple[str, bool, bool, tuple[str, ...]]:
    """Return prefix, whether it has a unix socket, whether it authenticates by password, and the other options."""
    _, documented = read(name)
    prefix, unix_socket = documented.pop("url_prefix", ""), bool(documented.pop("unix_socket", ""))
    others = tuple(f"--{option}={value}" for option, value in documented.items() if option != "address")
    return prefix, unix_socket, not AUTH_OPTIONS & documented.keys(), others


@contextlib.contextmanager
def deployed(
    name: str, flowers: Flowers, files: Mapping[str, str], folder: Path, options: Sequence[str] = ()
) -> Iterator[Example]:
    """Run Flower with the command in the file's comment and these options, and the proxy with the file."""
    url_prefix, unix_socket, authenticates, documented = flower_options(name)
    flower = flowers.get(
        url_prefix,
        unix_socket=unix_socket,
        authenticates=authenticates,
        options=[*(substitute(option, files) for option in documented), *options],
    )
    with served(name, flower.address, files, folder) as (public, plain):
        yield Example(public, plain)
