"""Validators of option values; each raises ValueError with a one-line reason.

`tests/unit/test_contract.py` compares the reimplemented rules of Flower with the originals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from flower_proxy.auth.user_files import parse_entries
from flower_proxy.proxy.headers import HEADERS
from flower_proxy.proxy.paths import parse_mount

TASK_COLUMNS = (
    *("name", "uuid", "state", "args", "kwargs", "result", "received", "started", "runtime", "worker"),
    *("exchange", "routing_key", "retries", "revoked", "exception", "expires", "eta"),
)
"""The columns of Flower's tasks page, as named in ``--tasks_columns``."""

_TRUE, _FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NOT_USER_HEADERS = {name.title() for name in (*HEADERS, "Authorization", "Cookie", "Host", "Origin", "Referer")}
_FRAME_WORDS = {"self": "'self'", "'self'": "'self'", "none": "'none'", "'none'": "'none'"}
# CSP Level 3, host-source, without the paths and the wildcard port
_FRAME_ORIGIN = re.compile(r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:(?P<port>[0-9]{1,5}))?")


def parse_bool(text: str) -> bool:
    """Parse true or false in the spellings that Flower accepts: 1, yes, on, ...

    :raises ValueError: the text is none of them.
    """
    word = text.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is not true or false")
    return word in _TRUE


def mount(value: str) -> None:
    """Check the path of ``--url_prefix``."""
    try:
        parse_mount(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not {error}") from None


def folder(value: str) -> None:
    """Check that a folder exists; an empty value means none."""
    if value and not Path(value).expanduser().is_dir():
        raise ValueError(f"{value!r} is not a folder")


def file(value: str) -> None:
    """Check that a file is readable; an empty value means none."""
    if value and not os.access(os.path.expanduser(value), os.R_OK):
        raise ValueError(f"{value!r} is not a readable file")


def credentials(entries: Iterable[str]) -> None:
    """Check the ``user:password`` entries of ``--basic_auth``."""
    if not parse_entries(entries):
        raise ValueError("the list is empty; add user:password, or leave it out")


def given_file(value: str) -> None:
    """Check that a file is readable, where an empty value is an error."""
    if not value:
        raise ValueError("the path is empty; name a file, or leave it out")
    file(value)


def each(parse: Callable[[str], object]) -> Callable[[Iterable[str]], None]:
    """Return a check that applies `parse` to each value of a list."""

    def check(values: Iterable[str]) -> None:
        for value in values:
            parse(value)

    return check


def user_header(value: str) -> None:
    """Check the header name of ``--auth_header``; it must not have another meaning."""
    if value and (not _TOKEN.fullmatch(value) or value.title() in _NOT_USER_HEADERS):
        raise ValueError(f"{value!r} is not a header for the user's name, such as X-Forwarded-User")


def cookie_secret(value: str) -> None:
    """Check that ``--cookie_secret`` is not empty."""
    if not value:
        raise ValueError("the secret is empty; set it, or leave it out to generate one")


def parse_mode(text: str) -> int:
    """Parse a file mode in octal digits, as for chmod.

    :raises ValueError: the text is not a mode.
    """
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is not an octal file mode, such as 0660")
    return int(text, 8)


def parse_size(text: str) -> int:
    """Parse a size with its unit, such as 64MB.

    :returns: bytes.
    :raises ValueError: the text is not a size.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8}) ?([KMG]B)", text.upper())
    if not match:
        raise ValueError(f"{text!r} is not a size, such as 64MB or 512KB")
    return int(match[1]) * _UNITS[match[2]]


def is_auth_pattern(text: str) -> bool:
    """Tell whether ``--auth`` accepts a text: an address, several with ``|``, or one ``*`` before the ``@``."""
    local, _, _ = text.rpartition("@")
    return bool(text) and ("*" not in text or (text.count("*") == 1 and "*" in local and "|" not in text))


def auth(value: str) -> None:
    """Check the e-mail pattern of ``--auth``."""
    if not is_auth_pattern(value):
        raise ValueError(
            f"{value!r} is not an e-mail address, several separated by |, or a pattern with one * before the @"
        )


def load_provider(name: str) -> None:
    """Import the class of ``--auth_provider``; the Celery application, loaded before, may extend ``sys.path``.

    :raises ValueError: it is not an importable request handler class.
    """
    # Only OAuth needs these imports
    from celery.utils.imports import symbol_by_name
    from tornado.web import RequestHandler

    try:
        provider = symbol_by_name(name)
    except Exception as error:
        raise ValueError(f"--auth_provider: {name!r} cannot be imported: {error}") from None
    if not (isinstance(provider, type) and issubclass(provider, RequestHandler)):
        raise ValueError(f"--auth_provider: {name!r} is not a RequestHandler class")


def broker_api(value: str) -> None:
    """Check the URL of ``--broker_api``."""
    url = urlsplit(value)
    if url.scheme not in ("http", "https"):
        raise ValueError(f"the URL has the scheme {url.scheme!r}; use http:// or https://")
    if not url.netloc:
        raise ValueError("the URL has no host; write http://user:password@host:15672/api/")
    # An unescaped / ? or # ends the authority, which leaves the @ behind it
    if "@" in value.partition(url.netloc)[2]:
        raise ValueError("the user or password contains / ? or #; write %2F %3F %23")


def unless_empty(check: Callable[[str], None]) -> Callable[[str], None]:
    """Return a check that also accepts an empty text."""

    def check_given(value: str) -> None:
        if value:
            check(value)

    return check_given


def columns(value: str) -> None:
    """Check the column names of ``--tasks_columns``."""
    for column in value.split(","):
        if column.strip() not in TASK_COLUMNS:
            raise ValueError(f"{column.strip()!r} is not one of {', '.join(TASK_COLUMNS)}")


def between(least: float, most: float = float("inf")) -> Callable[[float], None]:
    """Return a check for a range that includes both limits."""

    def check(value: float) -> None:
        if not least <= value <= most:
            raise ValueError(
                f"{value} is not " + (f"{least} or more" if most == float("inf") else f"between {least} and {most}")
            )

    return check


def one_of(*choices: str) -> Callable[[str], None]:
    """Return a check for a choice, in any case."""

    def check(value: str) -> None:
        if value.lower() not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")

    return check


def database(value: str) -> None:
    """Check that the folder of ``--db`` is writable."""
    folder = Path(value).expanduser().absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{value!r} is not writable: {str(folder)!r} is not a writable folder")


def buckets(bounds: Sequence[float]) -> None:
    """Check that the bounds of histogram buckets increase."""
    if not all(low < high for low, high in pairwise([float("-inf"), *bounds])):
        raise ValueError(f"{','.join(map(str, bounds))} are not increasing bounds")


def parse_frame_ancestors(texts: Iterable[str]) -> tuple[str, ...]:
    """Convert ``--frame_ancestors`` to source expressions of the Content-Security-Policy.

    :raises ValueError: a value is invalid; the message is one line.
    """
    ancestors = tuple(parse_frame_ancestor(text) for text in texts)
    if not ancestors:
        raise ValueError("the list is empty; add an origin, or none")
    if "'none'" in ancestors and len(ancestors) > 1:
        raise ValueError("none cannot be combined with other values; leave one of them out")
    return ancestors


def parse_frame_ancestor(text: str) -> str:
    """Convert one value of ``--frame_ancestors`` to a source expression of the Content-Security-Policy.

    Browsers ignore invalid expressions without an error.

    :param text: ``self`` or ``none``, with or without single quotes, or an origin: ``https://portal.example``,
        ``https://portal.example:8443``, ``https://*.example.com``.
    :raises ValueError: the text is none of these.
    """
    ancestor = text.lower()
    if ancestor in _FRAME_WORDS:
        return _FRAME_WORDS[ancestor]
    match = _FRAME_ORIGIN.fullmatch(ancestor)
    if match is None or not 0 < int(match["port"] or 443) <= 65535:
        raise ValueError(f"{text!r} is not self, none, or an origin such as https://portal.example, without a path")
    return ancestor
