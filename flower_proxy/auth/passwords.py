"""What a request shows, and what it has to match: passwords, digests and bcrypt hashes.

Everything here is plain functions of texts. No message shows a password, a hash, or a text that may be half of one.
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
    def of(cls, password: str) -> Plain:
        """Keep the digest of a password.

        :raises CredentialsError: it has a control character, or is not UTF-8.
        """
        return cls(_digest(_encode(password, "password")))

    def matches(self, password: bytes) -> bool:
        """Tell whether this is the password, in a time that does not depend on how alike they are."""
        return hmac.compare_digest(self.digest, _digest(password))


def _digest(password: bytes) -> bytes:
    return hmac.digest(_PROCESS_KEY, password, "sha256")


@dataclass(frozen=True)
class Bcrypt:
    """A password of which the bcrypt hash was given, as `parse` has checked it."""

    hashed: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Bcrypt:
        """Read a hash as a file has it.

        :raises CredentialsError: it is none, or its cost is not taken; the message has the command for a good one.
        """
        match = _BCRYPT.fullmatch(text)
        if match and int(match["cost"]) in COSTS:
            return cls(text.encode())
        if match:
            found = f"a bcrypt hash of cost {match['cost']}, but only {COSTS[0]} to {COSTS[-1]} are taken"
        else:
            other = (name for prefix, name in _OTHER_HASHES.items() if text.startswith(prefix))
            found = f"{next(other, 'what is there is no bcrypt hash')}, but only bcrypt is taken"
        raise CredentialsError(f"{found}: make the line with flower-proxy hash-password USER")

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
