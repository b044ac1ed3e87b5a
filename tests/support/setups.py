"""The set-ups that Flower meets in the field, as data: what nginx is told, and what Flower is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .journey import Place
from .processes import Address, free_port
from .programs import Broker, launch, nginx

# What stands for the addresses that are known only when the programs start
LISTEN, INNER, FLOWER, SECOND = "@LISTEN@", "@INNER@", "@FLOWER@", "@SECOND@"
# nginx's port, in what Flower is told
PORT = "@PORT@"


@dataclass(frozen=True)
class Setup:
    """One way to put Flower behind a proxy."""

    id: str
    # the servers nginx runs; nothing where the browser talks to Flower itself
    servers: str = ""
    # the public prefixes, one for each Flower
    prefixes: Sequence[str] = ("/flower",)
    # --url_prefix of each Flower; nothing where Flower is not told
    told: Sequence[str] = ("",)
    host: str = "localhost"
    tls: bool = False
    unix_socket: bool = False
    only_the_browser_knows_the_slash: bool = False

    @property
    def is_trusted_by_browsers(self) -> bool:
        """Whether browsers send Sec-Fetch-* there: over TLS and to localhost only."""
        return self.tls or self.host == "localhost"


def server(locations: str, *, listen: str = LISTEN) -> str:
    return f"server {{ listen {listen}; {locations} }}"


def kept(prefix: str, *directives: str, flower: str = FLOWER) -> str:
    """A proxy that passes the path on as it is. It is not told about slashes, as with Apache, Traefik or an ALB."""
    return f"location {prefix} {{ proxy_pass http://{flower}; {' '.join(directives)} }}"


def stripped(prefix: str, *directives: str, flower: str = FLOWER) -> str:
    """A proxy that takes the prefix off, and passes ``/flower`` on as ``/``."""
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

NEWCOMERS_SLASH = f"location /flower {{ proxy_pass http://{FLOWER}/; }}"

# the block that blogs hand around
BLOGS = f"""
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

# somebody took the line out that strips: links that have the prefix get it once more, and keep it twice
BLOGS_WITHOUT_REWRITE = BLOGS.replace("rewrite ^/flower/?(.*)$ /$1 break;", "")

HOSTS = {"http_host": HOST, "host": HOST_WITHOUT_PORT, "no-host": ""}

SETUPS = [
    Setup("no-proxy-no-prefix", prefixes=("",)),
    Setup("no-proxy-prefix", told=("flower",)),
    Setup("kept", server(kept("/flower", HOST)), told=("flower",)),
    # nginx itself sends /flower on to /flower/ where a location ends in a slash and passes on
    Setup("kept-below-a-slash", server(kept("/flower/", HOST)), told=("flower",)),
    Setup("stripped-below-a-slash-told-nothing", server(stripped("/flower/", HOST))),
    Setup("stripped-told-by-option", server(stripped("/flower", HOST)), told=("flower",)),
    Setup("stripped-told-by-header", server(stripped("/flower", HOST, header("/flower")))),
    Setup("stripped-told-nothing", server(stripped("/flower", HOST)), only_the_browser_knows_the_slash=True),
    Setup("stripped-by-a-newcomer-told-nothing", server(NEWCOMERS_SLASH), only_the_browser_knows_the_slash=True),
    Setup("blogs-block-told-by-option", server(BLOGS), told=("flower",)),
    Setup("blogs-block-told-nothing", server(BLOGS), only_the_browser_knows_the_slash=True),
    Setup("blogs-block-without-rewrite-told-by-option", server(BLOGS_WITHOUT_REWRITE), told=("flower",)),
    Setup("nested-kept", server(kept("/a/b/flower", HOST)), prefixes=("/a/b/flower",), told=("/a/b/flower",)),
    Setup("nested-stripped", server(stripped("/a/b/flower", HOST)), prefixes=("/a/b/flower",), told=("/a/b/flower",)),
    Setup(
        "nested-stripped-told-nothing",
        server(stripped("/a/b/flower", HOST)),
        prefixes=("/a/b/flower",),
        only_the_browser_knows_the_slash=True,
    ),
    Setup("named-like-a-page-kept", server(kept("/tasks", HOST)), prefixes=("/tasks",), told=("/tasks",)),
    Setup(
        "named-like-a-page-stripped-told-by-header",
        server(stripped("/tasks", HOST, header("/tasks"))),
        prefixes=("/tasks",),
    ),
    Setup("tls-kept", server(kept("/flower", HOST, SCHEME)), told=("flower",), tls=True),
    Setup(
        "tls-stripped-told-nothing",
        server(stripped("/flower")),
        tls=True,
        only_the_browser_knows_the_slash=True,
    ),
    Setup("unix-socket-kept", server(kept("/flower", HOST)), told=("flower",), unix_socket=True),
    Setup("unix-socket-stripped-told-by-header", server(stripped("/flower", header("/flower"))), unix_socket=True),
    Setup(
        "two-instances-kept",
        server(kept("/a/flower", HOST) + kept("/b/flower", HOST, flower=SECOND)),
        prefixes=("/a/flower", "/b/flower"),
        told=("/a/flower", "/b/flower"),
    ),
    Setup(
        "two-instances-stripped-told-by-header",
        server(
            stripped("/a/flower", HOST, header("/a/flower"))
            + stripped("/b/flower", HOST, header("/b/flower"), flower=SECOND)
        ),
        prefixes=("/a/flower", "/b/flower"),
        told=("", ""),
    ),
    Setup(
        "two-instances-stripped-told-nothing",
        server(stripped("/a/flower", HOST) + stripped("/b/flower", HOST, flower=SECOND)),
        prefixes=("/a/flower", "/b/flower"),
        told=("", ""),
        only_the_browser_knows_the_slash=True,
    ),
    Setup(
        "two-proxies-both-strip-headers-appended",
        server(stripped("/outer", HOST, header("/outer"), flower=INNER))
        + server(stripped("/flower", HOST, APPENDED_HEADERS), listen=INNER),
        prefixes=("/outer/flower",),
    ),
    Setup(
        "two-proxies-both-strip-told-nothing",
        server(stripped("/outer", flower=INNER)) + server(stripped("/flower"), listen=INNER),
        prefixes=("/outer/flower",),
        only_the_browser_knows_the_slash=True,
    ),
    Setup(
        "two-proxies-outer-strips-inner-keeps",
        server(stripped("/outer", HOST, header("/outer"), flower=INNER)) + server(kept("/flower", HOST), listen=INNER),
        prefixes=("/outer/flower",),
        told=("flower",),
    ),
    *(
        Setup(f"plain-http-{name}-kept", server(kept("/flower", directive)), told=("flower",), host="flower.test")
        for name, directive in HOSTS.items()
    ),
    *(
        Setup(
            f"plain-http-{name}-stripped-told-nothing",
            server(stripped("/flower", directive)),
            host="flower.test",
            only_the_browser_knows_the_slash=True,
        )
        for name, directive in HOSTS.items()
    ),
]


@contextlib.contextmanager
def standing(
    setup: Setup,
    kind: str,
    broker: Broker,
    certificate: tuple[Path, Path],
    folder: Path,
    *,
    authenticates: bool = True,
    options: Sequence[str] = (),
) -> Iterator[list[Place]]:
    """Start everything a set-up needs, let Flower see a few tasks, and tell where the browser finds it.

    :param authenticates: as for `launch`.
    :param options: what Flower is told in addition; `PORT` in it stands for that of nginx.
    """
    with contextlib.ExitStack() as stack:
        public, inner = Address(free_port()), Address(free_port())
        flowers = [
            stack.enter_context(
                launch(
                    kind,
                    broker,
                    folder / f"flower{number}",
                    url_prefix=told,
                    unix_socket=setup.unix_socket,
                    authenticates=authenticates,
                    options=[option.replace(PORT, str(public.port)) for option in options],
                )
            )
            for number, told in enumerate(setup.told)
        ]
        for flower in flowers:
            flower.watch_tasks(broker)
        if not setup.servers:
            public = flowers[0].address
        else:
            listen = f"{public} ssl" if setup.tls else str(public)
            table = {
                LISTEN: listen,
                INNER: str(inner),
                FLOWER: str(flowers[0].address),
                SECOND: str(flowers[-1].address),
            }
            text = setup.servers
            for placeholder, value in table.items():
                text = text.replace(placeholder, value)
            certfile, keyfile = certificate
            tls = f"ssl_certificate {certfile}; ssl_certificate_key {keyfile};"
            stack.enter_context(nginx(f"{tls} {text}", folder / "nginx", ready=public))
        origin = f"{'https' if setup.tls else 'http'}://{setup.host}:{public.port}"
        yield [Place(origin, prefix, setup.only_the_browser_knows_the_slash) for prefix in setup.prefixes]
