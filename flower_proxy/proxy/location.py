"""Where are we? The public location of a request: client, scheme, host, prefix.

Everything here is decided from the peer's address, the headers, the path and two options, by plain functions, so that
a table of cases can test it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from flower_proxy.proxy.addresses import TrustedProxies, parse_address, without_default_port
from flower_proxy.proxy.headers import Headers, Lines, has_no_port, read_forwarded
from flower_proxy.proxy.paths import ends_with, single_slash, strip_prefix

_MAX_REPEATED = 8


class PublicURL(str):
    """A URL that carries the public prefix already, so that it cannot get it a second time."""

    __slots__ = ()

    def __add__(self, other: str) -> PublicURL:
        return PublicURL(str(self) + other)


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a request was sent to, as the browser sees it.

    :ivar peer: the address at the other end of the connection, or `UNIX`.
    :ivar trusted: whether that peer's word counts.
    :ivar client: the client's IP address, `UNIX` if it is a program on the other end of the unix socket.
    :ivar scheme: ``http`` or ``https``.
    :ivar host: host and port, in lower case, without the scheme's default port.
    :ivar told_host: whether a trusted peer said so.
    :ivar prefix: the public prefix, as `parse_mount` returns it; None where nobody told, so that links are relative.
    :ivar path: the path below the prefix; ``""`` if the address is the prefix itself and lacks its final slash.
    :ivar repeated: whether the prefix, or the slash behind it, stood there more than once.
    """

    peer: str
    trusted: bool
    client: str
    scheme: str
    host: str
    told_host: bool
    prefix: str | None
    path: str
    repeated: bool = False

    @property
    def origin(self) -> str:
        """The origin of the page (RFC 6454), such as ``https://example.com:8443``."""
        return f"{self.scheme}://{self.host}"

    @property
    def base(self) -> str:
        """What goes in front of a path of Flower's to make a link: the prefix, or ``.``, ``..``, ``../..``."""
        if self.prefix is not None:
            return self.prefix
        return "/".join([".."] * (self.path.count("/") - 1)) or "."

    def url(self, path: str) -> PublicURL:
        """Turn a path of Flower's into a link. The only place that adds a prefix.

        :param path: a path that begins with a slash; a `PublicURL` comes back as it is.
        """
        return path if isinstance(path, PublicURL) else PublicURL(self.base + path)


@dataclass(frozen=True, kw_only=True)
class Locator:
    """Finds the public location of requests.

    :ivar mount: the prefix of ``--url_prefix``, as `parse_mount` returns it.
    :ivar trusted: the peers whose forwarded headers count.
    :ivar is_page: tells whether a path, without prefix, is one of Flower's own pages.
    :ivar xheaders: read ``X-Real-Ip`` and ``X-Scheme`` too, where their ``X-Forwarded-`` twin is missing.

    =================================  ==============================================================================
    header                             what it sets
    =================================  ==============================================================================
    ``X-Forwarded-For``                the client: from the right, the first address that is not trusted
    ``X-Forwarded-Proto``              the scheme: the first value
    ``X-Forwarded-Host``               the host: the first value
    ``X-Forwarded-Port``               the port, where the host has none: the first value
    ``X-Forwarded-Prefix``             the prefix: all values joined, since proxies in a row append
    ``X-Script-Name``                  the same, where ``X-Forwarded-Prefix`` is missing
    ``Forwarded`` (RFC 7239)           client, scheme and host, where none of the above is sent
    =================================  ==============================================================================
    """

    mount: str
    trusted: TrustedProxies
    is_page: Callable[[str], bool]
    xheaders: bool = False

    def locate(self, *, peer: str, scheme: str, host: str, path: str, headers: Headers) -> Location:
        """Decide the location of one request.

        :param peer: the address at the other end of the connection, or `UNIX`.
        :param scheme: the connection's, ``http`` or ``https``.
        :param host: the ``Host`` header.
        :param path: the path as it stood in the request, without the query.
        :param headers: the request's headers.
        :raises ForwardedHeaderError: a trusted peer sent a malformed one.
        """
        return self._kept(peer, scheme, host, path, Lines.of(headers))

    @cached_property
    def _kept(self) -> Callable[[str, str, str, str, Lines], Location]:
        # A page asks for more than a dozen files, and then again and again for its data. Bounded, as clients choose it
        return lru_cache(maxsize=256)(self._locate)

    def _locate(self, peer: str, scheme: str, host: str, path: str, headers: Lines) -> Location:
        client, prefix, told_host = peer, None, False
        trusted = peer in self.trusted
        if trusted:
            told = read_forwarded(headers, xheaders=self.xheaders)
            client = self._walk(peer, told.addresses)
            scheme = told.scheme or scheme
            told_host = bool(told.host)
            host = _with_port(told.host or host, told.port)
            prefix = told.prefix
        prefix, path, repeated = self._place(single_slash(path), prefix)
        return Location(
            peer=peer,
            trusted=trusted,
            client=client,
            scheme=scheme,
            host=without_default_port(host.lower(), scheme),
            told_host=told_host,
            prefix=prefix,
            path=path,
            repeated=repeated,
        )

    def _walk(self, peer: str, addresses: list[str]) -> str:
        client = peer
        for text in reversed(addresses):
            address = parse_address(text)
            # What stands further left was written by the client: garbage there is no reason to refuse it
            if address is None:
                break
            client = str(address)
            if client not in self.trusted:
                break
        return client

    def _place(self, path: str, told: str | None) -> tuple[str | None, str, bool]:
        """Return the public prefix, the path below it, and whether the prefix was repeated.

        :param told: the forwarded prefix.
        """
        taken, rest, repeated = "", path, False
        for candidate in sorted([told or "", self.mount], key=len, reverse=True):
            below = strip_prefix(path, candidate) if candidate else None
            if below is not None:
                # A proxy that sends the header strips: what looks like a page of Flower's then is one
                if told is None or not self.is_page(path):
                    taken, rest, repeated = candidate, *self._strip_repeated(below, candidate)
                break
        prefix = self.mount or None
        if told is not None:
            prefix = told if ends_with(told, taken) else told + taken
        return prefix, rest, repeated

    def _strip_repeated(self, rest: str, prefix: str) -> tuple[str, bool]:
        # Rewriting proxies (sub_filter) put the prefix in front of links that have it already
        repeated = False
        # A browser that is redirected takes off the rest; without a bound the time would be quadratic in the path
        for _ in range(_MAX_REPEATED):
            below = strip_prefix(rest, prefix)
            if below is None or self.is_page(rest):
                break
            rest, repeated = below, True
        return single_slash(rest), repeated or rest.startswith("//")


def _with_port(host: str, port: str) -> str:
    return f"{host}:{port}" if port and has_no_port(host) else host
