"""Proxy set-ups as data: the servers of nginx, and Flower's options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .journey import Place
from .processes import Address, free_port
from .programs import Broker, Flower, launch, nginx

# Placeholders for addresses that are assigned at start-up
LISTEN, INNER, FLOWER, SECOND = "@LISTEN@", "@INNER@", "@FLOWER@", "@SECOND@"
# Placeholder for nginx's port in Flower's options
PORT = "@PORT@"


@dataclass(frozen=True)
class Setup:
    """One way to run Flower behind a proxy.

    :ivar servers: configuration of nginx; if empty, the browser connects to Flower.
    :ivar prefixes: the public prefix of each Flower.
    :ivar url_prefixes: ``--url_prefix`` of each Flower.
    :ivar browser_adds_slash: as for `Place`.
    """

    id: str
    servers: str = ""
    prefixes: Sequence[str] = ("/flower",)
    url_prefixes: Sequence[str] = ("",)
    host: str = "localhost"
    tls: bool = False
    unix_socket: bool = False
    browser_adds_slash: bool = False

    @property
    def is_secure_context(self) -> bool:
        """Whether browsers send Sec-Fetch-* headers, which they do over TLS and to localhost."""
        return self.tls or self.host == "localhost"


def server(locations: str, *, listen: str = LISTEN) -> str:
    return f"server {{ listen {listen}; {locations} }}"


def kept(prefix: str, *directives: str, flower: str = FLOWER) -> str:
    """A proxy that keeps the prefix, and passes ``/flower`` on too, like Apache, Traefik and an ALB."""
    return f"location {prefix} {{ proxy_pass http://{flower}; {' '.join(directives)} }}"


def stripped(prefix: str, *directives: str, flower: str = FLOWER) -> str:
    """A proxy that strips the prefix, and passes ``/flower`` on as ``/``."""
    rewrite = f"rewrite ^{prefix.rstrip('/')}/?(.*)$ /$1 break;"
    return f"location {prefix} {{ {rewrite} proxy_pass http://{flower}; {' '.join(directives)} }}"


def header(prefix: str) -> str:
    return f"proxy_set_header X-Forwarded-Prefix {prefix};"


HOST = "proxy_set_header Host $http_host;"
HOST_WITHOUT_PORT = "proxy_set_header Host $host;"
SCHEME = "proxy_set_header X-Forwarded-Proto $scheme;"
APPENDED_HEADERS = (
    'proxy_set_header X-Forwarded-Prefix "$http_x_forwarded_prefix, /flower";'
    "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
)

# Only proxy_pass ends in a slash, so /flower/tasks becomes //tasks
MISMATCHED_SLASHES = f"location /flower {{ proxy_pass http://{FLOWER}/; }}"

# A block that many blogs recommend
SUB_FILTER = f"""
  location ~ ^/flower/? {{
    rewrite ^/flower/?(.*)$ /$1 break;
    sub_filter '="/' '="/flower/';
    sub_filter_once off;
    proxy_pass http://{FLOWER};
    proxy_redirect off;
    proxy_set_header Host $host;
    proxy_set_header Accept-Encoding "";
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";
    proxy_http_version 1.1;
  }}
"""

# It keeps the prefix and adds it to links, which therefore have it twice
SUB_FILTER_KEPT = SUB_FILTER.replace("rewrite ^/flower/?(.*)$ /$1 break;", "")

HOSTS = {"http_host": HOST, "host": HOST_WITHOUT_PORT, "no-host": ""}

SETUPS = [
    Setup("no-proxy-no-prefix", prefixes=("",)),
    Setup("no-proxy-prefix", url_prefixes=("flower",)),
    Setup("kept", server(kept("/flower", HOST)), url_prefixes=("flower",)),
    # nginx redirects /flower to /flower/ if a location with proxy_pass ends in a slash
    Setup("kept-location-with-slash", server(kept("/flower/", HOST)), url_prefixes=("flower",)),
    Setup("stripped-location-with-slash-unknown-prefix", server(stripped("/flower/", HOST))),
    Setup("stripped-url-prefix", server(stripped("/flower", HOST)), url_prefixes=("flower",)),
    Setup("stripped-forwarded-prefix", server(stripped("/flower", HOST, header("/flower")))),
    Setup("stripped-unknown-prefix", server(stripped("/flower", HOST)), browser_adds_slash=True),
    Setup("mismatched-slashes-unknown-prefix", server(MISMATCHED_SLASHES), browser_adds_slash=True),
    Setup("sub-filter-url-prefix", server(SUB_FILTER), url_prefixes=("flower",)),
    Setup("sub-filter-unknown-prefix", server(SUB_FILTER), browser_adds_slash=True),
    Setup("sub-filter-kept-url-prefix", server(SUB_FILTER_KEPT), url_prefixes=("flower",)),
    Setup("nested-kept", server(kept("/a/b/flower", HOST)), prefixes=("/a/b/flower",), url_prefixes=("/a/b/flower",)),
    Setup(
        "nested-stripped",
        server(stripped("/a/b/flower", HOST)),
        prefixes=("/a/b/flower",),
        url_prefixes=("/a/b/flower",),
    ),
    Setup(
        "nested-stripped-unknown-prefix",
        server(stripped("/a/b/flower", HOST)),
        prefixes=("/a/b/flower",),
        browser_adds_slash=True,
    ),
    Setup("named-like-a-page-kept", server(kept("/tasks", HOST)), prefixes=("/tasks",), url_prefixes=("/tasks",)),
    Setup(
        "named-like-a-page-stripped-forwarded-prefix",
        server(stripped("/tasks", HOST, header("/tasks"))),
        prefixes=("/tasks",),
    ),
    Setup("tls-kept", server(kept("/flower", HOST, SCHEME)), url_prefixes=("flower",), tls=True),
    Setup(
        "tls-stripped-unknown-prefix",
        server(stripped("/flower")),
        tls=True,
        browser_adds_slash=True,
    ),
    Setup("unix-socket-kept", server(kept("/flower", HOST)), url_prefixes=("flower",), unix_socket=True),
    Setup("unix-socket-stripped-forwarded-prefix", server(stripped("/flower", header("/flower"))), unix_socket=True),
    Setup(
        "two-instances-kept",
        server(kept("/a/flower", HOST) + kept("/b/flower", HOST, flower=SECOND)),
        prefixes=("/a/flower", "/b/flower"),
        url_prefixes=("/a/flower", "/b/flower"),
    ),
    Setup(
        "two-instances-stripped-forwarded-prefix",
        server(
            stripped("/a/flower", HOST, header("/a/flower"))
            + stripped("/b/flower", HOST, header("/b/flower"), flower=SECOND)
        ),
        prefixes=("/a/flower", "/b/flower"),
        url_prefixes=("", ""),
    ),
    Setup(
        "two-instances-stripped-unknown-prefix",
        server(stripped("/a/flower", HOST) + stripped("/b/flower", HOST, flower=SECOND)),
        prefixes=("/a/flower", "/b/flower"),
        url_prefixes=("", ""),
        browser_adds_slash=True,
    ),
    Setup(
        "two-proxies-both-strip-headers-appended",
        server(stripped("/outer", HOST, header("/outer"), flower=INNER))
        + server(stripped("/flower", HOST, APPENDED_HEADERS), listen=INNER),
        prefixes=("/outer/flower",),
    ),
    Setup(
        "two-proxies-both-strip-unknown-prefix",
        server(stripped("/outer", flower=INNER)) + server(stripped("/flower"), listen=INNER),
        prefixes=("/outer/flower",),
        browser_adds_slash=True,
    ),
    Setup(
        "two-proxies-outer-strips-inner-keeps",
        server(stripped("/outer", HOST, header("/outer"), flower=INNER)) + server(kept("/flower", HOST), listen=INNER),
        prefixes=("/outer/flower",),
        url_prefixes=("flower",),
    ),
    *(
        Setup(
            f"plain-http-{name}-kept", server(kept("/flower", directive)), url_prefixes=("flower",), host="flower.test"
        )
        for name, directive in HOSTS.items()
    ),
    *(
        Setup(
            f"plain-http-{name}-stripped-unknown-prefix",
            server(stripped("/flower", directive)),
            host="flower.test",
            browser_adds_slash=True,
        )
        for name, directive in HOSTS.items()
    ),
]


class Flowers:
    """Flowers that are started on demand, and shared by set-ups with the same options.

    :param kind: as for `launch`.
    """

    def __init__(self, kind: str, broker: Broker, folder: Path) -> None:
        self._kind, self._broker, self._folder = kind, broker, folder
        self._running: dict[tuple[object, ...], Flower] = {}
        self._stacks: list[contextlib.ExitStack] = []

    def __enter__(self) -> Flowers:
        return self

    def __exit__(self, *exception: object) -> None:
        # Each waits for its connections
        with ThreadPoolExecutor() as pool:
            list(pool.map(contextlib.ExitStack.close, self._stacks))

    def get(
        self,
        url_prefix: str = "",
        *,
        instance: int = 0,
        unix_socket: bool = False,
        authenticates: bool = True,
        options: Sequence[str] = (),
    ) -> Flower:
        """Return a Flower that has received the events of a few tasks.

        :param instance: distinguishes Flowers with the same options.
        """
        key = (url_prefix, instance, unix_socket, authenticates, *options)
        if key not in self._running:
            self._stacks.append(contextlib.ExitStack())
            flower = self._stacks[-1].enter_context(
                launch(
                    self._kind,
                    self._broker,
                    self._folder / f"flower{len(self._running)}",
                    url_prefix=url_prefix,
                    unix_socket=unix_socket,
                    authenticates=authenticates,
                    options=options,
                )
            )
            flower.watch_tasks(self._broker)
            self._running[key] = flower
        return self._running[key]


@contextlib.contextmanager
def deployed(
    setup: Setup,
    flowers: Flowers,
    certificate: tuple[Path, Path],
    folder: Path,
    *,
    authenticates: bool = True,
    options: Sequence[str] = (),
) -> Iterator[list[Place]]:
    """Run nginx in front of the Flowers of a set-up, and yield the public URL of each Flower.

    :param authenticates: as for `launch`.
    :param options: further options of Flower; `PORT` in them becomes nginx's port.
    """
    public, inner = Address(free_port()), Address(free_port())
    running = [
        flowers.get(
            url_prefix,
            instance=instance,
            unix_socket=setup.unix_socket,
            authenticates=authenticates,
            options=[option.replace(PORT, str(public.port)) for option in options],
        )
        for instance, url_prefix in enumerate(setup.url_prefixes)
    ]
    with contextlib.ExitStack() as stack:
        if not setup.servers:
            public = running[0].address
        else:
            listen = f"{public} ssl" if setup.tls else str(public)
            table = {
                LISTEN: listen,
                INNER: str(inner),
                FLOWER: str(running[0].address),
                SECOND: str(running[-1].address),
            }
            text = setup.servers
            for placeholder, value in table.items():
                text = text.replace(placeholder, value)
            certfile, keyfile = certificate
            tls = f"ssl_certificate {certfile}; ssl_certificate_key {keyfile};"
            stack.enter_context(nginx(f"{tls} {text}", folder / "nginx", ready=public))
        origin = f"{'https' if setup.tls else 'http'}://{setup.host}:{public.port}"
        yield [Place(origin, prefix, setup.browser_adds_slash) for prefix in setup.prefixes]
