"""Parsers for users in options and files.

No message contains a password, a hash, or a part of one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import yaml

from flower_proxy.auth.passwords import Bcrypt, CredentialsError, Plain, check_user

_YAML_KEY = "basic_auth_users"
_YAML_LINE = re.compile(rf"^{_YAML_KEY}[ \t]*:[ \t]*(?:[{{#].*)?$", re.MULTILINE)
_YAML_TEXT = "tag:yaml.org,2002:str"
_MAX_YAML_DEPTH = 20
_MAX_YAML_NODES = 32_768


def parse_entries(entries: Iterable[str]) -> dict[str, Plain]:
    """Parse the entries of ``--basic_auth``, each ``user:password``.

    Flower accepts each part of a password with a comma as credentials, and empty credentials if an entry is empty.

    :raises CredentialsError: an entry is malformed; the message contains its number, not its text.
    """
    users: dict[str, Plain] = {}
    for number, entry in enumerate(entries, 1):
        user, _, password = entry.partition(":")
        if not (user.strip() and password):
            raise CredentialsError(
                f"entry {number} is not user:password"
                " (a comma separates entries; put a password with a comma into --basic_auth_file)"
            )
        with _at(f"entry {number}"):
            if entry != entry.strip():
                raise CredentialsError("leading or trailing white space")
            _add(users, user, Plain.of(password))
    return users


def parse_password_file(text: str) -> dict[str, Plain]:
    """Parse ``--basic_auth_file``: one ``user:password`` per line.

    The password is the rest of the line behind the first colon, including commas, colons, spaces and ``#``. Empty lines
    are skipped.

    :raises CredentialsError: a line is malformed, or there is none; the message contains its number, not its text.
    """
    users: dict[str, Plain] = {}
    for number, line in _lines(_normalize(text)):
        with _at(f"line {number}"):
            user, _, password = line.partition(":")
            if not (user and password):
                raise CredentialsError("not user:password")
            _add(users, user, Plain.of(password))
    if not users:
        raise CredentialsError("contains no users")
    return users


def parse_auth_file(text: str) -> dict[str, Bcrypt]:
    """Parse ``--auth_file``, which has a bcrypt hash for each user, in one of two formats.

    - htpasswd: one ``user:hash`` per line, with an optional ``:comment`` as in nginx; lines starting with ``#`` are
      comments.
    - the ``web.yml`` of Prometheus and its exporters: the mapping ``basic_auth_users``; other keys are ignored.

    :raises CredentialsError: a hash is not bcrypt, or there are no users; the message contains the line number and the
        command to generate the line.
    """
    users: dict[str, Bcrypt] = {}
    text = _normalize(text)
    for number, user, hashed in _read_yaml(text) if _YAML_LINE.search(text) else _read_htpasswd(text):
        with _at(f"line {number}"):
            _add(users, user, Bcrypt.parse(hashed))
    if not users:
        raise CredentialsError("contains no users")
    return users


def set_user(text: str, user: str, hashed: str) -> tuple[str, bool]:
    """Add a user to the text of an htpasswd file, or replace the user's hash; other lines stay unchanged.

    :returns: the new text, and whether it already contained the user.
    :raises CredentialsError: the format is another one; the message is a predicate without a subject.
    """
    if _YAML_LINE.search(_normalize(text)):
        raise CredentialsError(f"is a web.yml: add the line below {_YAML_KEY}, as USER: HASH")
    try:
        for number, _, found in _read_htpasswd(_normalize(text)):
            if not found.isprintable() or " " in found:
                raise CredentialsError(f"line {number}: not user:hash")
    except CredentialsError as error:
        raise CredentialsError(f"is not an htpasswd file ({error})") from None
    line, lines = f"{user}:{hashed}", text.removesuffix("\n").split("\n") if text else []
    places = [index for index, kept in enumerate(lines) if kept.lstrip(" \t\ufeff").partition(":")[0] == user]
    if not places:
        return "\n".join([*lines, line, ""]), False
    lines[places[0]] = line
    return "\n".join([*(kept for index, kept in enumerate(lines) if index not in places[1:]), ""]), True


def _read_htpasswd(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in _lines(text):
        line = line.strip(" \t")
        if line.startswith("#"):
            continue
        user, _, rest = line.partition(":")
        hashed = rest.partition(":")[0]
        if not (user and hashed):
            raise CredentialsError(f"line {number}: not user:hash")
        yield number, user, hashed


def _read_yaml(text: str) -> Iterator[tuple[int, str, str]]:
    try:
        # Composed instead of loaded: a dict has neither line numbers nor duplicate users
        root = yaml.compose(text, Loader=_BoundedLoader)
    except CredentialsError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML's message may contain a part of a password
        raise CredentialsError(f"line {_line_of(error, text)}: not YAML") from None
    keys = root.value if isinstance(root, yaml.MappingNode) else []
    for key, section in keys:
        if key.value != _YAML_KEY:
            continue
        number = section.start_mark.line + 1
        if not isinstance(section, yaml.MappingNode):
            raise CredentialsError(f"line {number}: {_YAML_KEY} is not a mapping of users to hashes")
        for user, hashed in section.value:
            number = user.start_mark.line + 1
            if not (_is_text(user) and _is_text(hashed)):
                raise CredentialsError(f"line {number}: user and hash must be strings: quote them")
            yield number, user.value, hashed.value


class _BoundedLoader(yaml.SafeLoader):
    """A YAML loader that limits the depth and the number of nodes.

    PyYAML composes recursively, and a file of tiny nodes takes 30 times as long as one of hashes.
    """

    _depth = 0
    _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self._nodes += 1
        if self._nodes > _MAX_YAML_NODES:
            raise CredentialsError(f"line {line}: more than {_MAX_YAML_NODES} YAML nodes")
        self._depth += 1
        if self._depth > _MAX_YAML_DEPTH:
            raise CredentialsError(f"line {line}: YAML nested more than {_MAX_YAML_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _is_text(node: yaml.Node) -> bool:
    # A sequence or mapping may carry the string tag
    return isinstance(node, yaml.ScalarNode) and node.tag == _YAML_TEXT


def _line_of(error: Exception, text: str) -> int:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return error.problem_mark.line + 1
    # The error for characters that YAML forbids has no mark
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


_AnySecret = TypeVar("_AnySecret", Plain, Bcrypt)


def _add(users: dict[str, _AnySecret], user: str, secret: _AnySecret) -> None:
    check_user(user)
    if user in users:
        raise CredentialsError(f"duplicate user {user!r}")
    users[user] = secret


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except CredentialsError as error:
        raise CredentialsError(f"{where}: {error}") from None


def _normalize(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # splitlines() also splits at characters that passwords may contain
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
