"""Parsing of forwarded headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from flower_proxy.proxy.paths import join_segments

HEADERS = (
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Script-Name",
    "Forwarded",
)
"""The forwarded headers that are read from a trusted peer."""

READ_HEADERS = (*HEADERS, "X-Real-Ip", "X-Scheme")
"""The same, with those that ``--xheaders`` adds."""

_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?P<port>:\d{1,5})?")
# Neither pattern backtracks over the same text, which would take quadratic time
_FORWARDED_PAIR = re.compile(r'(?P<name>[\w-]+)[ \t]*=[ \t]*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;,"]*))')
_FORWARDED_SEPARATOR = re.compile(r"[ \t]*(?P<sign>[;,]?)[ \t]*")


class Headers(Protocol):
    """The headers of a request; `tornado.httputil.HTTPHeaders` implements it."""

    def get_list(self, name: str, /) -> list[str]:
        """Return the values of all field lines of that name, in order."""


def combined_value(headers: Headers, name: str) -> str:
    """Return the combined field lines of a header (RFC 9110, section 5.3), in lower case.

    Multiple lines of a header that browsers send once never equal a value that browsers send.
    """
    return ", ".join(headers.get_list(name)).strip().lower()


class Lines(tuple[tuple[str, tuple[str, ...]], ...]):
    """The field lines that `read_forwarded` reads, by name; hashable, unlike the headers."""

    __slots__ = ()

    @classmethod
    def of(cls, headers: Headers) -> Lines:
        """Extract the field lines from a request's headers."""
        return cls((name, tuple(headers.get_list(name))) for name in READ_HEADERS)

    def get_list(self, name: str, /) -> list[str]:
        """Return the values of all field lines of that name, in order."""
        return list(dict(self)[name])


class ForwardedHeaderError(ValueError):
    """A malformed forwarded header from a trusted proxy; the response is 400.

    :ivar answer: the message for the client, which does not reflect the value.
    """

    def __init__(self, header: str, value: str, expected: str) -> None:
        super().__init__(f"{header}: {value[:100]!a} is not {expected}")
        self.answer = f"{header} is not {expected}"


@dataclass(frozen=True)
class Forwarded:
    """The values of the forwarded headers of a trusted peer.

    :ivar addresses: the addresses of the hops, the client's first; not validated, since clients can send any.
    :ivar scheme: ``http``, ``https``, or empty.
    :ivar host: the host with an optional port, or empty.
    :ivar port: the port, or empty.
    :ivar prefix: the prefix; None if none was forwarded, empty for the root.
    """

    addresses: list[str]
    scheme: str
    host: str
    port: str
    prefix: str | None


def read_forwarded(headers: Headers, *, xheaders: bool = False) -> Forwarded:
    """Parse the forwarded headers of a trusted peer; `flower_proxy.proxy.location.Locator` has a table of them.

    :param xheaders: read ``X-Real-Ip`` and ``X-Scheme`` if ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are missing.
    :raises ForwardedHeaderError: a header is malformed.
    """
    addresses = _values(headers, "X-Forwarded-For")
    proto_header, host_header = "X-Forwarded-Proto", "X-Forwarded-Host"
    scheme, host = _first(headers, proto_header), _first(headers, host_header)
    port = _first(headers, "X-Forwarded-Port")
    prefix = _read_prefix(headers, "X-Forwarded-Prefix")
    if prefix is None:
        prefix = _read_prefix(headers, "X-Script-Name")
    if xheaders:
        addresses = addresses or _values(headers, "X-Real-Ip")
        if not scheme:
            proto_header, scheme = "X-Scheme", _first(headers, "X-Scheme")
    # A proxy that sets any X- header passes on the client's own Forwarded, which may be spoofed
    if not (addresses or scheme or host or port or prefix is not None):
        elements = _parse_forwarded(headers)
        addresses = [element["for"] for element in elements if "for" in element]
        if elements:
            proto_header = host_header = "Forwarded"
            scheme, host = elements[0].get("proto", ""), elements[0].get("host", "")
    scheme = scheme.lower()
    if scheme not in ("", "http", "https"):
        raise ForwardedHeaderError(proto_header, scheme, "the scheme http or https")
    if host and not _is_host(host):
        raise ForwardedHeaderError(host_header, host, "a host name with an optional port")
    if port and not _is_port(port):
        raise ForwardedHeaderError("X-Forwarded-Port", port, "a port from 1 to 65535")
    return Forwarded(addresses, scheme, host, port, prefix)


def _values(headers: Headers, name: str) -> list[str]:
    lines = headers.get_list(name)
    return [value for line in lines for part in line.split(",") if (value := part.strip())] if lines else []


def _first(headers: Headers, name: str) -> str:
    return next(iter(_values(headers, name)), "")


def _read_prefix(headers: Headers, name: str) -> str | None:
    values = _values(headers, name)
    if not values:
        return None
    prefix = ""
    for value in values:
        try:
            if "//" in value:
                raise ValueError
            prefix += join_segments(segment for segment in value.split("/") if segment)
        except ValueError:
            raise ForwardedHeaderError(name, value, "a path such as /flower") from None
    return prefix


def _parse_forwarded(headers: Headers) -> list[dict[str, str]]:
    elements: list[dict[str, str]] = []
    for line in headers.get_list("Forwarded"):
        element: dict[str, str] = {}
        position = 0
        while position < len(line):
            pair = _FORWARDED_PAIR.match(line, position)
            if pair:
                value = pair["token"] if pair["quoted"] is None else re.sub(r"\\(.)", r"\1", pair["quoted"])
                element.setdefault(pair["name"].lower(), value)
                position = pair.end()
            separator = _FORWARDED_SEPARATOR.match(line, position)
            if separator is None or not (separator["sign"] or separator.end() == len(line)):
                raise ForwardedHeaderError("Forwarded", line, "pairs such as for=192.0.2.1;proto=https (RFC 7239)")
            if separator["sign"] == ",":
                elements.append(element)
                element = {}
            position = separator.end()
        elements.append(element)
    return [element for element in elements if element]


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and (match["port"] is None or _is_port(match["port"][1:]))


def has_no_port(host: str) -> bool:
    """Return whether the text is a host name or address without a port."""
    match = _HOST.fullmatch(host)
    return match is not None and match["port"] is None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
