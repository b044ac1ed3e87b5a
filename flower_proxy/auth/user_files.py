"""The users of the options and of files, as texts: each entry and each line is checked.

No message shows a password, a hash, or a text that may be half of one.
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
    """Read the entries of ``--basic_auth``, each ``user:password``.

    Flower lets anybody in with one half of an entry that a comma has split, or with none where one is empty (P11).

    :raises CredentialsError: one is something else; the message has its number, not its text.
    """
    users: dict[str, Plain] = {}
    for number, entry in enumerate(entries, 1):
        user, _, password = entry.partition(":")
        if not (user.strip() and password):
            raise CredentialsError(
                f"entry {number} is not user:password"
                " (a comma separates entries; a password with a comma goes into --basic_auth_file)"
            )
        with _at(f"entry {number}"):
            if entry != entry.strip():
                raise CredentialsError("white space at its beginning or end")
            _add(users, user, Plain.of(password))
    return users


def parse_password_file(text: str) -> dict[str, Plain]:
    """Read the file of ``--basic_auth_file``: one ``user:password`` in each line.

    All that is behind the first colon is the password: commas, colons, spaces and ``#`` too. Empty lines are skipped.

    :raises CredentialsError: a line is something else, or there is none; the message has its number, not its text.
    """
    users: dict[str, Plain] = {}
    for number, line in _lines(_normalize(text)):
        with _at(f"line {number}"):
            user, _, password = line.partition(":")
            if not (user and password):
                raise CredentialsError("not user:password")
            _add(users, user, Plain.of(password))
    if not users:
        raise CredentialsError("no user in it")
    return users


def parse_auth_file(text: str) -> dict[str, Bcrypt]:
    """Read the file of ``--auth_file``, with a bcrypt hash for each user, in one of two forms.

    - htpasswd: one ``user:hash`` in each line, perhaps with a ``:comment`` behind it as nginx has it; a line that
      begins with ``#`` is a comment.
    - the ``web.yml`` of Prometheus and its exporters: the mapping ``basic_auth_users``; its other keys are not for us.

    :raises CredentialsError: a user has anything but a bcrypt hash, or there is none; the message has the line's number
        and the command that makes a good one.
    """
    users: dict[str, Bcrypt] = {}
    text = _normalize(text)
    for number, user, hashed in _read_yaml(text) if _YAML_LINE.search(text) else _read_htpasswd(text):
        with _at(f"line {number}"):
            _add(users, user, Bcrypt.parse(hashed))
    if not users:
        raise CredentialsError("no user in it")
    return users


def set_user(text: str, user: str, hashed: str) -> tuple[str, bool]:
    """Add a user to an htpasswd file, or replace the user's hash; all other lines stay as they are.

    :returns: the new text, and whether the user was in it.
    :raises CredentialsError: the text is of another format; the message is a predicate without its subject.
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
        # Not loaded: a dict would have lost the lines, and users that are there twice
        root = yaml.compose(text, Loader=_BoundedLoader)
    except CredentialsError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # What it says itself may show a part of a password
        raise CredentialsError(f"line {_line_of(error, text)}: not YAML") from None
    keys = root.value if isinstance(root, yaml.MappingNode) else []
    for key, section in keys:
        if key.value != _YAML_KEY:
            continue
        number = section.start_mark.line + 1
        if not isinstance(section, yaml.MappingNode):
            raise CredentialsError(f"line {number}: {_YAML_KEY} is no mapping of users to hashes")
        for user, hashed in section.value:
            number = user.start_mark.line + 1
            if not (_is_text(user) and _is_text(hashed)):
                raise CredentialsError(f"line {number}: user and hash have to be texts: write them in quotes")
            yield number, user.value, hashed.value


class _BoundedLoader(yaml.SafeLoader):
    """Composes a document whose depth and number of nodes are limited.

    PyYAML composes recursively, and needs 30 times as long for a file of tiny nodes as for one of hashes.
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
    # A sequence or mapping may carry the tag of texts
    return isinstance(node, yaml.ScalarNode) and node.tag == _YAML_TEXT


def _line_of(error: Exception, text: str) -> int:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return error.problem_mark.line + 1
    # A character that may not be in YAML at all: that error has no mark
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


_AnySecret = TypeVar("_AnySecret", Plain, Bcrypt)


def _add(users: dict[str, _AnySecret], user: str, secret: _AnySecret) -> None:
    check_user(user)
    if user in users:
        raise CredentialsError(f"the user {user!r} is there twice")
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
    # Not splitlines(), which also splits at characters that may be in a password
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
