"""Errors of the command line and their exit statuses."""

from __future__ import annotations

import click


class InputError(click.ClickException):
    """Invalid input, such as an option or the configuration; the message is one line."""

    exit_code = 2


class MachineError(click.ClickException):
    """A failure of the environment for valid input, such as a port in use."""

    exit_code = 1
