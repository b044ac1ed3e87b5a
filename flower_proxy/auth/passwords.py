"""What a credential is: what a request shows, and what it has to match.

Everything here is plain functions of texts. No message shows a password, a hash, or a text that may be half of one.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import bcrypt
import yaml

COSTS = range(4, 17)
"""The costs of a bcrypt hash that are taken: each step doubles the time, and 16 takes seconds."""

MAX_AUTHORIZATION = 8 * 1024
"""Characters of the ``Authorization`` header; proxies send tokens in it."""

MOST_BYTES = 72
"""The length of a password that bcrypt reads in full."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# 16 bytes of salt in 22 characters and 23 bytes of hash in 31: the last character of each has bits that are never set
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]")
_OTHER_HASHES = {
    "$2": "a bcrypt hash that is cut off, changed, or neither $2a$, $2b$ nor $2y$",
    "$apr1$": "an MD5 hash ($apr1$)",
    "$1$": "an MD5 hash ($1$)",
    "{SHA}": "an SHA-1 hash ({SHA})",
    "{SSHA}": "a salted SHA-1 hash ({SSHA})",
    "$5$": "an SHA-crypt hash ($5$)",
    "$6$": "an SHA-crypt hash ($6$)",
    "$argon2": "an Argon2 hash",
}
_YAML_KEY = "basic_auth_users"
_YAML_LINE = re.compile(rf"^{_YAML_KEY}[ \t]*:[ \t]*(?:[{{#].*)?$", re.MULTILINE)
_YAML_TEXT = "tag:yaml.org,2002:str"
_MAX_YAML_DEPTH = 20
_MAX_YAML_NODES = 32_768

_PROCESS_KEY = secrets.token_bytes(32)


class CredentialsError(ValueError):
    """Credentials that cannot be used; the message is one line and shows no secret."""


@dataclass(frozen=True)
class Credentials:
    """What a request shows.

    :ivar user: the name; neither empty nor with a colon.
    :ivar password: in UTF-8; not empty.
    """

    user: str
    password: bytes = field(repr=False)


def read_authorization(lines: Sequence[str]) -> Credentials | None:
    """Read the ``Authorization`` header (RFC 9110, section 11.6.2; RFC 7617).

    :param lines: the values of all its lines.
    :returns: the credentials; None if there are none, or of another scheme than ``Basic``, which counts in any case.
    :raises CredentialsError: there are several lines, one is longer than 8 KB, or what stands behind ``Basic`` is not
        what it should be.
    """
    if not lines:
        return None
    if len(lines) > 1:
        raise CredentialsError("several Authorization headers")
    if len(lines[0]) > MAX_AUTHORIZATION:
        raise CredentialsError(f"Authorization: longer than {MAX_AUTHORIZATION // 1024} KB")
    scheme, _, encoded = lines[0].strip(" \t").partition(" ")
    if scheme.lower() != "basic":
        return None
    encoded = encoded.strip(" ")
    # Python's own strictness changes with its version: some take a padding that is too long
    if len(encoded) % 4 or not _BASE64.fullmatch(encoded):
        raise CredentialsError("Authorization: not base64")
    try:
        text = base64.b64decode(encoded).decode()
    except UnicodeDecodeError:
        raise CredentialsError("Authorization: user and password are not UTF-8") from None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise CredentialsError("Authorization: not user:password, both of them not empty")
    if _CONTROL.search(text):
        raise CredentialsError("Authorization: a control character")
    return Credentials(user, password.encode())


@dataclass(frozen=True)
class Plain:
    """A password that was given as it is. Only a digest of it is kept, which is of no use to another process."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, password: bytes) -> Plain:
        return cls(_digest(password))

    def matches(self, password: bytes) -> bool:
        """Tell whether this is the password, in a time that does not depend on how alike they are."""
        return hmac.compare_digest(self.digest, _digest(password))


def _digest(password: bytes) -> bytes:
    return hmac.digest(_PROCESS_KEY, password, "sha256")


@dataclass(frozen=True)
class Bcrypt:
    """A password of which the bcrypt hash was given, as `parse_auth_file` has checked it."""

    hashed: bytes = field(repr=False)

    @property
    def cost(self) -> int:
        return int(self.hashed[4:6])

    def matches(self, password: bytes) -> bool:
        """Tell whether this is the password: slowly, so not in the event loop.

        A password that bcrypt would not read to its end matches nothing, though other programs cut it off there.
        """
        if len(password) > MOST_BYTES or b"\0" in password:
            return False
        return bcrypt.checkpw(password, self.hashed)


Secret = Plain | Bcrypt
"""What a password has to match."""


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
            _add(users, user, Plain.of(_encode(password, "password")))
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
            _add(users, user, Plain.of(_encode(password, "password")))
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
            _add(users, user, _parse_hash(hashed))
    if not users:
        raise CredentialsError("no user in it")
    return users


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


def _parse_hash(text: str) -> Bcrypt:
    match = _BCRYPT.fullmatch(text)
    if match and int(match["cost"]) in COSTS:
        return Bcrypt(text.encode())
    if match:
        found = f"a bcrypt hash of cost {match['cost']}, but only {COSTS[0]} to {COSTS[-1]} are taken"
    else:
        other = (name for prefix, name in _OTHER_HASHES.items() if text.startswith(prefix))
        found = f"{next(other, 'what is there is no bcrypt hash')}, but only bcrypt is taken"
    raise CredentialsError(f"{found}: make the line with flower-proxy hash-password USER")


def hash_password(password: str, cost: int = 12) -> str:
    """Return a bcrypt hash of a password, for the file of ``--auth_file``.

    :param cost: one of `COSTS`.
    :raises CredentialsError: the password is empty, has a control character, or is longer than bcrypt can read.
    """
    encoded = _encode(password, "password")
    if not encoded:
        raise CredentialsError("the password is empty")
    if len(encoded) > MOST_BYTES:
        raise CredentialsError(f"the password is {len(encoded)} bytes long; bcrypt reads {MOST_BYTES}, so shorten it")
    return bcrypt.hashpw(encoded, bcrypt.gensalt(cost)).decode()


def check_user(user: str) -> None:
    """Check the name of a user.

    :raises CredentialsError: nobody could log in with it, or no file could hold it.
    """
    _encode(user, "user's name")
    if not user:
        raise CredentialsError("the user's name is empty")
    if ":" in user:
        raise CredentialsError("a colon in the user's name")
    if user != user.strip():
        raise CredentialsError("white space at the beginning or end of the user's name")
    # Somebody thought that he wrote a comment, and would have made a user of it
    if user.startswith("#"):
        raise CredentialsError("the user's name begins with #")


def _encode(text: str, what: str) -> bytes:
    if _CONTROL.search(text):
        raise CredentialsError(f"a control character in the {what}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Of the environment and the command line Python keeps such bytes as surrogates
        raise CredentialsError(f"the {what} is not UTF-8") from None


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
