"""Parsing and comparison of credentials, and the messages for malformed ones."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

import bcrypt
import pytest

from flower_proxy.auth.passwords import (
    Bcrypt,
    Credentials,
    CredentialsError,
    Plain,
    Secret,
    check_user,
    hash_password,
    read_authorization,
)
from flower_proxy.auth.user_files import parse_auth_file, parse_entries, parse_password_file

HASH = hash_password("secret", 4)
OTHER = hash_password("other", 4)


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def matches(users: Mapping[str, Secret], user: str, password: str) -> bool:
    return user in users and users[user].matches(password.encode())


@pytest.mark.parametrize(
    ("line", "user", "password"),
    [
        pytest.param(basic("me:secret"), "me", "secret", id="plain"),
        pytest.param(basic("me:secret").replace("Basic", "basic"), "me", "secret", id="scheme-in-lower-case"),
        pytest.param(basic("me:secret").replace("Basic", "BASIC"), "me", "secret", id="scheme-in-upper-case"),
        pytest.param(basic("me:secret").replace(" ", "   ") + " ", "me", "secret", id="more-spaces"),
        pytest.param(basic("me:a:b:"), "me", "a:b:", id="colons-in-the-password"),
        pytest.param(basic("me:p,ss"), "me", "p,ss", id="comma-in-the-password"),
        pytest.param(basic("jörg:pässwörd€"), "jörg", "pässwörd€", id="not-ascii"),
        pytest.param(basic("me: "), "me", " ", id="space-as-password"),
        pytest.param(basic("me:" + "x" * 6135), "me", "x" * 6135, id="8-kb"),
    ],
)
def test_basic_credentials_are_parsed(line: str, user: str, password: str) -> None:
    """Flower rejects a lower-case scheme, and answers a non-ASCII password with 500."""
    assert read_authorization([line]) == Credentials(user, password.encode())


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="no-header"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer abc"], id="bearer"),
        pytest.param(['Digest username="me"'], id="digest"),
        pytest.param(["Basically bWU6c2VjcmV0"], id="scheme-with-prefix-basic"),
    ],
)
def test_requests_without_basic_authentication_have_no_credentials(lines: list[str]) -> None:
    assert read_authorization(lines) is None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param([basic("me:secret")] * 2, "multiple", id="two-lines"),
        pytest.param(["Bearer abc", basic("me:secret")], "multiple", id="two-lines-of-two-schemes"),
        pytest.param(["Basic"], "not user:password", id="scheme-only"),
        pytest.param(["Basic ="], "base64", id="padding-only"),
        pytest.param(["Basic ===="], "base64", id="more-padding"),
        pytest.param(["Basic !!!"], "base64", id="other-characters"),
        pytest.param(["Basic dTpwMQ"], "base64", id="padding-missing"),
        pytest.param(["Basic dTpw="], "base64", id="too-much-padding"),
        pytest.param(["Basic dTpw===="], "base64", id="far-too-much-padding"),
        pytest.param(["Basic dTp=dTpw"], "base64", id="padding-inside"),
        pytest.param(["Basic bWU6 c2VjcmV0"], "base64", id="space-inside"),
        pytest.param(["Basic bWU6c2Vjcm\xe4"], "base64", id="base64-not-ascii"),
        pytest.param([basic("me:" + "x" * 6136)], "longer than 8 KB", id="longer-than-8-kb"),
        pytest.param(["Basic " + "A" * 1_000_000 + "!"], "longer than 8 KB", id="a-million-characters"),
        pytest.param(["Bearer " + "x" * 8192], "longer than 8 KB", id="longer-than-8-kb-of-another-scheme"),
        pytest.param(["Basic " + "A" * 8000 + "!!!!"], "base64", id="long-and-not-base64"),
        pytest.param(["Basic bWU6c2VjcmV0, Basic bWU6c2VjcmV0"], "base64", id="two-lines-combined"),
        pytest.param([basic("secret")], "not user:password", id="no-colon"),
        pytest.param([basic(":secret")], "not user:password", id="empty-user"),
        pytest.param([basic("me:")], "not user:password", id="empty-password"),
        pytest.param([basic(":")], "not user:password", id="both-empty"),
        pytest.param([basic("m\ne:secret")], "control character", id="line-end-in-the-user"),
        pytest.param([basic("me:sec\0ret")], "control character", id="nul-in-the-password"),
        pytest.param([basic("me:secret\x7f")], "control character", id="delete-in-the-password"),
        pytest.param([basic("jörg:secret".encode("latin-1"))], "UTF-8", id="user-in-latin-1"),
        pytest.param([basic(b"me:secret\xe9")], "UTF-8", id="password-in-latin-1"),
    ],
)
def test_malformed_authorization_is_rejected(lines: list[str], reason: str) -> None:
    """Flower accepts ``Authorization: Basic =`` if an entry is empty."""
    with pytest.raises(CredentialsError, match=reason) as caught:
        read_authorization(lines)
    no_secret_in(caught.value)


def no_secret_in(error: CredentialsError) -> None:
    message = str(error)
    assert len(message.splitlines()) == 1
    assert not any(secret in message for secret in ("secret", "other", "c2Vjcm", HASH, OTHER))


@pytest.mark.parametrize(
    ("entries", "user", "password"),
    [
        pytest.param(["me:secret"], "me", "secret", id="one"),
        pytest.param(["me:secret", "you:other"], "you", "other", id="two"),
        pytest.param(["me:a:b"], "me", "a:b", id="colon-in-the-password"),
        pytest.param(["jörg:pässwörd"], "jörg", "pässwörd", id="not-ascii"),
    ],
)
def test_an_entry_matches_only_its_password(entries: list[str], user: str, password: str) -> None:
    users = parse_entries(entries)
    assert len(users) == len(entries)
    assert matches(users, user, password)
    assert not matches(users, user, password + "x")
    assert not matches(users, user, "")


def test_no_entries_are_no_users() -> None:
    assert parse_entries([]) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "user:p,secret", "entry 2 is not user:password (a comma separates entries; put a password", id="comma"
        ),
        pytest.param("", "entry 1 is not user:password", id="empty"),
        pytest.param("user:secret,", "entry 2 is not user:password", id="trailing-comma"),
        pytest.param(",user:secret", "entry 1 is not user:password", id="leading-comma"),
        pytest.param("user:secret,,you:other", "entry 2 is not user:password", id="two-commas"),
        pytest.param("secret", "entry 1 is not user:password", id="no-colon"),
        pytest.param(":secret", "entry 1 is not user:password", id="no-user"),
        pytest.param("  :secret", "entry 1 is not user:password", id="blank-user"),
        pytest.param("user:", "entry 1 is not user:password", id="no-password"),
        pytest.param(":", "entry 1 is not user:password", id="only-the-colon"),
        pytest.param("user:secret, you:other", "entry 2: leading or trailing white space", id="space-after-the-comma"),
        pytest.param("user:secret\n", "entry 1: leading or trailing white space", id="line-end-of-a-kubernetes-secret"),
        pytest.param("user :secret", "entry 1: the user name has leading", id="space-after-the-user"),
        pytest.param("user:sec\tret", "entry 1: the password contains a control character", id="tab-in-the-password"),
        pytest.param("us\x1ber:secret", "entry 1: the user name contains a control character", id="escape-in-the-user"),
        pytest.param("user:secret\udce4", "entry 1: the password is not UTF-8", id="latin-1-in-the-environment"),
        pytest.param("#user:secret", "entry 1: the user name starts with #", id="comment"),
        pytest.param("user:secret,user:other", "entry 2: duplicate user 'user'", id="same-user"),
        pytest.param("user:secret,user:secret", "entry 2: duplicate user 'user'", id="same-entry"),
    ],
)
def test_malformed_entries_are_rejected(text: str, reason: str) -> None:
    """Flower accepts each part of ``user:p,ss``, and empty credentials for an empty entry."""
    with pytest.raises(CredentialsError) as caught:
        parse_entries(text.split(","))
    assert str(caught.value).startswith(reason)
    no_secret_in(caught.value)


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        pytest.param("me:p,ss\n", "me", "p,ss", id="comma"),
        pytest.param("me:a:b\n", "me", "a:b", id="colon"),
        pytest.param("me: a b \n", "me", " a b ", id="spaces"),
        pytest.param("me:#secret # not a comment\n", "me", "#secret # not a comment", id="number-sign"),
        pytest.param("me:secret", "me", "secret", id="no-line-end"),
        pytest.param("\n\nyou:other\n  \nme:secret\n\n", "me", "secret", id="empty-lines"),
        pytest.param("you:other\r\nme:secret\r\n", "me", "secret", id="windows-line-ends"),
        pytest.param("\ufeffme:secret\n", "me", "secret", id="byte-order-mark"),
        pytest.param("jörg:pässwörd\n", "jörg", "pässwörd", id="not-ascii"),
        pytest.param("me:a\u2028b\x85c\n", "me", "a\u2028b\x85c", id="other-line-separators"),
    ],
)
def test_a_password_in_a_file_is_the_rest_of_the_line(text: str, user: str, password: str) -> None:
    """Unlike in ``--basic_auth``, a comma does not separate users."""
    assert matches(parse_password_file(text), user, password)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "contains no users", id="empty"),
        pytest.param("\n \n", "contains no users", id="empty-lines"),
        pytest.param("me:secret\n\nother\n", "line 3: not user:password", id="no-colon"),
        pytest.param(":secret\n", "line 1: not user:password", id="no-user"),
        pytest.param("me:\n", "line 1: not user:password", id="no-password"),
        pytest.param(" me:secret\n", "line 1: the user name has leading", id="space-before-the-user"),
        pytest.param("# note: secret\n", "line 1: the user name starts with #", id="comment"),
        pytest.param("me:sec\0ret\n", "line 1: the password contains a control character", id="control-character"),
        pytest.param(
            "me:secret\ryou:other\n", "line 1: the password contains a control character", id="old-mac-line-ends"
        ),
        pytest.param("me:secret\nme:other\n", "line 2: duplicate user 'me'", id="same-user"),
    ],
)
def test_malformed_password_files_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        parse_password_file(text)
    assert str(caught.value).startswith(reason)
    no_secret_in(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"me:{HASH}\nyou:{OTHER}\n", id="htpasswd"),
        pytest.param(f"me:{HASH}\nyou:{OTHER}", id="htpasswd-no-line-end"),
        pytest.param(f"\ufeffme:{HASH}\r\nyou:{OTHER}\r\n", id="htpasswd-of-windows"),
        pytest.param(f"# users\n\n  # more\nme:{HASH}\n \nyou:{OTHER} \n", id="htpasswd-comments"),
        pytest.param(f"me:{HASH}:a comment\nyou:{OTHER}:\n", id="htpasswd-nginx-comments"),
        pytest.param(f"basic_auth_users:\n  me: {HASH}\n  you: {OTHER}\n", id="web.yml"),
        pytest.param(f"basic_auth_users:\r\n  me: {HASH}\r\n  you: '{OTHER}'\r\n", id="web.yml-of-windows"),
        pytest.param(f"\ufeffbasic_auth_users:\n  me: {HASH}\n  you: {OTHER}\n", id="web.yml-byte-order-mark"),
        pytest.param(f'basic_auth_users: {{"me": "{HASH}", "you": "{OTHER}"}}\n', id="web.yml-flow"),
        pytest.param(f"basic_auth_users: # ours\n  me: {HASH}\n  you: {OTHER}\n", id="web.yml-comment"),
        pytest.param(
            "---\ntls_server_config:\n  cert_file: c\n  key_file: k\n"
            f"basic_auth_users:\n  me: {HASH}\n  you: {OTHER}\nrate_limit: {{burst: 1}}\n",
            id="web.yml-other-keys",
        ),
    ],
)
def test_both_formats_of_an_auth_file_are_parsed(text: str) -> None:
    users = parse_auth_file(text)
    assert list(users) == ["me", "you"]
    assert matches(users, "me", "secret")
    assert matches(users, "you", "other")
    assert not matches(users, "me", "other")


@pytest.mark.parametrize("kind", ["$2a$", "$2b$", "$2y$"])
@pytest.mark.parametrize("cost", [4, 5])
def test_every_bcrypt_identifier_is_accepted(kind: str, cost: int) -> None:
    users = parse_auth_file(f"me:{hash_password('secret', cost).replace('$2b$', kind)}\n")
    assert users["me"].cost == cost
    assert matches(users, "me", "secret")
    assert not matches(users, "me", "secre")


NESTED_1000 = f"a: {'[' * 1000}{']' * 1000}\nbasic_auth_users:"
# Each list contains the previous one nine times: 9**9 nodes if aliases are expanded
ALIASES = "[&a0 [x]" + "".join(f", &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 10)) + "]"
COMMAND = "flower-proxy hash-password USER"


@pytest.mark.parametrize(
    ("hashed", "reason"),
    [
        pytest.param("$apr1$secret$other", "MD5", id="htpasswd-m"),
        pytest.param("$1$secret$other", "MD5", id="openssl-passwd-1"),
        pytest.param("{SHA}secret", "SHA-1", id="htpasswd-s"),
        pytest.param("{SSHA}secret", "salted SHA-1", id="ssha"),
        pytest.param("$5$secret$other", "SHA-crypt", id="htpasswd-2"),
        pytest.param("$6$secret$other", "SHA-crypt", id="htpasswd-5"),
        pytest.param("$argon2id$v=19$m=65536,t=3,p=4$secret$other", "Argon2", id="argon2"),
        pytest.param("secretsecret1", "not a bcrypt hash", id="crypt"),
        pytest.param("secret", "not a bcrypt hash", id="plain"),
        pytest.param("{PLAIN}secret", "not a bcrypt hash", id="plain-of-nginx"),
        pytest.param(HASH[:-1], "truncated", id="truncated"),
        pytest.param(HASH + "a", "truncated", id="too-long"),
        pytest.param(HASH[:-5] + "=" + HASH[-4:], "corrupted", id="other-alphabet"),
        pytest.param(HASH[:28] + "a" + HASH[29:], "corrupted", id="salt-that-bcrypt-refuses"),
        pytest.param(HASH[:-1] + "/", "corrupted", id="hash-that-matches-nothing"),
        pytest.param(HASH.replace("$2b$", "$2x$"), "neither $2a$, $2b$ nor $2y$", id="2x"),
        pytest.param(HASH.replace("$2b$", "$2$"), "neither $2a$, $2b$ nor $2y$", id="2"),
        pytest.param(HASH.replace("$04$", "$03$"), "cost 03, expected 4 to 16", id="cost-too-low"),
        pytest.param(HASH.replace("$04$", "$17$"), "cost 17, expected 4 to 16", id="cost-too-high"),
    ],
)
@pytest.mark.parametrize("form", ["you:{other}\nme:{hashed}\n", "basic_auth_users:\n  me: '{hashed}'\n"])
def test_other_hashes_are_rejected_with_the_command_to_generate_one(form: str, hashed: str, reason: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        parse_auth_file(form.format(other=OTHER, hashed=hashed))
    message = str(caught.value)
    assert message.startswith("line 2: ")
    assert reason in message
    assert message.endswith(COMMAND)
    no_secret_in(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "contains no users", id="empty"),
        pytest.param("# no users\n\n", "contains no users", id="only-comments"),
        pytest.param("basic_auth_users: {}\n", "contains no users", id="web.yml-no-users"),
        pytest.param("basic_auth_users:\n", "line 1: basic_auth_users is not a mapping", id="web.yml-nothing"),
        pytest.param(f"basic_auth_users:\n- {HASH}\n", "line 2: basic_auth_users is not a mapping", id="web.yml-list"),
        pytest.param("me\n", "line 1: not user:hash", id="no-colon"),
        pytest.param(f"{HASH}\n", "line 1: not user:hash", id="no-user"),
        pytest.param(f":{HASH}\n", "line 1: not user:hash", id="empty-user"),
        pytest.param("me:\n", "line 1: not user:hash", id="no-hash"),
        pytest.param(
            f"m\te:{HASH}\n",
            "line 1: the user name contains a control character",
            id="control-character",
        ),
        pytest.param(f"me:{HASH}\nme:{OTHER}\n", "line 2: duplicate user 'me'", id="same-user"),
        pytest.param(
            f"basic_auth_users:\n  me: {HASH}\n  'me': {OTHER}\n",
            "line 3: duplicate user 'me'",
            id="web.yml-same-user",
        ),
        pytest.param(f"basic_auth_users:\n  me: {HASH}\n you: secret\n", "line 3: not YAML", id="web.yml-indentation"),
        pytest.param("basic_auth_users:\n  me: *secret\n", "line 2: not YAML", id="web.yml-alias"),
        pytest.param("basic_auth_users:\n  me: 'secret\n", "line 3: not YAML", id="web.yml-quote-left-open"),
        pytest.param("basic_auth_users:\n  me: sec\0ret\n", "line 2: not YAML", id="web.yml-nul"),
        pytest.param("basic_auth_users:\n  me: 12345\n", "line 2: user and hash must be strings", id="web.yml-number"),
        pytest.param("basic_auth_users:\n  me:\n", "line 2: user and hash must be strings", id="web.yml-no-hash"),
        pytest.param(
            "basic_auth_users:\n  me: [secret]\n", "line 2: user and hash must be strings", id="web.yml-list-of"
        ),
        pytest.param(f"basic_auth_users:\n  1: {HASH}\n", "line 2: user and hash must be strings", id="web.yml-user-1"),
        pytest.param("basic_auth_users: {me:secret}\n", "line 1: user and hash must be strings", id="web.yml-no-space"),
        pytest.param(f'basic_auth_users:\n  "": {HASH}\n', "line 2: the user name is empty", id="web.yml-empty-user"),
        pytest.param(
            f"basic_auth_users:\n  'm:e': {HASH}\n", "line 2: the user name contains a colon", id="web.yml-colon"
        ),
        pytest.param(f"basic_auth_users:\n  '#me': {HASH}\n", "line 2: the user name starts", id="web.yml-comment"),
        pytest.param(
            f"basic_auth_users:\n  !!str [me]: {HASH}\n", "line 2: user and hash must be strings", id="web.yml-no-text"
        ),
        pytest.param(
            "basic_auth_users:\n  me: !!str [secret]\n", "line 2: user and hash must be strings", id="web.yml-no-hash"
        ),
        pytest.param('basic_auth_users:\n  me: "\\U00110000"\n', "line 1: not YAML", id="web.yml-no-character"),
        pytest.param('basic_auth_users:\n  me: "\\UFFFFFFFF"\n', "line 1: not YAML", id="web.yml-far-from-one"),
        pytest.param(f"%YAML {'1' * 5000}.1\n---\nbasic_auth_users:\n", "line 1: not YAML", id="web.yml-version"),
        pytest.param(f"{NESTED_1000}\n", "line 1: YAML nested more than 20", id="web.yml-nested-in-brackets"),
        pytest.param(
            "basic_auth_users:\n" + "\n".join(" " * n + "a:" for n in range(1, 1000)),
            "line 20: YAML nested more than 20",
            id="web.yml-nested-by-indentation",
        ),
        pytest.param(
            f"basic_auth_users:\n{'- ' * 1000}", "line 2: YAML nested more than 20", id="web.yml-nested-lists"
        ),
        pytest.param(f"basic_auth_users:\n{'? ' * 1000}", "line 2: YAML nested more than 20", id="web.yml-nested-keys"),
        pytest.param(
            f"basic_auth_users:\n  {ALIASES}\n", "line 2: basic_auth_users is not a mapping", id="web.yml-aliases"
        ),
        pytest.param(f"basic_auth_users:\na: [{'*b,' * 99}]", "line 2: not YAML", id="web.yml-unknown-alias"),
        pytest.param(
            f"a: [{'1,' * 40_000}]\nbasic_auth_users:\n", "line 1: more than 32768 YAML nodes", id="web.yml-many-nodes"
        ),
    ],
)
def test_malformed_auth_files_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        parse_auth_file(text)
    assert str(caught.value).startswith(reason)
    no_secret_in(caught.value)


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("x" * 72, id="72-bytes"),
        pytest.param("ä" * 36, id="72-bytes-in-36-letters"),
        pytest.param("a:b,c d#", id="other-characters"),
    ],
)
def test_a_generated_hash_matches_its_password(password: str) -> None:
    users = parse_auth_file(f"me:{hash_password(password, 4)}\n")
    assert matches(users, "me", password)
    assert not matches(users, "me", password[:-1])


def test_the_default_cost_is_12() -> None:
    assert hash_password("secret").startswith("$2b$12$")


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        pytest.param("", "the password is empty", id="empty"),
        pytest.param("secret" * 13, "the password has 78 bytes, but bcrypt reads only 72", id="too-long"),
        pytest.param("ä" * 37, "the password has 74 bytes, but bcrypt reads only 72", id="too-long-in-utf-8"),
        pytest.param("secret\0", "the password contains a control character", id="nul"),
        pytest.param("secret\n", "the password contains a control character", id="line-end"),
        pytest.param("secret\udce4", "the password is not UTF-8", id="latin-1"),
    ],
)
def test_unusable_passwords_are_not_hashed(password: str, reason: str) -> None:
    with pytest.raises(CredentialsError, match=reason) as caught:
        hash_password(password, 4)
    no_secret_in(caught.value)


@pytest.mark.parametrize(
    "password",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"secret\0", id="nul"),
        pytest.param(b"secret\xff", id="not-utf-8"),
        pytest.param(b"secret" * 1000, id="long"),
    ],
)
@pytest.mark.parametrize("secret", [Plain.of("secret"), Bcrypt(HASH.encode())])
def test_unusual_passwords_do_not_match(secret: Secret, password: bytes) -> None:
    assert not secret.matches(password)


def test_passwords_are_not_truncated_to_72_bytes() -> None:
    """``htpasswd -B`` truncates longer passwords, so the first 72 bytes are sufficient there."""
    secret = Bcrypt(bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)))
    assert secret.matches(b"x" * 72)
    assert not secret.matches(b"x" * 73)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Credentials("me", b"secret"), id="credentials"),
        pytest.param(lambda: parse_entries(["me:secret"]), id="plain"),
        pytest.param(lambda: parse_auth_file(f"me:{HASH}\n"), id="bcrypt"),
    ],
)
def test_repr_contains_no_secret(make: Callable[[], object]) -> None:
    shown = repr(make())
    assert "me" in shown
    assert "secret" not in shown
    assert HASH not in shown
    assert repr(Plain.of("secret").digest) not in shown


@pytest.mark.parametrize("user", ["me", "jörg", "me@example.com", "first last", "a#b"])
def test_valid_user_names_are_accepted(user: str) -> None:
    check_user(user)
