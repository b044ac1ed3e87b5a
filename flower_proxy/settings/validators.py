"""Checks of the values of options, beyond their type; each raises ValueError with the reason, in one line.

Flower's rules that are written anew here are held equal to Flower's by `tests/unit/test_contract.py`.
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
"""The columns of Flower's tasks page, by the names that ``--tasks_columns`` uses."""

_TRUE, _FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")
# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NOT_USER_HEADERS = {name.title() for name in (*HEADERS, "Authorization", "Cookie", "Host", "Origin", "Referer")}
_FRAME_WORDS = {"self": "'self'", "'self'": "'self'", "none": "'none'", "'none'": "'none'"}
# CSP Level 3, host-source, without the paths and the wildcard port
_FRAME_ORIGIN = re.compile(r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:(?P<port>[0-9]{1,5}))?")


def parse_bool(text: str) -> bool:
    """Read true or false in any of the spellings that Flower knows: 1, yes, on, ...

    :raises ValueError: it is neither.
    """
    word = text.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is not true or false")
    return word in _TRUE


def mount(value: str) -> None:
    try:
        parse_mount(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not {error}") from None


def folder(value: str) -> None:
    if value and not Path(value).expanduser().is_dir():
        raise ValueError(f"{value!r} is not a folder")


def file(value: str) -> None:
    if value and not os.access(os.path.expanduser(value), os.R_OK):
        raise ValueError(f"{value!r} is not a file that can be read")


def credentials(entries: Iterable[str]) -> None:
    if not parse_entries(entries):
        raise ValueError("it is empty: leave it out, or name a user")


def given_file(value: str) -> None:
    if not value:
        raise ValueError("it is empty: leave it out, or name a file")
    file(value)


def each(parse: Callable[[str], object]) -> Callable[[Iterable[str]], None]:
    def check(values: Iterable[str]) -> None:
        for value in values:
            parse(value)

    return check


def user_header(value: str) -> None:
    if value and (not _TOKEN.fullmatch(value) or value.title() in _NOT_USER_HEADERS):
        raise ValueError(f"{value!r} is not a header in which a proxy names the user, such as X-Forwarded-User")


def cookie_secret(value: str) -> None:
    if not value:
        raise ValueError("it is empty: leave it out, or set it")


def parse_mode(text: str) -> int:
    """Read a file's mode, written in octal digits as for chmod.

    :raises ValueError: it is none.
    """
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is not a mode such as 0660")
    return int(text, 8)


def is_auth_pattern(text: str) -> bool:
    """Tell whether a text is what ``--auth`` takes: an address, several with ``|``, or one ``*`` before the ``@``."""
    local, _, _ = text.rpartition("@")
    return bool(text) and ("*" not in text or (text.count("*") == 1 and "*" in local and "|" not in text))


def auth(value: str) -> None:
    if not is_auth_pattern(value):
        raise ValueError(f"{value!r} is not an address, several with |, or a pattern with one * before the @")


def load_provider(name: str) -> None:
    """Import the class that ``--auth_provider`` names, once the Celery application is loaded: it may extend sys.path.

    :raises ValueError: there is no such class of request handlers.
    """
    # Only a start with OAuth needs them
    from celery.utils.imports import symbol_by_name
    from tornado.web import RequestHandler

    try:
        provider = symbol_by_name(name)
    except Exception as error:
        raise ValueError(f"--auth_provider: {name!r} cannot be imported: {error}") from None
    if not (isinstance(provider, type) and issubclass(provider, RequestHandler)):
        raise ValueError(f"--auth_provider: {name!r} is not a class of request handlers")


def broker_api(value: str) -> None:
    url = urlsplit(value)
    if url.scheme not in ("http", "https"):
        raise ValueError(f"invalid scheme {url.scheme!r}; the URL begins with http:// or https://")
    if not url.netloc:
        raise ValueError("the URL names no host")
    # What stands behind the first of them is no longer the user and the password; this includes their port
    if "@" in value.partition(url.netloc)[2]:
        raise ValueError("/ ? # in the user or password must be written %2F %3F %23")


def unless_empty(check: Callable[[str], None]) -> Callable[[str], None]:
    """Return a check that accepts the empty text too."""

    def check_given(value: str) -> None:
        if value:
            check(value)

    return check_given


def columns(value: str) -> None:
    for column in value.split(","):
        if column.strip() not in TASK_COLUMNS:
            raise ValueError(f"{column.strip()!r} is not one of {', '.join(TASK_COLUMNS)}")


def between(least: float, most: float = float("inf")) -> Callable[[float], None]:
    def check(value: float) -> None:
        if not least <= value <= most:
            raise ValueError(
                f"{value} is not " + (f"{least} or more" if most == float("inf") else f"{least} to {most}")
            )

    return check


def one_of(*choices: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if value.lower() not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")

    return check


def database(value: str) -> None:
    folder = Path(value).expanduser().absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{value!r} cannot be written: {str(folder)!r} is not a folder that can be written to")


def buckets(bounds: Sequence[float]) -> None:
    if not all(low < high for low, high in pairwise([float("-inf"), *bounds])):
        raise ValueError(f"{','.join(map(str, bounds))} are not bounds that rise")


def parse_frame_ancestors(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring ``--frame_ancestors`` into the spelling of the policy.

    :raises ValueError: with the reason in one line.
    """
    ancestors = tuple(parse_frame_ancestor(text) for text in texts)
    if not ancestors:
        raise ValueError("it is empty: name at least one, or none")
    if "'none'" in ancestors and len(ancestors) > 1:
        raise ValueError("none allows nobody: it stands alone")
    return ancestors


def parse_frame_ancestor(text: str) -> str:
    """Bring one of ``--frame_ancestors`` into the spelling of the policy.

    :param text: ``self`` or ``none``, with or without the policy's quotes, or an origin: ``https://portal.example``,
        ``https://portal.example:8443``, ``https://*.example.com``.
    :raises ValueError: it is none of these; what browsers cannot read would be ignored in silence.
    """
    ancestor = text.lower()
    if ancestor in _FRAME_WORDS:
        return _FRAME_WORDS[ancestor]
    match = _FRAME_ORIGIN.fullmatch(ancestor)
    if match is None or not 0 < int(match["port"] or 443) <= 65535:
        raise ValueError(f"{text!r} is not self, none, or an origin such as https://portal.example, without a path")
    return ancestor
