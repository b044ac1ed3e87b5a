"""What an option's value has to be, beyond its type; each check raises ValueError with the reason, in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from celery.utils.imports import symbol_by_name
from tornado.web import RequestHandler

from flower_proxy._flower import TASK_COLUMNS, validate_auth_option
from flower_proxy.auth.user_files import parse_entries
from flower_proxy.proxy.headers import HEADERS
from flower_proxy.proxy.paths import parse_mount

# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NOT_USER_HEADERS = {name.title() for name in (*HEADERS, "Authorization", "Cookie", "Host", "Origin", "Referer")}


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


def auth(value: str) -> None:
    if not value or not validate_auth_option(value):
        raise ValueError(f"{value!r} is not an address, several with |, or a pattern with one * before the @")


def provider(value: str) -> None:
    try:
        provider = symbol_by_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{value!r} cannot be imported: {error}") from None
    if not (isinstance(provider, type) and issubclass(provider, RequestHandler)):
        raise ValueError(f"{value!r} is not a class of request handlers")


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
