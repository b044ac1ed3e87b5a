"""The public location of a request: client, scheme, host and prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from flower_proxy.proxy.addresses import TrustedProxies, parse_address, without_default_port
from flower_proxy.proxy.headers import Headers, Lines, has_no_port, read_forwarded
from flower_proxy.proxy.paths import ends_with, single_slash, strip_prefix

_MAX_REPEATED = 8


class PublicURL(str):
    """A URL with the public prefix, so that it cannot be added twice."""

    __slots__ = ()

    def __add__(self, other: str) -> PublicURL:
        return PublicURL(str(self) + other)


@dataclass(frozen=True, kw_only=True)
class Location:
    """The public location of a request, as the browser sees it.

    :ivar peer: the address of the connection's peer, or `UNIX`.
    :ivar trusted: whether the peer is a trusted proxy.
    :ivar client: the client's IP address; `UNIX` for a client of the unix socket.
    :ivar scheme: ``http`` or ``https``.
    :ivar host: host and port, in lower case, without the scheme's default port.
    :ivar host_forwarded: whether a trusted proxy forwarded the host.
    :ivar prefix: the public prefix, as `parse_mount` returns it; None if unknown, so that links are relative.
    :ivar path: the path below the prefix; ``""`` for the prefix without a trailing slash.
    :ivar repeated: whether the path repeated the prefix or the slash behind it.
    """

    peer: str
    trusted: bool
    client: str
    scheme: str
    host: str
    host_forwarded: bool
    prefix: str | None
    path: str
    repeated: bool = False

    @property
    def origin(self) -> str:
        """The origin of the page (RFC 6454), such as ``https://example.com:8443``."""
        return f"{self.scheme}://{self.host}"

    @property
    def base(self) -> str:
        """The base of links: the prefix, or a relative path such as ``.`` or ``../..`` if it is unknown."""
        if self.prefix is not None:
            return self.prefix
        return "/".join([".."] * (self.path.count("/") - 1)) or "."

    def url(self, path: str) -> PublicURL:
        """Return the link to a path of Flower; no other code adds a prefix.

        :param path: a path that starts with a slash; a `PublicURL` is returned unchanged.
        """
        return path if isinstance(path, PublicURL) else PublicURL(self.base + path)


@dataclass(frozen=True, kw_only=True)
class Locator:
    """Determines the public location of requests.

    :ivar mount: the value of ``--url_prefix``, as `parse_mount` returns it.
    :ivar trusted: the peers whose forwarded headers are read.
    :ivar is_page: returns whether a path, without prefix, is a page of Flower.
    :ivar xheaders: read ``X-Real-Ip`` and ``X-Scheme`` if ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are missing.

    =================================  ==============================================================================
    header                             sets
    =================================  ==============================================================================
    ``X-Forwarded-For``                the client: from the right, the first address that is not trusted
    ``X-Forwarded-Proto``              the scheme: the first value
    ``X-Forwarded-Host``               the host: the first value
    ``X-Forwarded-Port``               the port, if the host has none: the first value
    ``X-Forwarded-Prefix``             the prefix: all values joined, since nested proxies append
    ``X-Script-Name``                  the prefix, if ``X-Forwarded-Prefix`` is missing
    ``Forwarded`` (RFC 7239)           client, scheme and host, if none of the above is sent
    =================================  ==============================================================================
    """

    mount: str
    trusted: TrustedProxies
    is_page: Callable[[str], bool]
    xheaders: bool = False

    def locate(self, *, peer: str, scheme: str, host: str, path: str, headers: Headers) -> Location:
        """Return the location of one request.

        :param peer: the address of the connection's peer, or `UNIX`.
        :param scheme: the scheme of the connection, ``http`` or ``https``.
        :param host: the ``Host`` header.
        :param path: the path of the request target, still percent-encoded.
        :param headers: the request's headers.
        :raises ForwardedHeaderError: a trusted peer sent a malformed header.
        """
        return self._locate_cached(peer, scheme, host, path, Lines.of(headers))

    @cached_property
    def _locate_cached(self) -> Callable[[str, str, str, str, Lines], Location]:
        # A page loads a dozen files and polls its data; bounded, since clients choose the arguments
        return lru_cache(maxsize=256)(self._locate)

    def _locate(self, peer: str, scheme: str, host: str, path: str, headers: Lines) -> Location:
        client, prefix, host_forwarded = peer, None, False
        trusted = peer in self.trusted
        if trusted:
            forwarded = read_forwarded(headers, xheaders=self.xheaders)
            client = self._find_client(peer, forwarded.addresses)
            scheme = forwarded.scheme or scheme
            host_forwarded = bool(forwarded.host)
            host = _with_port(forwarded.host or host, forwarded.port)
            prefix = forwarded.prefix
        prefix, path, repeated = self._split(single_slash(path), prefix)
        return Location(
            peer=peer,
            trusted=trusted,
            client=client,
            scheme=scheme,
            host=without_default_port(host.lower(), scheme),
            host_forwarded=host_forwarded,
            prefix=prefix,
            path=path,
            repeated=repeated,
        )

    def _find_client(self, peer: str, addresses: list[str]) -> str:
        client = peer
        for text in reversed(addresses):
            address = parse_address(text)
            # Values further left come from the client, so a malformed one is not the proxy's error
            if address is None:
                break
            client = str(address)
            if client not in self.trusted:
                break
        return client

    def _split(self, path: str, forwarded: str | None) -> tuple[str | None, str, bool]:
        """Return the public prefix, the path below it, and whether the prefix was repeated.

        :param forwarded: the forwarded prefix.
        """
        stripped, rest, repeated = "", path, False
        for candidate in sorted([forwarded or "", self.mount], key=len, reverse=True):
            below = strip_prefix(path, candidate) if candidate else None
            if below is not None:
                # A proxy that forwards a prefix strips it, so a path that equals a page is that page
                if forwarded is None or not self.is_page(path):
                    stripped, rest, repeated = candidate, *self._strip_repeated(below, candidate)
                break
        prefix = self.mount or None
        if forwarded is not None:
            prefix = forwarded if ends_with(forwarded, stripped) else forwarded + stripped
        return prefix, rest, repeated

    def _strip_repeated(self, rest: str, prefix: str) -> tuple[str, bool]:
        # Proxies that rewrite pages (sub_filter) add the prefix to links that already have it
        repeated = False
        # A redirect of the browser handles further repetitions; without a bound the time is quadratic in the path
        for _ in range(_MAX_REPEATED):
            below = strip_prefix(rest, prefix)
            if below is None or self.is_page(rest):
                break
            rest, repeated = below, True
        return single_slash(rest), repeated or rest.startswith("//")


def _with_port(host: str, port: str) -> str:
    return f"{host}:{port}" if port and has_no_port(host) else host
