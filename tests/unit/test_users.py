"""Users in options and files, and reloading of changed files."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flower_proxy.auth.passwords import CredentialsError, hash_password
from flower_proxy.auth.users import Users

HASH = hash_password("secret", 4)
OTHER = hash_password("other", 4)


class Clock:
    """A clock that is advanced by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Create files that only their owner can read."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="flower_proxy.auth.users")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return and clear the log."""
    found = [(record.levelname, record.getMessage()) for record in log.records]
    log.clear()
    return found


def can_log_in(users: Users, user: str, password: str) -> bool:
    secret = users.current().get(user)
    return secret is not None and secret.matches(password.encode())


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def replaced(path: Path, text: str) -> None:
    """Replace the file as editors and ``htpasswd`` do, with the time of the old version."""
    new = path.with_name("new")
    new.write_text(text)
    if path.exists():
        os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)


def test_users_of_all_sources_can_log_in(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("b:p,ss\n")
    (tmp_path / "hashes").write_text(f"c:{HASH}\n")
    users = Users(["a:secret"], str(tmp_path / "passwords"), str(tmp_path / "hashes"))
    assert users
    assert users.names() == ["a", "b", "c"]
    assert can_log_in(users, "a", "secret")
    assert can_log_in(users, "b", "p,ss")
    assert can_log_in(users, "c", "secret")
    assert not can_log_in(users, "d", "secret")


def test_no_sources_are_no_users() -> None:
    users = Users()
    assert not users
    assert users.names() == []


@pytest.mark.parametrize(
    ("entries", "passwords", "hashes", "reason"),
    [
        pytest.param("a:p,ss", None, None, "--basic_auth: entry 2 is not user:password (a comma", id="entry"),
        pytest.param(None, "a:b\nsecret", None, "--basic_auth_file: 'passwords': line 2: not user:password", id="line"),
        pytest.param(None, "", None, "--basic_auth_file: 'passwords': contains no users", id="empty-file"),
        pytest.param(None, None, "\na:secret", "--auth_file: 'hashes': line 2: not a bcrypt hash", id="no-hash"),
        pytest.param(None, None, b"\xff", "--auth_file: 'hashes': not UTF-8", id="not-utf-8"),
        pytest.param(
            "a:secret",
            "a:secret",
            None,
            "--basic_auth_file: 'passwords': user 'a' is also in --basic_auth",
            id="twice",
        ),
        pytest.param(
            None,
            "a:secret",
            f"a:{HASH}",
            "--auth_file: 'hashes': user 'a' is also in --basic_auth_file: 'passwords'",
            id="in-both-files",
        ),
    ],
)
def test_invalid_users_are_rejected_at_start_up(
    entries: str | None,
    passwords: str | None,
    hashes: str | bytes | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower starts with an empty entry, and then accepts empty credentials."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("passwords", passwords), ("hashes", hashes)):
        if content is not None:
            Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CredentialsError) as caught:
        Users(
            entries.split(",") if entries else (),
            "passwords" if passwords is not None else None,
            "hashes" if hashes is not None else None,
        )
    message = str(caught.value)
    assert message.startswith(reason)
    assert len(message.splitlines()) == 1
    assert "secret" not in message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        pytest.param("missing", "'missing': No such file or directory", id="missing"),
        pytest.param("", "'': Is a directory", id="empty"),
        pytest.param(".", "'.': Is a directory", id="folder"),
        pytest.param("file/users", "'file/users': Not a directory", id="below-a-file"),
    ],
)
def test_unreadable_files_are_rejected_in_one_line(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(CredentialsError) as caught:
        Users(auth_file=path)
    assert str(caught.value) == f"--auth_file: {reason}"


@pytest.mark.parametrize("write", [in_place, replaced])
def test_a_changed_file_is_reloaded(
    write: Callable[[Path, str], None], file: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    file.write_text(f"a:{HASH}\n")
    users = Users(auth_file=str(file), clock=clock)
    write(file, f"b:{HASH}\nc:{OTHER}\n")
    clock.now += 1
    assert users.names() == ["b", "c"]
    assert can_log_in(users, "c", "other")
    assert lines(log) == [("INFO", f"--auth_file: {str(file)!r}: reloaded, users: 2")]
    clock.now += 1
    assert users.names() == ["b", "c"]
    assert lines(log) == []


def test_a_new_version_of_equal_size_and_time_is_reloaded(file: Path, clock: Clock) -> None:
    file.write_text("a:secret\n")
    users = Users(password_file=str(file), clock=clock)
    replaced(file, "a:SECRET\n")
    clock.now += 1
    assert can_log_in(users, "a", "SECRET")
    assert not can_log_in(users, "a", "secret")


def test_an_updated_kubernetes_secret_is_reloaded(tmp_path: Path, clock: Clock) -> None:
    """The file links to ``..data/users``, and ``..data`` is a link that Kubernetes replaces."""
    for version, text in (("1", "a:secret\n"), ("2", "b:secret\n")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "users").write_text(text)
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "users").symlink_to("..data/users")
    users = Users(password_file=str(tmp_path / "users"), clock=clock)
    assert users.names() == ["a"]
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    clock.now += 1
    assert users.names() == ["b"]


def test_files_are_checked_at_most_once_a_second(file: Path, clock: Clock) -> None:
    file.write_text("a:secret\n")
    users = Users(password_file=str(file), clock=clock)
    file.write_text("second:secret\n")
    clock.now += 0.9
    assert users.names() == ["a"]
    clock.now += 0.1
    assert users.names() == ["second"]
    file.write_text("the-third:secret\n")
    clock.now += 0.9
    assert users.names() == ["second"]


@pytest.mark.parametrize(
    ("break_", "reason"),
    [
        pytest.param(lambda path: path.write_text("b:secret\n"), "line 1: not a bcrypt hash", id="broken"),
        pytest.param(lambda path: path.write_text(""), "contains no users", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff"), "not UTF-8", id="not-utf-8"),
        pytest.param(lambda path: path.unlink(), "No such file or directory", id="missing"),
    ],
)
def test_an_invalid_version_is_ignored_and_logged_once(
    break_: Callable[[Path], object], reason: str, file: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    file.write_text(f"a:{HASH}\n")
    users = Users(auth_file=str(file), clock=clock)
    break_(file)
    for _ in range(3):
        clock.now += 1
        assert can_log_in(users, "a", "secret")
    [(level, line)] = lines(log)
    assert level == "ERROR"
    assert line.startswith(f"--auth_file: {str(file)!r}: {reason}")
    assert line.endswith("; keeping the previous users")
    file.write_text("another broken one\n")
    clock.now += 1
    assert can_log_in(users, "a", "secret")
    assert [level for level, _ in lines(log)] == ["ERROR"]
    replaced(file, f"b:{HASH}\n")
    clock.now += 1
    assert users.names() == ["b"]
    assert [level for level, _ in lines(log)] == ["INFO"]


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def fifo_with_a_writer(path: Path) -> None:
    """Create a FIFO that has no end until the writer closes it."""
    fifo(path)
    os.open(path, os.O_RDWR)


def linked_to(target: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return replace


def unix_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


OPTIONS = {"password_file": "basic_auth_file", "auth_file": "auth_file"}
NOT_REGULAR = "not a regular file"


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        pytest.param(fifo, NOT_REGULAR, id="fifo"),
        pytest.param(fifo_with_a_writer, NOT_REGULAR, id="fifo-with-a-writer"),
        pytest.param(linked_to("/dev/zero"), NOT_REGULAR, id="dev-zero"),
        pytest.param(linked_to("/dev/null"), NOT_REGULAR, id="dev-null"),
        pytest.param(linked_to("/dev/tty"), "", id="dev-tty"),
        pytest.param(linked_to("/dev/ptmx"), NOT_REGULAR, id="dev-ptmx"),
        pytest.param(linked_to("users"), "Too many levels of symbolic links", id="link-to-itself"),
        pytest.param(unix_socket, "No such device or address", id="unix-socket"),
        pytest.param(folder, "Is a directory", id="folder"),
        pytest.param(huge, "larger than the maximum of 1 MB", id="huge"),
        pytest.param(lambda path: path.write_text(f"{'[' * 1000}\nbasic_auth_users:\n"), "line 1: ", id="nested-yaml"),
    ],
)
@pytest.mark.parametrize("option", ["password_file", "auth_file"])
def test_previous_users_are_kept_if_the_file_becomes_unreadable(
    replace: Callable[[Path], object],
    reason: str,
    option: str,
    tmp_path: Path,
    clock: Clock,
    log: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "users"
    file.write_text(f"a:{HASH}\n")
    users = Users(**{option: str(file)}, clock=clock)
    password = "secret" if option == "auth_file" else HASH
    replace(file)
    for _ in range(3):
        clock.now += 1
        assert can_log_in(users, "a", password)
    [(level, line)] = lines(log)
    assert level == "ERROR"
    assert line.startswith(f"--{OPTIONS[option]}: {str(file)!r}: {reason}")
    assert line.endswith("; keeping the previous users")
    if not file.is_dir():
        file.unlink()
        file.write_text("b:secret\n" if option == "password_file" else f"b:{HASH}\n")
        clock.now += 1
        assert users.names() == ["b"]


def test_a_version_with_a_duplicate_user_is_ignored_until_resolved(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    passwords, hashes = tmp_path / "passwords", tmp_path / "hashes"
    passwords.write_text("a:secret\nb:secret\n")
    hashes.write_text(f"c:{HASH}\n")
    users = Users(password_file=str(passwords), auth_file=str(hashes), clock=clock)
    hashes.write_text(f"b:{OTHER}\nc:{HASH}\n")
    for _ in range(3):
        clock.now += 1
        assert can_log_in(users, "b", "secret")
    assert [level for level, _ in lines(log)] == ["ERROR"]
    passwords.write_text("a:secret\n")
    clock.now += 1
    assert users.names() == ["a", "b", "c"]
    assert can_log_in(users, "b", "other")
    assert [level for level, _ in lines(log)] == ["INFO"]


def test_an_invalid_file_does_not_block_reloading_another(tmp_path: Path, clock: Clock) -> None:
    passwords, hashes = tmp_path / "passwords", tmp_path / "hashes"
    passwords.write_text("a:secret\n")
    hashes.write_text(f"b:{HASH}\n")
    users = Users(password_file=str(passwords), auth_file=str(hashes), clock=clock)
    passwords.write_text("broken\n")
    hashes.write_text(f"new:{HASH}\n")
    clock.now += 1
    assert users.names() == ["a", "new"]


def test_a_world_readable_file_is_logged_with_the_remedy(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "our users"
    file.write_text("a:secret\n")
    file.chmod(0o644)
    users = Users(password_file=str(file), clock=clock)
    [(level, line)] = lines(log)
    assert level == "WARNING"
    assert line.endswith(f": world-readable; run: chmod o-r '{file}'")
    file.write_text("a:secret\nb:secret\n")
    clock.now += 1
    assert users.names() == ["a", "b"]
    assert [level for level, _ in lines(log)] == ["INFO"], "the warning is not repeated"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440])
def test_other_modes_are_not_logged(mode: int, file: Path, log: pytest.LogCaptureFixture) -> None:
    file.write_text("a:secret\n")
    file.chmod(mode)
    Users(password_file=str(file))
    assert lines(log) == []


def test_a_pipe_is_read_only_once(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    """The pipe of ``--basic_auth_file=<(pass show flower)`` would be empty or block if it were read again."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"a:secret\n")
        os.close(writing)
        users = Users(password_file=f"/dev/fd/{reading}", clock=clock)
        clock.now += 1
        assert users.names() == ["a"]
        assert lines(log) == []
    finally:
        os.close(reading)


@pytest.mark.parametrize("reading", ["pipe", "fifo"])
def test_start_up_waits_for_a_pipe(reading: str, tmp_path: Path) -> None:
    """The program at its other end may be slow, and write in several pieces."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    pipe = os.pipe() if reading == "pipe" else None

    def write() -> None:
        with open(pipe[1] if pipe else path, "wb", buffering=0) as file:
            for piece in (b"a:sec", b"ret\nb:other\n"):
                file.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    users = Users(password_file=f"/dev/fd/{pipe[0]}" if pipe else str(path))
    writer.join()
    if pipe:
        os.close(pipe[0])
    assert users.names() == ["a", "b"]


def test_an_endless_device_is_rejected() -> None:
    with pytest.raises(CredentialsError, match=r"^--auth_file: '/dev/zero': larger than the maximum of 1 MB$"):
        Users(auth_file="/dev/zero")


def test_files_are_read_up_to_the_maximum_size(file: Path) -> None:
    size = 1024 * 1024
    file.write_text(f"a:{HASH}\n" + "#" * (size - len(HASH) - 3))
    assert Users(auth_file=str(file)).names() == ["a"]
    file.write_text(f"a:{HASH}\n" + "#" * (size - len(HASH) - 2))
    with pytest.raises(CredentialsError, match="larger than the maximum of 1 MB"):
        Users(auth_file=str(file))
