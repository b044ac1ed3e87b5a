"""Parsing, hashing and comparison of credentials.

No message contains a password, a hash, or a part of one.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import bcrypt

COSTS = range(4, 17)
"""The supported costs of bcrypt hashes: each step doubles the time, and 16 takes seconds."""

MAX_AUTHORIZATION = 8 * 1024
"""The maximum length of the ``Authorization`` header in characters; proxies send tokens in it."""

MAX_PASSWORD_BYTES = 72
"""The maximum length of a password in bytes: bcrypt ignores the rest."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# 22 characters hold 16 bytes of salt and 31 hold 23 bytes of hash, so the last one of each has unused bits
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]")
_OTHER_HASHES = {
    "$2": "a bcrypt hash that is truncated, corrupted, or neither $2a$, $2b$ nor $2y$",
    "$apr1$": "an MD5 hash ($apr1$)",
    "$1$": "an MD5 hash ($1$)",
    "{SHA}": "an SHA-1 hash ({SHA})",
    "{SSHA}": "a salted SHA-1 hash ({SSHA})",
    "$5$": "an SHA-crypt hash ($5$)",
    "$6$": "an SHA-crypt hash ($6$)",
    "$argon2": "an Argon2 hash",
}
_PROCESS_KEY = secrets.token_bytes(32)


class CredentialsError(ValueError):
    """Invalid credentials; the message is one line and contains no secret."""


@dataclass(frozen=True)
class Credentials:
    """User and password of a request.

    :ivar user: the user name; not empty, without a colon.
    :ivar password: the password in UTF-8; not empty.
    """

    user: str
    password: bytes = field(repr=False)


def read_authorization(lines: Sequence[str]) -> Credentials | None:
    """Parse the ``Authorization`` header (RFC 9110, section 11.6.2; RFC 7617).

    :param lines: the values of all its field lines.
    :returns: the credentials; None if the header is missing or has another scheme than ``Basic``.
    :raises CredentialsError: there are multiple lines, the value is longer than 8 KB, or it is malformed.
    """
    if not lines:
        return None
    if len(lines) > 1:
        raise CredentialsError("multiple Authorization headers")
    if len(lines[0]) > MAX_AUTHORIZATION:
        raise CredentialsError(f"Authorization: longer than {MAX_AUTHORIZATION // 1024} KB")
    scheme, _, encoded = lines[0].strip(" \t").partition(" ")
    if scheme.lower() != "basic":
        return None
    encoded = encoded.strip(" ")
    # Some versions of Python accept too much padding
    if len(encoded) % 4 or not _BASE64.fullmatch(encoded):
        raise CredentialsError("Authorization: not base64")
    try:
        text = base64.b64decode(encoded).decode()
    except UnicodeDecodeError:
        raise CredentialsError("Authorization: user and password are not UTF-8") from None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise CredentialsError("Authorization: not user:password, neither empty")
    if _CONTROL.search(text):
        raise CredentialsError("Authorization: contains a control character")
    return Credentials(user, password.encode())


@dataclass(frozen=True)
class Plain:
    """A plain-text password, kept as a digest under a key of this process."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, password: str) -> Plain:
        """Digest a password.

        :raises CredentialsError: the password contains a control character, or is not UTF-8.
        """
        return cls(_digest(_encode(password, "password")))

    def matches(self, password: bytes) -> bool:
        """Return whether the password is correct, in constant time."""
        return hmac.compare_digest(self.digest, _digest(password))


def _digest(password: bytes) -> bytes:
    return hmac.digest(_PROCESS_KEY, password, "sha256")


@dataclass(frozen=True)
class Bcrypt:
    """A bcrypt hash, as `parse` returns it."""

    hashed: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Bcrypt:
        """Parse a bcrypt hash.

        :raises CredentialsError: the hash or its cost is not supported; the message has the command to generate one.
        """
        match = _BCRYPT.fullmatch(text)
        if match and int(match["cost"]) in COSTS:
            return cls(text.encode())
        if match:
            found = f"a bcrypt hash of cost {match['cost']}, expected {COSTS[0]} to {COSTS[-1]}"
        else:
            other = (f"{name}, expected bcrypt" for prefix, name in _OTHER_HASHES.items() if text.startswith(prefix))
            found = next(other, "not a bcrypt hash")
        raise CredentialsError(f"{found}: generate the line with flower-proxy hash-password USER")

    @property
    def cost(self) -> int:
        """The cost factor; each step doubles the time."""
        return int(self.hashed[4:6])

    def matches(self, password: bytes) -> bool:
        """Return whether the password is correct; slow by design, so call it outside the event loop.

        Passwords that bcrypt would truncate never match, although other programs accept them.
        """
        if len(password) > MAX_PASSWORD_BYTES or b"\0" in password:
            return False
        return bcrypt.checkpw(password, self.hashed)


Secret = Plain | Bcrypt
"""A stored password."""


def hash_password(password: str, cost: int = 12) -> str:
    """Return a bcrypt hash of a password, for ``--auth_file``.

    :param cost: one of `COSTS`.
    :raises CredentialsError: the password is empty, contains a control character, or is too long for bcrypt.
    """
    encoded = _encode(password, "password")
    if not encoded:
        raise CredentialsError("the password is empty")
    if len(encoded) > MAX_PASSWORD_BYTES:
        raise CredentialsError(
            f"the password has {len(encoded)} bytes, but bcrypt reads only {MAX_PASSWORD_BYTES}; shorten it"
        )
    return bcrypt.hashpw(encoded, bcrypt.gensalt(cost)).decode()


def check_user(user: str) -> None:
    """Validate a user name.

    :raises CredentialsError: HTTP Basic authentication or the file formats do not support the name.
    """
    _encode(user, "user name")
    if not user:
        raise CredentialsError("the user name is empty")
    if ":" in user:
        raise CredentialsError("the user name contains a colon")
    if user != user.strip():
        raise CredentialsError("the user name has leading or trailing white space")
    # A line that starts with # is meant as a comment
    if user.startswith("#"):
        raise CredentialsError("the user name starts with #")


def _encode(text: str, what: str) -> bytes:
    if _CONTROL.search(text):
        raise CredentialsError(f"the {what} contains a control character")
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Python decodes invalid bytes of the environment and the command line to surrogates
        raise CredentialsError(f"the {what} is not UTF-8") from None
