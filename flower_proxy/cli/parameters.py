"""Parameters shared by the commands: Celery's options, and one parameter per option of the table."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import click
from click.shell_completion import CompletionItem

from flower_proxy import __version__
from flower_proxy.cli.errors import InputError
from flower_proxy.settings.loader import installed_options, nearest
from flower_proxy.settings.options import OPTIONS, Option
from flower_proxy.settings.validators import parse_bool

# Keys of Context.meta
_WORDS, _NOTES = f"{__name__}.words", f"{__name__}.notes"
# Celery's log levels; Tornado lacks FATAL
_LEVELS = {level: level for level in ("debug", "info", "warning", "error", "critical")} | {"fatal": "critical"}
_METAVARS = {int: "NUMBER", float: "NUMBER", bool: "[BOOL]", dict: "JSON"}
_VERSIONS = (
    f"flower-proxy %(version)s (Flower {version('flower')}, Celery {version('celery')},"
    f" Tornado {version('tornado')}, Python {platform.python_version()})"
)


class SettingOption(click.Option):
    """The parameter for an option of the table, which validates the text itself."""

    def __init__(self, setting: Option) -> None:
        self.setting = setting
        super().__init__(
            [f"--{setting.name}"],
            multiple=True,
            # click would check that the path is readable, which a unix socket need not be
            type=click.Path(readable=False) if setting.is_path else click.STRING,
            metavar="LIST" if setting.multiple else _METAVARS.get(setting.type, "TEXT"),
            help=setting.help,
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the option with its help, default and environment variable."""
        # click wraps lines at spaces
        default = self.setting.shown_default.replace(",", ", ")
        notes = [f"default: {default}"] if default else []
        return f"--{self.setting.name} {self.metavar}", f"{self.help}  [{'; '.join([*notes, self.setting.variable])}]"


class SettingsCommand(click.Command):
    """A command that accepts options in any order and spelling, and groups them in ``--help``.

    :param starts_flower: whether to accept options that only the installed Flower declares.
    """

    def __init__(self, *args: Any, starts_flower: bool = False, **kwargs: Any) -> None:
        kwargs["context_settings"] = {
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "max_content_width": 120,
            "help_option_names": ["-h", "--help"],
        }
        super().__init__(*args, **kwargs)
        self._starts_flower = starts_flower

    @property
    def _settings(self) -> dict[str, Option]:
        return {param.setting.name: param.setting for param in self.params if isinstance(param, SettingOption)}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words; raise InputError, with a suggestion, for those that are not understood."""
        if ctx.resilient_parsing:
            args = _join_assignments(args)
        try:
            words, notes = self._spelled_out(args)
            ctx.meta[_WORDS] = words
            ctx.meta.setdefault(_NOTES, {}).update(dict.fromkeys(notes))
            # click's parser consumes its list
            return super().parse_args(ctx, words.copy())
        except click.NoSuchOption as error:
            known = installed_options() if self._starts_flower else {}
            if later := [option for name, option in known.items() if name not in self._settings]:
                self.params += setting_options(later)
                return self.parse_args(ctx, args)
            names = [name for param in self.params for name in param.opts if name.startswith("--")]
            meant = nearest("--" + error.option_name.lstrip("-"), names, likeness=0.6)
            hint = f"did you mean {meant}?" if meant else "run flower-proxy --help for a list"
            raise InputError(f"{error.option_name}: unknown option; {hint}") from None
        except click.UsageError as error:
            if ctx.resilient_parsing:
                return super().parse_args(ctx, args)
            raise InputError(error.format_message()) from None

    def _spelled_out(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Turn ``--debug`` into ``--debug=true``, ``--debug no`` into ``--debug=no``, ``-port=1`` into ``--port=1``.

        :returns: the words, and warnings for the log about renamed options.
        :raises click.UsageError: a value is missing, or a word is ambiguous.
        """
        settings = self._settings
        with_value = [name for param in self.params if not getattr(param, "is_flag", True) for name in param.opts]
        with_value += [name[:2] + name[2:].replace("_", "-") for name in with_value]
        spelled: list[str] = []
        notes: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            if level := _pop_loglevel(word, words):
                word = f"--logging={level}"
                notes.append(f"Interpreting -l or --loglevel as {word}, the name of the option in Flower")
            name, equals, _ = word.lstrip("-").replace("-", "_").partition("=")
            option = settings.get(name)
            if word.startswith("-") and not word.startswith("--") and len(name) > 1:
                # Flower accepts a single dash, but click would parse -basic_auth as -b with a value
                if option is None and nearest(name, settings):
                    raise click.NoSuchOption(f"-{name}")
                word = f"-{word}" if option else word
            if word.startswith("--") and not equals and option and option.type is bool:
                word += "=true" if not words or not _is_bool(words[0]) else f"={words.pop(0)}"
            elif word in with_value and words and words[0].startswith("--"):
                raise click.UsageError(f"{word}: the value is missing; write {word}=VALUE if it starts with dashes")
            spelled.append(word)
        return spelled, notes

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete options with dashes or underscores, as in the incomplete word."""
        dashes, typed = incomplete[:2], incomplete[2:]
        separator = next((char for char in typed if char in "-_"), "")
        if dashes != "--" or not separator:
            return super().shell_complete(ctx, incomplete)
        items = super().shell_complete(ctx, dashes)
        for item in items:
            item.value = dashes + re.sub("[-_]", separator, item.value[2:])
        return [item for item in items if item.value.startswith(incomplete)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, after the subcommands."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.setting.group if isinstance(param, SettingOption) else "Celery and general"
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def words_of(ctx: click.Context) -> list[str]:
    """Return the words of the command line after normalization."""
    return list(ctx.meta.get(_WORDS, ()))


def notes_of(ctx: click.Context) -> list[str]:
    """Return warnings for the log about the command line."""
    return list(ctx.meta.get(_NOTES, ()))


def _pop_loglevel(word: str, words: list[str]) -> str:
    """Return the level for ``--logging`` if a word is Celery's ``-l`` or ``--loglevel``; else an empty text.

    The value may be the next word, which is then removed from `words`.

    :raises click.UsageError: the value is missing.
    """
    name, equals, value = word.partition("=")
    if name in ("-l", "--loglevel"):
        if not equals and not words:
            raise click.UsageError(f"{word}: the value is missing; add a level such as info")
        level = (value if equals else words.pop(0)).lower()
        return _LEVELS.get(level, level)
    # Distinguishes Celery's -ldebug from Flower's -logging=debug
    return _LEVELS.get(word[2:].lower(), "") if word.startswith("-l") else ""


def _join_assignments(words: Sequence[str]) -> list[str]:
    """Join ``--port``, ``=`` and ``5555``, which bash splits for completion."""
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _is_bool(text: str) -> bool:
    try:
        parse_bool(text)
    except ValueError:
        return False
    return True


def _celery_option(*names: str, envvar: str, help: str) -> click.Option:
    # The celery command reads both names, as its group has auto_envvar_prefix="CELERY"
    return click.Option(names, envvar=[envvar, f"CELERY_{envvar}"], show_envvar=True, help=help)


def celery_options() -> list[click.Parameter]:
    """Return the parameters shared with ``celery``, and ``--version``."""
    general = click.Command(
        None,
        params=[
            _celery_option("-A", "--app", envvar="APP", help="the Celery application, as for celery -A"),
            _celery_option("-b", "--broker", envvar="BROKER_URL", help="the broker URL"),
            _celery_option("--result-backend", envvar="RESULT_BACKEND", help="the result backend URL"),
            _celery_option("--loader", envvar="LOADER", help="the loader class of the application"),
            _celery_option("--config", envvar="CONFIG_MODULE", help="Celery's configuration module"),
            click.Option(["--workdir"], type=click.Path(), help="the working directory"),
            click.Option(
                ["-C", "--no-color"], is_flag=True, envvar="NO_COLOR", show_envvar=True, help="log without colours"
            ),
            click.Option(["-q", "--quiet"], is_flag=True, help="omit the start-up summary"),
            click.Option(
                ["--skip-checks"],
                is_flag=True,
                envvar="SKIP_CHECKS",
                show_envvar=True,
                help="skip Django's system checks",
            ),
        ],
    )
    return click.version_option(__version__, message=_VERSIONS, help="show versions")(general).params


def setting_options(options: Iterable[Option] = OPTIONS.values()) -> list[click.Parameter]:
    """Return a parameter for each option; by default, for the whole table."""
    return [SettingOption(option) for option in options]
