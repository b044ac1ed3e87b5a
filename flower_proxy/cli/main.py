"""The command line: ``flower-proxy``, ``python -m flower_proxy``, ``celery flower-proxy``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

import click
from tornado.options import OptionParser

from flower_proxy.cli.errors import InputError
from flower_proxy.cli.parameters import SettingsCommand, celery_options, notes_of, setting_options, words_of
from flower_proxy.cli.signals import INTERRUPTED, exit_on_interrupt
from flower_proxy.settings.loader import OptionError, installed_options, make_parser, nearest, read

_MAX_SUMMARY = 1000  # characters; longer than any summary
_COMMANDS = ("demo", "hash-password", "config", "check")
# click rewraps paragraphs that do not begin with \b
_HELP = """Run Flower, the web monitor for Celery, at any URL and behind any reverse proxy.

\b
Examples:
  flower-proxy -A server --address=127.0.0.1 --url_prefix=flower
  flower-proxy config nginx --url_prefix=flower --tls
"""


class SettingsGroup(SettingsCommand, click.Group):
    """A settings command with subcommands, each of which is imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands in the order of ``--help``."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand."""
        if cmd_name not in _COMMANDS:
            if ctx.resilient_parsing:
                return None
            meant = nearest(cmd_name, _COMMANDS, likeness=0.6)
            hint = f"did you mean {meant}?" if meant else "separate the values of a list with commas only"
            raise InputError(f"{cmd_name!r} is neither a command nor the value of an option; {hint}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"flower_proxy.cli.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Pass options before a subcommand on to it, as in ``celery -A server COMMAND``."""
        name, command, rest = super().resolve_command(ctx, args)
        words = words_of(ctx)
        before = [word for word in words[: len(words) - len(args)] if word != "--"]
        if before and command and not isinstance(command, SettingsCommand):
            option = before[0].partition("=")[0]
            raise InputError(f"{option}: place options of {name} after it; see flower-proxy {name} --help")
        return name, command, [*before, *rest]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands with their whole summaries."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(_MAX_SUMMARY))
                    for name in self.list_commands(ctx)
                    if (command := self.get_command(ctx, name))
                ]
            )


def _run(
    app: str | None,
    broker: str | None,
    result_backend: str | None,
    loader: str | None,
    config: str | None,
    workdir: str | None,
    no_color: bool,
    quiet: bool,
    skip_checks: bool,
    **given: tuple[str, ...],
) -> None:
    """Start the server, unless a subcommand is invoked."""
    if click.get_current_context().invoked_subcommand:
        return
    if workdir:
        try:
            os.chdir(workdir)
        except OSError as error:
            raise InputError(f"--workdir: {workdir!r}: {error.strerror}") from None
    # The celery command passes its options on in the same variables
    for name, value in (
        ("CELERY_BROKER_URL", broker),
        ("CELERY_RESULT_BACKEND", result_backend),
        ("CELERY_LOADER", loader),
        ("CELERY_CONFIG_MODULE", config),
        ("CELERY_SKIP_CHECKS", "true" if skip_checks else None),
    ):
        if value:
            os.environ[name] = value
    options, notes = _read(given)
    # This import loads Flower
    from flower_proxy.cli.serve import serve

    serve(app, options, notes, no_color=no_color, quiet=quiet)


def _read(given: Mapping[str, Sequence[str]]) -> tuple[OptionParser, list[str]]:
    """Return the settings, and warnings for the log."""
    options = installed_options()
    try:
        values, notes = read(options, environ=os.environ, given={name: texts for name, texts in given.items() if texts})
    except OptionError as error:
        raise InputError(str(error)) from None
    return make_parser(options, values), [*notes_of(click.get_current_context()), *notes]


command = SettingsGroup(
    "flower-proxy",
    callback=_run,
    params=[*celery_options(), *setting_options()],
    help=_HELP,
    invoke_without_command=True,
    starts_flower=True,
)


def _run_in_celery(**given: tuple[str, ...]) -> None:
    exit_on_interrupt()
    celery_context = click.get_current_context().obj
    options, notes = _read(given)
    from flower_proxy.cli.serve import serve

    serve(celery_context.app, options, notes, no_color=celery_context.no_color, quiet=celery_context.quiet)


celery_command = SettingsCommand(
    "flower-proxy", callback=_run_in_celery, params=setting_options(), help=_HELP, starts_flower=True
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The exit status is 0 after a signal that stops the server, 1 for a failure of the environment, 2 for invalid input,
    and 130 after Ctrl-C in any other phase.
    """
    try:
        status = command.main(args, prog_name="flower-proxy", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"flower-proxy: {' '.join(error.format_message().split())}", err=True)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = INTERRUPTED
    sys.exit(status or 0)
