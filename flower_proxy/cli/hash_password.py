"""``flower-proxy hash-password``: bcrypt hashes for ``--auth_file``."""

from __future__ import annotations

import re
import sys

import click

from flower_proxy.auth.passwords import COSTS, CredentialsError, check_user
from flower_proxy.auth.passwords import hash_password as make_hash
from flower_proxy.cli.errors import InputError, MachineError
from flower_proxy.cli.htpasswd_file import HtpasswdFile
from flower_proxy.cli.signals import interruptible


@click.command("hash-password")
@click.argument("user", required=False)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(readable=False),
    help="add or replace USER in this htpasswd file; a new file gets mode 0600",
)
@click.option(
    "--cost",
    type=click.IntRange(COSTS[0], COSTS[-1]),
    default=12,
    show_default=True,
    help="the bcrypt cost; each increment doubles the time per check",
)
def hash_password(user: str | None, output: str | None, cost: int) -> None:
    """Hash a password for --auth_file.

    Print a line with USER and the bcrypt hash, or only the hash without USER. With --output, update a file instead.

    Prompt for the password, or read it from standard input if that is not a terminal.
    """
    if output is not None and user is None:
        raise InputError("--output: USER is missing; add the user's name")
    try:
        if user is not None:
            check_user(user)
        file = None if output is None else HtpasswdFile(output)
        hashed = make_hash(ask_password(confirm=True) if sys.stdin.isatty() else read_password(), cost)
        if file is None:
            click.echo(hashed if user is None else f"{user}:{hashed}")
        else:
            click.echo(file.set_user(str(user), hashed), err=True)
    except CredentialsError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise MachineError(f"--output: cannot write {output!r}: {error.strerror}") from None


def ask_password(*, confirm: bool) -> str:
    """Prompt for a password on the terminal.

    :param confirm: prompt twice.
    :raises click.Abort: the user pressed Ctrl-C.
    """
    # The prompt goes to standard error, so that standard output can be appended to a file
    with interruptible():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))


def read_password() -> str:
    """Read the password from standard input.

    :raises CredentialsError: the input is not one line of UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise CredentialsError("the password is not UTF-8") from None
    password = re.sub(r"\r?\n\Z", "", text)
    if "\n" in password:
        raise CredentialsError("standard input has several lines; give the password on one line")
    return password
