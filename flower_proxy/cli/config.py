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

# Paths are not checked, since flower-proxy may run on another machine
_OPTIONS = {name: replace(option, check=None) if option.is_path else option for name, option in OPTIONS.items()}
# URLs may contain a password, so the printed command leaves them to the environment
_CELERY_VARIABLES = {"broker": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}
_CELERY_OPTIONS = {"app": "-A", "loader": "--loader", "config": "--config", "workdir": "--workdir"}
_CELERY_FLAGS = {"quiet": "--quiet", "skip_checks": "--skip-checks"}
# The application if neither -A nor --broker is given
_EXAMPLE_APP = "server"

# Fits a terminal of 80 columns
_TARGET_LIST = textwrap.fill(", ".join(TARGETS), 70, break_on_hyphens=False)
# click rewraps paragraphs that do not begin with \b
_HELP = f"""Print a configuration file for TARGET and the given options.

\b
TARGET is one of
{_TARGET_LIST}.

Give the options with which flower-proxy will run (see flower-proxy --help) and the options below. The output is a
complete file. Its first comment has the matching flower-proxy command, where to save the file, and the commands that
test and load it.
"""

_OWN: list[click.Parameter] = [
    click.Argument(
        ["target"],
        metavar="TARGET",
        default="",
        shell_complete=lambda ctx, param, incomplete: [name for name in TARGETS if name.startswith(incomplete)],
    ),
    click.Option(["--keep/--strip"], default=True, help="the proxy keeps or strips the prefix  [default: keep]"),
    click.Option(["--server_name"], default=EXAMPLE_HOST, show_default=True, help="the public host name"),
    click.Option(["--tls"], is_flag=True, help="serve HTTPS at the proxy, with certbot's certificate paths"),
    click.Option(
        ["--forward_auth"], default="", metavar="URL", help="the identity provider, such as http://127.0.0.1:4180"
    ),
    click.Option(["--proxy_basic_auth"], is_flag=True, help="HTTP Basic authentication at the proxy, with --auth_file"),
    click.Option(
        ["--snippet"], is_flag=True, help="print only the part to include in an existing server, virtual host or site"
    ),
    click.Option(
        ["--socket_group"],
        default=SOCKET_GROUP,
        show_default=True,
        help="the proxy's group, which may connect to the unix socket",
    ),
]

# Fields of DeploymentSpec that are named like their options
_PLAIN = ("server_name", "tls", "forward_auth", "proxy_basic_auth", "snippet", "socket_group")


class _ConfigCommand(SettingsCommand):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show only the options of this command, without those of flower-proxy."""
        records = [param.get_help_record(ctx) for param in [*_OWN[1:], *self.get_params(ctx)[-1:]]]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record])


def _config(target: str, keep: bool, **given: Any) -> None:
    """Print the configuration."""
    if target not in TARGETS:
        meant = nearest(target, TARGETS, likeness=0.6)
        hint = f"; did you mean {meant}?" if meant else ""
        raise InputError(f"TARGET: {target!r} is not one of {', '.join(TARGETS)}{hint}")
    if not (given["app"] or given["broker"]):
        given["app"] = _EXAMPLE_APP
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
    """Return the project in ``--workdir`` or the current folder if it has the application, else an example.

    :param app: the value of ``-A``.
    :param workdir: the value of ``--workdir``, which may be a folder on another machine.
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
    """Refuse contradictory options, as flower-proxy does at start-up."""
    defaults = {name: option.default for name, option in _OPTIONS.items()}
    try:
        refuse_contradictions(SimpleNamespace(**{**defaults, **values}))
    except ValueError as error:
        raise OptionError(str(error)) from None


config = _ConfigCommand(
    "config",
    callback=_config,
    params=[*_OWN, *celery_options(), *setting_options()],
    help=_HELP,
)
