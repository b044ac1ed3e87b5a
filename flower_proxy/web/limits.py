"""Size limits on header values, the request target and bodies, enforced before authentication."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from flower_proxy.proxy.headers import READ_HEADERS

MAX_HEADER_VALUE = 4 * 1024
"""Maximum characters of a parsed header, with all its lines joined; also of the path and of the query."""

MAX_COOKIE = 16 * 1024
"""Maximum characters of all cookies: the host's other applications send theirs too, oauth2-proxy up to 8 KB."""

MAX_BODY = 64 * 1024
"""Maximum bytes of a body; the largest one sent by a page, the query of the tasks table, has 4 KB."""

MAX_TASK_BODY = 1024 * 1024
"""Maximum bytes of a body with a task's arguments, as for ``/api/task/apply``."""

MAX_DISCARDED_BODY = 16 * 1024 * 1024
"""Maximum bytes of an oversized body that are read and discarded, so that the client receives the response."""

# Headers that are not parsed have no limit, as proxies send long tokens in them. `flower_proxy.auth.passwords` limits
# Authorization, and `flower_proxy.auth.authenticator` the header of --auth_header
_MAX_VALUES = {
    "Cookie": MAX_COOKIE,
    **dict.fromkeys(
        (
            *READ_HEADERS,
            "Accept",
            "Accept-Encoding",
            "Access-Control-Request-Method",
            "Connection",
            "Content-Length",
            "Content-Type",
            "Host",
            "If-Modified-Since",
            "If-None-Match",
            "Origin",
            "Range",
            "Referer",
            "Sec-Fetch-Mode",
            "Sec-Fetch-Site",
            "Transfer-Encoding",
            "X-XSRFToken",
        ),
        MAX_HEADER_VALUE,
    ),
}


def oversized_head(target: str, headers: HTTPHeaders) -> str | None:
    """Check the request target and the headers against the limits.

    :param target: the path and query as sent.
    :returns: an error message of one line; None if all limits are kept.
    """
    for part, text in zip(("path", "query"), target.split("?", 1), strict=False):
        if len(text) > MAX_HEADER_VALUE:
            return f"The {part} has {len(text)} characters; at most {MAX_HEADER_VALUE} are accepted"
    for name in headers:
        maximum = _MAX_VALUES.get(name)
        if maximum is not None and (length := len(headers[name])) > maximum:
            return f"{name} has {length} characters; at most {maximum} are accepted"
    return None


def oversized_body(length: str | None, maximum: int) -> str | None:
    """Check the length of a body against a limit.

    :param length: the value of ``Content-Length``, if present; Tornado refuses invalid values.
    :param maximum: bytes.
    :returns: an error message of one line; None if the length is within the limit or unknown.
    """
    if length is None or not (length.isascii() and length.isdigit()) or int(length) <= maximum:
        return None
    return f"The body has {length} bytes; at most {maximum} are accepted here"
