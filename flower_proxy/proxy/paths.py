"""Parsing and comparison of URL prefixes and paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~@+=-]|%[0-9A-Fa-f]{2})+")
# Characters; it is sent in a cookie, and nginx limits headers to 4 KB
_MAX_NEXT_LENGTH = 1000
_NOT_IN_A_SEGMENT = re.compile(rb"[\x00-\x1f\x7f/\\]")


def parse_mount(text: str) -> str:
    """Normalize ``--url_prefix``.

    :param text: a prefix such as ``flower``, ``/flower/`` or ``/a//b/``; ``/`` or empty for none.
    :returns: ``""``, or a percent-encoded path with a leading and without a trailing slash.
    :raises ValueError: the text is not a path; the message states what was expected.
    """
    encoded = re.sub(r"[^!-~]+", lambda match: quote(match[0]), text.strip())
    return join_segments(segment for segment in encoded.split("/") if segment)


def join_segments(segments: Iterable[str]) -> str:
    """Join percent-encoded segments to a prefix.

    :raises ValueError: a segment is invalid or a dot segment; the message states what was expected.
    """
    prefix = ""
    for segment in segments:
        decoded = unquote_to_bytes(segment)
        if not _SEGMENT.fullmatch(segment) or decoded in (b".", b"..") or _NOT_IN_A_SEGMENT.search(decoded):
            raise ValueError("a path such as /flower")
        prefix += "/" + segment
    return prefix


def strip_prefix(path: str, prefix: str) -> str | None:
    """Strip a prefix from a path, at a segment boundary.

    :param path: a percent-encoded path; segments are compared decoded.
    :param prefix: a prefix, as `parse_mount` returns it.
    :returns: the rest, empty or with a leading slash; None if the path is not below the prefix.
    """
    if path.startswith(prefix):
        rest = path[len(prefix) :]
        if not rest or rest[0] == "/":
            return rest
    if "%" not in path and "%" not in prefix:
        return None
    expected = prefix.split("/")
    segments = path.split("/", len(expected))
    if list(map(unquote_to_bytes, expected)) != list(map(unquote_to_bytes, segments[: len(expected)])):
        return None
    return "".join("/" + rest for rest in segments[len(expected) :])


def ends_with(prefix: str, end: str) -> bool:
    """Return whether a prefix ends with another; segments are compared decoded."""
    segments, last = prefix.split("/"), end.split("/")[1:]
    return not last or list(map(unquote_to_bytes, segments[-len(last) :])) == list(map(unquote_to_bytes, last))


def parse_next(text: str) -> str | None:
    r"""Validate the target of the redirect after the login.

    :param text: path and query without prefix, decoded, as sent by the client.
    :returns: the same; None if a browser could resolve it to another site (``//host``, ``/\host``, a scheme, or
        characters that browsers drop: tab, CR, LF), if it could leave the prefix, or if it is too long for a cookie.
    """
    path, _, _ = text.partition("?")
    if not path.startswith("/") or re.search(r"[\x00-\x20\x7f\\]", text) or len(text) > _MAX_NEXT_LENGTH:
        return None
    if "//" in path or any(unquote_to_bytes(segment) in (b".", b"..") for segment in path.split("/")):
        return None
    return text


def single_slash(path: str) -> str:
    """Reduce leading slashes of a path to one."""
    # nginx's `location /flower { proxy_pass http://flower/; }` turns /flower/tasks into //tasks
    return "/" + path.lstrip("/") if path.startswith("//") else path
