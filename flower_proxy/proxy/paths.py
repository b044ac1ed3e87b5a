"""Prefixes and paths, as plain functions on text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~@+=-]|%[0-9A-Fa-f]{2})+")
# Characters; it travels in a cookie, in headers for which nginx has 4 kilobytes
_LONGEST_NEXT = 1000
_NOT_IN_A_SEGMENT = re.compile(rb"[\x00-\x1f\x7f/\\]")


def parse_mount(text: str) -> str:
    """Bring ``--url_prefix`` into its one form.

    :param text: the prefix as people write it: ``flower``, ``/flower/``, ``/a//b/``, ``/`` or nothing for none.
    :returns: ``""`` or ``/`` and segments without a final slash, percent-encoded as it stands in a request.
    :raises ValueError: it is not a path; the message says what was expected.
    """
    encoded = re.sub(r"[^!-~]+", lambda match: quote(match[0]), text.strip())
    return join_segments(segment for segment in encoded.split("/") if segment)


def join_segments(segments: Iterable[str]) -> str:
    """Make a prefix of percent-encoded segments.

    :raises ValueError: one is no segment of a path, or would step out of it; the message says what was expected.
    """
    prefix = ""
    for segment in segments:
        decoded = unquote_to_bytes(segment)
        if not _SEGMENT.fullmatch(segment) or decoded in (b".", b"..") or _NOT_IN_A_SEGMENT.search(decoded):
            raise ValueError("a path such as /flower")
        prefix += "/" + segment
    return prefix


def strip_prefix(path: str, prefix: str) -> str | None:
    """Take a prefix off a path where it ends on a segment boundary.

    :param path: a path as it stood in the request; segments are compared decoded.
    :param prefix: what `parse_mount` returns.
    :returns: the rest, ``""`` or beginning with a slash; None where the path is not below the prefix.
    """
    if path.startswith(prefix):
        rest = path[len(prefix) :]
        if not rest or rest[0] == "/":
            return rest
    if "%" not in path and "%" not in prefix:
        return None
    ours = prefix.split("/")
    theirs = path.split("/", len(ours))
    if list(map(unquote_to_bytes, ours)) != list(map(unquote_to_bytes, theirs[: len(ours)])):
        return None
    return "".join("/" + rest for rest in theirs[len(ours) :])


def ends_with(prefix: str, end: str) -> bool:
    """Tell whether a prefix ends with another; segments are compared decoded."""
    ours, theirs = prefix.split("/"), end.split("/")[1:]
    return not theirs or list(map(unquote_to_bytes, ours[-len(theirs) :])) == list(map(unquote_to_bytes, theirs))


def parse_next(text: str) -> str | None:
    """Accept where to go after the login only if it is a path of this site.

    :param text: a path and query without prefix, decoded, as a client sent it.
    :returns: the same, or None if a browser could read it as another site: ``//host``, ``/\\host``, a scheme, or
        characters that a browser drops (tab, CR, LF); or if it could leave the prefix, or is too long for a cookie.
    """
    path, _, _ = text.partition("?")
    if not path.startswith("/") or re.search(r"[\x00-\x20\x7f\\]", text) or len(text) > _LONGEST_NEXT:
        return None
    if "//" in path or any(unquote_to_bytes(segment) in (b".", b"..") for segment in path.split("/")):
        return None
    return text


def single_slash(path: str) -> str:
    """Leave one slash at the beginning of a path."""
    # `location /flower { proxy_pass http://flower/; }` turns /flower/tasks into //tasks
    return "/" + path.lstrip("/") if path.startswith("//") else path
