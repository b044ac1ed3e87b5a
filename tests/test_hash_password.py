"""``flower-proxy hash-password``, and that Apache's ``htpasswd`` and we understand each other."""

from __future__ import annotations

import inspect
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flower_proxy.auth.user_files import parse_auth_file
from flower_proxy.cli.hash_password import hash_password

QUICK = ["--cost", "4"]

# click 8.1 mixes the two outputs unless told otherwise; later ones cannot be told
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def invoke(arguments: list[str], input: str | bytes | None = None) -> Result:
    return CliRunner(**_APART).invoke(hash_password, arguments, input=input)


@pytest.mark.parametrize(
    ("arguments", "typed", "password"),
    [
        pytest.param(["me"], "secret\n", "secret", id="line"),
        pytest.param(["me"], "secret\r\n", "secret", id="line-of-windows"),
        pytest.param(["me"], "secret", "secret", id="no-line-end"),
        pytest.param(["me"], " a b,c:d ", " a b,c:d ", id="other-characters"),
        pytest.param(["me"], "pässwörd\n", "pässwörd", id="not-ascii"),
    ],
)
def test_a_password_from_standard_input_becomes_a_line_for_the_file(
    arguments: list[str], typed: str, password: str
) -> None:
    result = invoke([*QUICK, *arguments], input=typed)
    assert result.exit_code == 0
    assert parse_auth_file(result.stdout)["me"].matches(password.encode())


def test_without_a_user_it_prints_the_hash_only() -> None:
    result = invoke(QUICK, input="secret\n")
    assert parse_auth_file("you:" + result.stdout)["you"].matches(b"secret")


def test_the_cost_is_as_asked_for_and_twelve_otherwise() -> None:
    for arguments, cost in ((["--cost", "5"], 5), ([], 12)):
        result = invoke(["me", *arguments], input="secret\n")
        assert parse_auth_file(result.stdout)["me"].cost == cost
    assert "[default: 12; 4<=x<=16]" in invoke(["--help"]).stdout


@pytest.mark.parametrize(
    ("arguments", "typed", "reason"),
    [
        pytest.param([], "", "the password is empty", id="nothing"),
        pytest.param([], "\n", "the password is empty", id="empty-line"),
        pytest.param([], "secret\nsecret\n", "standard input has several lines", id="two-lines"),
        pytest.param([], "secret\n\n", "standard input has several lines", id="two-line-ends"),
        pytest.param([], "secret\r", "a control character in the password", id="carriage-return"),
        pytest.param([], "secret\0\n", "a control character in the password", id="nul"),
        pytest.param([], b"secret\xff\n", "the password is not UTF-8", id="not-utf-8"),
        pytest.param([], "secret" * 13, "the password is 78 bytes long; bcrypt reads 72", id="too-long"),
        pytest.param(["m:e"], "secret\n", "a colon in the user's name", id="colon-in-user"),
        pytest.param(["m\ne"], "secret\n", "a control character in the user's name", id="line-end-in-user"),
        pytest.param([""], "secret\n", "the user's name is empty", id="empty-user"),
        pytest.param([" me"], "secret\n", "white space at the beginning or end", id="space-before-user"),
        pytest.param(["#me"], "secret\n", "the user's name begins with #", id="user-like-a-comment"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(arguments: list[str], typed: str | bytes, reason: str) -> None:
    result = invoke([*QUICK, *arguments], input=typed)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {reason}")
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


@pytest.mark.parametrize("cost", ["3", "17", "x"])
def test_another_cost_is_refused(cost: str) -> None:
    result = invoke(["me", "--cost", cost], input="secret\n")
    assert result.exit_code == 2
    assert result.stdout == ""


IN_A_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from flower_proxy.cli.hash_password import hash_password
hash_password(["me", "--cost", "4"])
"""


class Terminal:
    """A terminal with the command in it; only standard output goes elsewhere."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def answer(self, prompt: str, typed: str) -> None:
        # The space behind it is what comes after the echo has been switched off
        while not self.shown.endswith(prompt + ": "):
            self.shown += os.read(self._ours, 1024).decode()
        os.write(self._ours, f"{typed}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)


def test_in_a_terminal_it_asks_twice_without_showing_the_password() -> None:
    terminal = Terminal()
    try:
        terminal.answer("Password", "secret")
        terminal.answer("Repeat for confirmation", "sceret")
        terminal.answer("Password", "secret")
        terminal.answer("Repeat for confirmation", "secret")
        output, _ = terminal.process.communicate(timeout=30)
    finally:
        terminal.close()
    assert terminal.process.returncode == 0
    assert "do not match" in terminal.shown
    assert "secret" not in terminal.shown
    assert parse_auth_file(output.decode())["me"].matches(b"secret")


@pytest.mark.parametrize("password", ["secret", "a:b,c d#", "pässwörd", "x" * 72])
def test_htpasswd_understands_our_lines(password: str, tmp_path: Path) -> None:
    result = invoke(["me", *QUICK], input=f"{password}\n")
    file = tmp_path / "htpasswd"
    file.write_text(result.stdout)
    assert subprocess.run(["htpasswd", "-vb", file, "me", password], check=False).returncode == 0
    assert subprocess.run(["htpasswd", "-vb", file, "me", "wrong"], check=False).returncode != 0


@pytest.mark.parametrize("password", ["secret", "a:b,c d#", "pässwörd", "x" * 72])
def test_we_understand_the_lines_of_htpasswd(password: str) -> None:
    made = subprocess.run(["htpasswd", "-nbB", "me", password], check=True, capture_output=True, text=True)
    users = parse_auth_file(made.stdout)
    assert users["me"].matches(password.encode())
    assert not users["me"].matches(b"wrong")


@pytest.mark.parametrize(
    ("option", "scheme"),
    [("-m", "MD5"), ("-s", "SHA-1"), ("-d", "no bcrypt hash"), ("-p", "no bcrypt hash"), ("-2", "SHA-crypt")],
)
def test_other_lines_of_htpasswd_are_refused_by_their_name(option: str, scheme: str) -> None:
    made = subprocess.run(["htpasswd", "-nb", option, "me", "secret"], check=True, capture_output=True, text=True)
    with pytest.raises(ValueError, match=scheme):
        parse_auth_file(made.stdout)
