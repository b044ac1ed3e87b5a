"""``flower-proxy config``: configuration files for reverse proxies, service managers and Prometheus."""

from __future__ import annotations

import os
import sys
import sysconfig
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from flower_proxy.auth.factory import refuse_contradictions
from flower_proxy.cli.errors import InputError
from flower_proxy.cli.parameters import SettingsCommand, celery_options, setting_options
from flower_proxy.deploy.plan import (
    EXAMPLE_HOST,
    EXAMPLE_PROJECT,
    SOCKET_GROUP,
    DeploymentError,
    DeploymentSpec,
    Project,
    plan,
)
from flower_proxy.deploy.render import render
from flower_proxy.deploy.targets import TARGETS
from flower_proxy.settings.loader import OptionError, nearest, read
from flower_proxy.settings.options import OPTIONS

# A path is one of the machine that flower-proxy will run on, which need not be this one
_OPTIONS = {name: replace(option, check=None) if option.is_path else option for name, option in OPTIONS.items()}
# Celery reads these instead of options on the command line, since a URL may contain a password
_CELERY_VARIABLES = {"broker": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}
_CELERY_OPTIONS = {"app": "-A", "loader": "--loader", "config": "--config", "workdir": "--workdir"}
_CELERY_FLAGS = {"quiet": "--quiet", "skip_checks": "--skip-checks"}
# Printed if neither an application nor a broker is given
_SOME_APP = "server"

# Short enough for a terminal of 80 columns, and not broken at a hyphen
_TARGET_LIST = textwrap.fill(", ".join(TARGETS), 70, subsequent_indent=" " * 4, break_on_hyphens=False)

_OWN: list[click.Parameter] = [
    click.Argument(
        ["target"],
        metavar="TARGET",
        default="",
        shell_complete=lambda ctx, param, incomplete: [name for name in TARGETS if name.startswith(incomplete)],
    ),
    click.Option(["--keep/--strip"], default=True, help="the proxy keeps the prefix, or takes it off  [default: keep]"),
    click.Option(["--server_name"], default=EXAMPLE_HOST, show_default=True, help="the public host's name"),
    click.Option(["--tls"], is_flag=True, help="the proxy serves HTTPS, with certificates as certbot names them"),
    click.Option(
        ["--forward_auth"], default="", metavar="URL", help="an identity provider, such as http://127.0.0.1:4180"
    ),
    click.Option(["--proxy_basic_auth"], is_flag=True, help="the proxy asks for the password too, out of --auth_file"),
    click.Option(
        ["--snippet"], is_flag=True, help="print only the part for a server, virtual host or site of your own"
    ),
    click.Option(
        ["--socket_group"],
        default=SOCKET_GROUP,
        show_default=True,
        help="the group that may connect to the unix socket: the proxy's",
    ),
]

# Fields of DeploymentSpec with the names of the options
_PLAIN = ("server_name", "tls", "forward_auth", "proxy_basic_auth", "snippet", "socket_group")


class _ConfigCommand(SettingsCommand):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show its own options; all others are those of flower-proxy itself."""
        records = [param.get_help_record(ctx) for param in [*_OWN[1:], *self.get_params(ctx)[-1:]]]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record])


def _config(target: str, keep: bool, **given: Any) -> None:
    """Print the configuration that fits the options.

    \b
    TARGET is one of
    {targets}.

    Say how flower-proxy is to be started, with any of its own options (flower-proxy --help), and how it is to be
    reached. What is printed is complete, and begins with the command that belongs to it, the file to save it as, and
    the commands that test and load it.
    """
    if target not in TARGETS:
        meant = nearest(target, TARGETS, likeness=0.6)
        hint = f"; did you mean {meant}?" if meant else ""
        raise InputError(f"TARGET: {target!r} is none of {', '.join(TARGETS)}{hint}")
    if not (given["app"] or given["broker"]):
        given["app"] = _SOME_APP
    try:
        settings = {name: texts for name, texts in given.items() if name in _OPTIONS and texts}
        values, notes = read(_OPTIONS, environ=os.environ, given=settings)
        spec = DeploymentSpec(
            values=values,
            celery={option: given[name] for name, option in _CELERY_OPTIONS.items() if given[name]}
            | {flag: None for name, flag in _CELERY_FLAGS.items() if given[name]},
            secrets=[variable for name, variable in _CELERY_VARIABLES.items() if given[name]],
            strip=not keep,
            project=_project(given["app"], given["workdir"]),
            **{name: given[name] for name in _PLAIN},
        )
        deployment = plan(TARGETS[target], spec, _OPTIONS)
        _check(values)
        text = render(TARGETS[target], deployment)
    except (OptionError, DeploymentError) as error:
        raise InputError(str(error)) from None
    for note in notes:
        click.echo(note, err=True)
    click.echo(text, nl=False)


def _project(app: str | None, workdir: str | None) -> Project:
    """Return the project: the one in ``--workdir`` or in the current folder, if the application is there.

    :param app: the value of ``-A``.
    :param workdir: that of ``--workdir``, which may be a folder of another machine.
    """
    folder = Path(workdir) if workdir else Path.cwd()
    if app and folder.is_absolute() and _has_module(folder, app):
        scripts = Path(sysconfig.get_path("scripts"))
        return Project(folder=str(folder), venv=str(scripts.parent), python=sys.base_prefix)
    return Project(folder=str(folder), venv=str(folder / ".venv")) if workdir else EXAMPLE_PROJECT


def _has_module(folder: Path, app: str) -> bool:
    name = app.partition(":")[0].partition(".")[0]
    return name.isidentifier() and any(glob(pattern, root_dir=folder) for pattern in (f"{name}.py", f"{name}/*.py"))


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what flower-proxy would not start with."""
    defaults = {name: option.default for name, option in _OPTIONS.items()}
    try:
        refuse_contradictions(SimpleNamespace(**{**defaults, **values}))
    except ValueError as error:
        raise OptionError(str(error)) from None


config = _ConfigCommand(
    "config",
    callback=_config,
    params=[*_OWN, *celery_options(), *setting_options()],
    help=(_config.__doc__ or "").format(targets=_TARGET_LIST),
)
