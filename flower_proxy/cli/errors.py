"""The errors of the command line, each with its exit status."""

from __future__ import annotations

import click


class InputError(click.ClickException):
    """What was asked for cannot be done; the message is one line."""

    exit_code = 2


class MachineError(click.ClickException):
    """What was asked for is fine, but the machine is not: a port in use, a socket that cannot be made."""

    exit_code = 1
