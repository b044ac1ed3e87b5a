"""The command line: ``flower-proxy``, ``python -m flower_proxy``, ``celery flower-proxy``."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Sequence
from typing import Any

import celery
import click
import tornado
from celery.utils.imports import symbol_by_name
from click.core import ParameterSource
from tornado.options import options as parser

from flower_proxy import __version__
from flower_proxy._flower import flower_version
from flower_proxy.cli.serve import InputError, find_app, serve
from flower_proxy.settings.loader import OptionError, nearest, read
from flower_proxy.settings.options import Option, declare, parse_bool

OPTIONS = declare(parser)
_COMMANDS = {
    "demo": "flower_proxy.cli.demo:demo",
    "hash-password": "flower_proxy.cli.hash_password:hash_password",
    "config": "flower_proxy.cli.config:config",
    "check": "flower_proxy.cli.check:check",
}
_METAVARS = {int: "NUMBER", float: "NUMBER", bool: "[BOOL]"}


class SettingOption(click.Option):
    """An option of Flower's or ours; click leaves its text as it is."""

    def __init__(self, setting: Option) -> None:
        self.setting = setting
        super().__init__(
            [f"--{setting.name}"],
            multiple=True,
            type=click.Path() if setting.is_path else click.STRING,
            metavar="LIST" if setting.multiple else _METAVARS.get(setting.type, "TEXT"),
            help=setting.help,
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        default = self.setting.shown_default
        notes = [f"default: {default}"] if default else []
        return f"--{self.setting.name} {self.metavar}", f"{self.help}  [{'; '.join([*notes, self.setting.variable])}]"


class SettingsCommand(click.Command):
    """Takes options in any order and spelling, and shows them under their headings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = {
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "max_content_width": 120,
            "help_option_names": ["-h", "--help"],
        }
        super().__init__(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, self._spelled_out(args))
        except click.NoSuchOption as error:
            names = [name for param in self.params for name in param.opts if name.startswith("--")]
            meant = nearest("--" + error.option_name.lstrip("-"), names, likeness=0.6)
            hint = f"did you mean {meant}?" if meant else "see --help"
            raise InputError(f"there is no option {error.option_name}; {hint}") from None
        except click.UsageError as error:
            raise InputError(error.format_message()) from None

    def _spelled_out(self, args: Sequence[str]) -> list[str]:
        """Turn ``--debug`` into ``--debug=true``, ``--debug no`` into ``--debug=no``, ``-port=1`` into ``--port=1``.

        :raises click.UsageError: a value is missing, or a word would be taken for something else than was meant.
        """
        with_value = [name for param in self.params if not getattr(param, "is_flag", True) for name in param.opts]
        with_value += [name[:2] + name[2:].replace("_", "-") for name in with_value]
        spelled: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            name, equals, _ = word.lstrip("-").replace("-", "_").partition("=")
            option = OPTIONS.get(name)
            if word.startswith("-") and not word.startswith("--") and len(name) > 1:
                # Flower takes one dash for two; click would read -basic_auth as -b with a value
                if option is None and nearest(name, OPTIONS):
                    raise click.NoSuchOption(f"-{name}")
                word = f"-{word}" if option else word
            if word.startswith("--") and not equals and option and option.type is bool:
                word += "=true" if not words or not _is_bool(words[0]) else f"={words.pop(0)}"
            elif word in with_value and words and words[0].startswith("--"):
                raise click.UsageError(f"{word}: its value is missing; if it begins with dashes, write {word}=VALUE")
            spelled.append(word)
        return spelled

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.setting.group if isinstance(param, SettingOption) else "Celery's own, and general"
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


class SettingsGroup(SettingsCommand, click.Group):
    """The same with other commands beside it, which are imported only when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in _COMMANDS:
            meant = nearest(cmd_name, _COMMANDS, likeness=0.6)
            hint = f"did you mean {meant}?" if meant else "lists are written with commas, without spaces"
            raise InputError(f"{cmd_name!r} is neither a command nor an option's value; {hint}")
        command: click.Command = symbol_by_name(_COMMANDS[cmd_name])
        return command


def _is_bool(text: str) -> bool:
    try:
        parse_bool(text)
    except ValueError:
        return False
    return True


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(
            f"flower-proxy {__version__} (Flower {flower_version}, Celery {celery.__version__},"
            f" Tornado {tornado.version}, Python {platform.python_version()})"
        )
        ctx.exit()


def _celery_option(*names: str, envvar: str, help: str) -> click.Option:
    # Celery's front reads both, its group being called with auto_envvar_prefix="CELERY"
    return click.Option(names, envvar=[envvar, f"CELERY_{envvar}"], show_envvar=True, help=help)


def celery_options() -> list[click.Parameter]:
    return [
        _celery_option("-A", "--app", envvar="APP", help="the Celery application, as for celery -A"),
        _celery_option("-b", "--broker", envvar="BROKER_URL", help="the broker's URL"),
        _celery_option("--result-backend", envvar="RESULT_BACKEND", help="the result backend's URL"),
        _celery_option("--loader", envvar="LOADER", help="the loader of the application"),
        _celery_option("--config", envvar="CONFIG_MODULE", help="Celery's configuration module"),
        click.Option(["--workdir"], type=click.Path(), help="the folder to change to first"),
        click.Option(
            ["-C", "--no-color"], is_flag=True, envvar="NO_COLOR", show_envvar=True, help="log without colours"
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="do not say what is served where"),
        click.Option(
            ["--skip-checks"], is_flag=True, envvar="SKIP_CHECKS", show_envvar=True, help="skip Django's system checks"
        ),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="show versions"
        ),
    ]


def setting_options() -> list[click.Parameter]:
    return [SettingOption(option) for option in OPTIONS.values()]


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
    """Watch Celery's workers with Flower, at any URL, behind any reverse proxy."""
    context = click.get_current_context()
    if context.invoked_subcommand:
        before = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if before:
            raise InputError(f"--{before[0]}: options of {context.invoked_subcommand} stand behind it")
        return
    if workdir:
        try:
            os.chdir(workdir)
        except OSError as error:
            raise InputError(f"--workdir: {workdir!r}: {error.strerror}") from None
    # Celery's front hands these on in the same way
    for name, value in (
        ("CELERY_BROKER_URL", broker),
        ("CELERY_RESULT_BACKEND", result_backend),
        ("CELERY_LOADER", loader),
        ("CELERY_CONFIG_MODULE", config),
        ("CELERY_SKIP_CHECKS", "true" if skip_checks else None),
    ):
        if value:
            os.environ[name] = value
    notes = _apply(given)
    serve(find_app(app), parser, notes, no_color=no_color, quiet=quiet)


def _apply(given: dict[str, tuple[str, ...]]) -> list[str]:
    """Set Tornado's options, which Flower reads; return what is to be said in the log."""
    try:
        values, notes = read(OPTIONS, environ=os.environ, given={name: texts for name, texts in given.items() if texts})
    except OptionError as error:
        raise InputError(str(error)) from None
    for name, value in values.items():
        setattr(parser, name, value)
    return notes


command = SettingsGroup(
    "flower-proxy",
    callback=_run,
    params=[*celery_options(), *setting_options()],
    help=_run.__doc__,
    invoke_without_command=True,
)


def _run_in_celery(**given: tuple[str, ...]) -> None:
    front = click.get_current_context().obj
    notes = _apply(given)
    serve(front.app, parser, notes, no_color=front.no_color, quiet=front.quiet)


celery_command = SettingsCommand("flower-proxy", callback=_run_in_celery, params=setting_options(), help=_run.__doc__)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when told to stop, 1 if the machine is at fault, 2 if the input is."""
    try:
        status = command.main(args, prog_name="flower-proxy", standalone_mode=False)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(128 + signal.SIGINT)
    sys.exit(status or 0)


def _fail(message: str, status: int) -> None:
    click.echo(f"flower-proxy: {message}", err=True)
    sys.exit(status)
