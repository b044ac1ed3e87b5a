"""``flower-proxy hash-password``, and its compatibility with Apache's ``htpasswd``."""

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

# click 8.1 mixes stdout and stderr by default; later releases lack the option
_SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def invoke(arguments: list[str], input: str | bytes | None = None) -> Result:
    return CliRunner(**_SEPARATE).invoke(hash_password, arguments, input=input)


@pytest.mark.parametrize(
    ("arguments", "typed", "password"),
    [
        pytest.param(["me"], "secret\n", "secret", id="line"),
        pytest.param(["me"], "secret\r\n", "secret", id="windows-line-end"),
        pytest.param(["me"], "secret", "secret", id="no-line-end"),
        pytest.param(["me"], " a b,c:d ", " a b,c:d ", id="other-characters"),
        pytest.param(["me"], "pässwörd\n", "pässwörd", id="not-ascii"),
    ],
)
def test_a_password_from_standard_input_is_hashed(arguments: list[str], typed: str, password: str) -> None:
    result = invoke([*QUICK, *arguments], input=typed)
    assert result.exit_code == 0
    assert parse_auth_file(result.stdout)["me"].matches(password.encode())


def test_without_a_user_only_the_hash_is_printed() -> None:
    result = invoke(QUICK, input="secret\n")
    assert parse_auth_file("you:" + result.stdout)["you"].matches(b"secret")


def test_the_default_cost_is_twelve() -> None:
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
        pytest.param([], "secret\r", "the password contains a control character", id="carriage-return"),
        pytest.param([], "secret\0\n", "the password contains a control character", id="nul"),
        pytest.param([], b"secret\xff\n", "the password is not UTF-8", id="not-utf-8"),
        pytest.param([], "secret" * 13, "the password has 78 bytes, but bcrypt reads only 72", id="too-long"),
        pytest.param(["m:e"], "secret\n", "the user name contains a colon", id="colon-in-user"),
        pytest.param(["m\ne"], "secret\n", "the user name contains a control character", id="line-end-in-user"),
        pytest.param([""], "secret\n", "the user name is empty", id="empty-user"),
        pytest.param([" me"], "secret\n", "the user name has leading or trailing white space", id="space-before-user"),
        pytest.param(["#me"], "secret\n", "the user name starts with #", id="user-like-a-comment"),
    ],
)
def test_invalid_input_is_a_one_line_error(arguments: list[str], typed: str | bytes, reason: str) -> None:
    result = invoke([*QUICK, *arguments], input=typed)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {reason}")
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


@pytest.mark.parametrize("cost", ["3", "17", "x"])
def test_a_cost_out_of_range_is_an_error(cost: str) -> None:
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
    """A terminal that runs the command, except for standard output."""

    def __init__(self) -> None:
        self._terminal, other_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL],
            stdin=other_end,
            stdout=subprocess.PIPE,
            stderr=other_end,
            start_new_session=True,
        )
        os.close(other_end)
        self.shown = ""

    def answer(self, prompt: str, typed: str) -> None:
        # The trailing space is printed after the echo is disabled
        while not self.shown.endswith(prompt + ": "):
            self.shown += os.read(self._terminal, 1024).decode()
        os.write(self._terminal, f"{typed}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._terminal)


def test_a_terminal_gets_two_prompts_without_echo() -> None:
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
def test_htpasswd_verifies_generated_lines(password: str, tmp_path: Path) -> None:
    result = invoke(["me", *QUICK], input=f"{password}\n")
    file = tmp_path / "htpasswd"
    file.write_text(result.stdout)
    assert subprocess.run(["htpasswd", "-vb", file, "me", password], check=False).returncode == 0
    assert subprocess.run(["htpasswd", "-vb", file, "me", "wrong"], check=False).returncode != 0


@pytest.mark.parametrize("password", ["secret", "a:b,c d#", "pässwörd", "x" * 72])
def test_lines_of_htpasswd_are_verified(password: str) -> None:
    made = subprocess.run(["htpasswd", "-nbB", "me", password], check=True, capture_output=True, text=True)
    users = parse_auth_file(made.stdout)
    assert users["me"].matches(password.encode())
    assert not users["me"].matches(b"wrong")


@pytest.mark.parametrize(
    ("option", "scheme"),
    [("-m", "MD5"), ("-s", "SHA-1"), ("-d", "not a bcrypt hash"), ("-p", "not a bcrypt hash"), ("-2", "SHA-crypt")],
)
def test_other_hashes_of_htpasswd_are_refused_by_name(option: str, scheme: str) -> None:
    made = subprocess.run(["htpasswd", "-nb", option, "me", "secret"], check=True, capture_output=True, text=True)
    with pytest.raises(ValueError, match=scheme):
        parse_auth_file(made.stdout)


# --output

HASH = "$2b$04$abcdefghijklmnopqrstuu5LfzlFrd8BdBOeBJQm6nsqKQKWzeVgW"
OTHERS = f"# users of the shop\nyou:$apr1$md5$x:comment\n\nme:{HASH}\nthey:{HASH}"


def write(file: Path, user: str = "me", password: str = "secret") -> Result:
    return invoke([*QUICK, "--output", str(file), user], input=f"{password}\n")


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_new_file_has_mode_0600_with_any_umask(tmp_path: Path, umask: int) -> None:
    file, before = tmp_path / "htpasswd", os.umask(umask)
    try:
        result = write(file)
    finally:
        os.umask(before)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Added the user 'me' to {str(file)!r} (mode 0600)\n"
    assert parse_auth_file(file.read_text())["me"].matches(b"secret")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_the_line_of_the_user_is_replaced_and_others_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    file.write_text(OTHERS)
    result = write(file)
    assert result.stderr.startswith("Replaced the password of the user 'me' in ")
    kept, replaced = OTHERS.split("\n"), file.read_text().split("\n")
    assert replaced[:3] + replaced[4:] == kept[:3] + kept[4:] + [""]
    assert parse_auth_file(replaced[3])["me"].matches(b"secret")


def test_a_new_user_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    file.write_bytes(f"you:{HASH}\r\nthey:{HASH}".encode())
    write(file)
    assert file.read_bytes().startswith(f"you:{HASH}\r\nthey:{HASH}\nme:$2b$".encode())
    assert set(parse_auth_file(file.read_text())) == {"you", "they", "me"}


def test_an_existing_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    file.touch()
    file.chmod(0o640)
    owner = (65534, 65533) if os.getuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    assert write(file).stderr.endswith("(mode 0640)\n")
    stat = file.stat()
    assert (stat.st_mode & 0o777, stat.st_uid, stat.st_gid) == (0o640, *owner)


def test_the_target_of_a_symbolic_link_is_updated(tmp_path: Path) -> None:
    file, link = tmp_path / "htpasswd", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    write(link)
    assert link.is_symlink()
    assert "me:" in file.read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(
            f"basic_auth_users:\n  me: {HASH}\n", "is a web.yml: add the line below basic_auth_users", id="web"
        ),
        pytest.param("tls_server_config: {}\n", "is not an htpasswd file (line 1", id="another-yaml"),
        pytest.param("me:x\nSECRET\n", "is not an htpasswd file (line 2", id="no-colon"),
        pytest.param("[Unit]\nDescription=x\n", "is not an htpasswd file (line 1", id="unit"),
        pytest.param(b"\xff:x\n", "is not UTF-8", id="not-utf-8"),
    ],
)
def test_a_file_of_another_format_is_refused_and_unchanged(tmp_path: Path, content: str | bytes, reason: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file.read_bytes()
    result = write(file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: --output: {str(file)!r} {reason}")
    assert len(result.stderr.splitlines()) == 1
    assert "SECRET" not in result.stderr
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("path", ["/nowhere/htpasswd", "/proc/htpasswd", "/dev/null", "/tmp"])
def test_an_unwritable_path_is_a_one_line_error(path: str) -> None:
    result = write(Path(path))
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith(f"Error: --output: cannot write {path!r}: ")
    assert len(result.stderr.splitlines()) == 1


def test_output_requires_a_user(tmp_path: Path) -> None:
    result = invoke([*QUICK, "--output", str(tmp_path / "htpasswd")], input="secret\n")
    assert result.exit_code == 2
    assert "--output: USER is missing" in result.stderr
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import os, signal, sys
failure = sys.argv.pop(1)
def fail(*_):
    if failure == "full":
        raise OSError(28, "No space left on device")
    os.kill(os.getpid(), getattr(signal, failure))
original, os.fsync = os.fsync, fail
from flower_proxy.__main__ import main
main()
"""


@pytest.mark.parametrize("failure", ["full", "SIGINT", "SIGTERM", "SIGHUP"])
def test_no_temporary_file_remains_after_a_failure_or_signal(tmp_path: Path, failure: str) -> None:
    file = tmp_path / "htpasswd"
    file.write_text(OTHERS)
    arguments = ["hash-password", "--output", str(file), *QUICK, "me"]
    command = [sys.executable, "-c", FULL_DISK, failure, *arguments]
    result = subprocess.run(command, input=b"secret\n", capture_output=True, timeout=60)
    assert list(tmp_path.iterdir()) == [file]
    if failure == "full":
        assert result.stderr.decode() == (
            f"flower-proxy: --output: cannot write {str(file)!r}: No space left on device\n"
        )
        assert file.read_text() == OTHERS
        assert result.returncode == 1
    else:
        # The signal is delayed until the file is replaced
        assert parse_auth_file(file.read_text().replace("$apr1$md5$x", HASH))["me"].matches(b"secret")
        assert result.returncode != 0
