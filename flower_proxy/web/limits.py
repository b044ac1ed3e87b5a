"""Limits on what a client may send before it is known who it is: header values, the request target, bodies."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from flower_proxy.proxy.headers import READ_HEADERS

MAX_HEADER_VALUE = 4 * 1024
"""Characters of a header that is parsed, all its lines together, and of the path and the query."""

MAX_COOKIE = 16 * 1024
"""Characters of the cookies: those of every application on the host arrive, and oauth2-proxy's alone are 8 KB."""

MAX_BODY = 64 * 1024
"""Bytes of a body. The largest that a page sends, the tasks table's query, has 4 KB."""

MAX_TASK_BODY = 1024 * 1024
"""Bytes of the body of ``/api/task/apply`` and its like, which holds a task's arguments."""

MAX_DISCARDED_BODY = 16 * 1024 * 1024
"""Bytes of a body that is too large, which are read and dropped so that the client gets to read the answer."""

# A header that is not here is not parsed, so a proxy may send tokens of any length in it; or it has a limit of its own,
# as Authorization has in `flower_proxy.auth.passwords`, and that of --auth_header in `flower_proxy.auth.authenticator`
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
    """Tell what is too long in the head of a request.

    :param target: the path and query, as they were sent.
    :returns: one line for the client; None if nothing is too long.
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
    """Tell whether a body is too large.

    :param length: the header ``Content-Length``, if there is one; what is no number Tornado refuses.
    :param maximum: bytes.
    :returns: one line for the client; None if it is not, or if its length is not known yet.
    """
    if length is None or not (length.isascii() and length.isdigit()) or int(length) <= maximum:
        return None
    return f"The body has {length} bytes; at most {maximum} are accepted here"
