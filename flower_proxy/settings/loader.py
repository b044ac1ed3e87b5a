"""Loading of settings from the environment, the configuration file, the command line, and embedding programs."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tornado.log import define_logging_options
from tornado.options import OptionParser

from flower_proxy.settings.options import AUTHENTICATION, ENV_PREFIX, OPTIONS, Option

UNAUTHENTICATED_API = "FLOWER_UNAUTHENTICATED_API"
"""The environment variable that disables authentication of stock Flower's API (mher/flower#1231)."""

FLOWER_VARIABLES = {
    UNAUTHENTICATED_API,
    "FLOWER_GITHUB_OAUTH_DOMAIN",
    "FLOWER_GITLAB_AUTH_ALLOWED_GROUPS",
    "FLOWER_GITLAB_MIN_ACCESS_LEVEL",
    "FLOWER_GITLAB_OAUTH_DOMAIN",
    "FLOWER_OAUTH2_OKTA_BASE_URL",
}
"""The environment variables that Flower reads in addition to those of its options."""

# Kubernetes and Docker links inject these for a service named "flower" or "flower-..." (mher/flower#738)
_INJECTED_NAME = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_INJECTED_VALUE = re.compile(r"(tcp|udp|sctp)://")


class OptionError(ValueError):
    """An invalid setting; the message is one line that names its source and what to do."""


def installed_options() -> dict[str, Option]:
    """Return the option table, followed by options that only the installed Flower declares.

    A later release of Flower may have options that the table lacks. They work on the command line, in the configuration
    file and in the environment, but ``--help`` and ``config`` do not list them. The call imports Flower.
    """
    from flower_proxy._flower import default_options, definitions

    later = {
        name: Option(name, defined.type, defined.default, defined.help or "", multiple=defined.multiple)
        for name, defined in definitions(default_options).items()
        if name not in OPTIONS
    }
    return {**OPTIONS, **later}


def make_parser(options: Mapping[str, Option], values: Mapping[str, Any]) -> OptionParser:
    """Return a new parser with the settings for Flower and Tornado; Tornado's global parser stays unchanged.

    The caller sets up logging with the parser's `run_parse_callbacks`.

    :param options: all options, by name.
    :param values: the values that are set, by name.
    """
    parser = OptionParser()
    define_logging_options(parser)
    for name, option in options.items():
        if name not in parser:
            parser.define(name, option.default, option.type, multiple=option.multiple)
    for name, value in values.items():
        setattr(parser, name, value)
    return parser


def read(
    options: Mapping[str, Option], *, environ: Mapping[str, str], given: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], list[str]]:
    """Read the settings; precedence: command line, configuration file, environment.

    :param options: all options, by name.
    :param environ: the environment.
    :param given: the values of the command line, by option name; several texts if an option was repeated.
    :returns: the values that are set, by name, and warnings for the log, one line each.
    :raises OptionError: a value is invalid, or an option is misspelt.
    """
    values, notes = _read_environment(options, environ)
    from_command_line = {name: _named(f"--{name}", options[name].parse, texts) for name, texts in given.items()}
    where = "--conf" if "conf" in from_command_line else "FLOWER_CONF"
    values |= _read_file(options, from_command_line.get("conf", values.get("conf")), where)
    values |= from_command_line
    _refuse_half_of_tls(values)
    return values, notes


def make_options(**settings: Any) -> OptionParser:
    """Return the options for an embedded `FlowerProxy`; environment and configuration file are not read.

    :param settings: values by option name, with underscores; other options have their defaults.
    :raises ValueError: an option does not exist or its value is invalid; the message is one line.
    """
    options = installed_options()
    values = {}
    for name, value in settings.items():
        if _is_of_command_line(name):
            raise OptionError(f"--{name}: available only on the command line; configure it in your program")
        if name not in options:
            meant = nearest(name, (known for known in options if not _is_of_command_line(known)), likeness=0.6)
            hint = f"did you mean {meant}?" if meant else "run flower-proxy --help for a list"
            raise OptionError(f"--{name}: unknown option; {hint}")
        if (accepted := _accept(options[name], value, f"--{name}")) is not None:
            values[name] = accepted
    _refuse_half_of_tls(settings)
    return make_parser(options, values)


def _is_of_command_line(name: str) -> bool:
    return name in ("broker_transport_options", "conf", "logging") or name.startswith("log_")


def _accept(option: Option, value: Any, where: str) -> Any:
    """Return the checked value; None keeps the default."""
    if value is None:
        if option.group == AUTHENTICATION:
            raise OptionError(f"{where}: None is not a value; set it, or leave it out to keep the default")
        return None
    if option.is_path and isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _named(where, option.parse, [value]) if isinstance(value, str) else _named(where, option.accept, value)


def _named(where: str, take: Callable[[Any], Any], value: Any) -> Any:
    """Call `take` with a value; an error names the source of the value."""
    try:
        return take(value)
    except ValueError as error:
        raise OptionError(f"{where}: {error}") from None


def _refuse_half_of_tls(values: Mapping[str, Any]) -> None:
    if bool(values.get("certfile")) != bool(values.get("keyfile")):
        raise OptionError("--certfile and --keyfile: TLS needs both; add the other one")
    if values.get("ca_certs") and not values.get("certfile"):
        raise OptionError("--ca_certs: TLS is not configured; add --certfile and --keyfile, or leave it out")


def nearest(name: str, names: Iterable[str], *, likeness: float = 0.85) -> str | None:
    """Return the most similar name.

    :param likeness: the minimum similarity, from 0 to 1; the default rarely matches another program's variable.
    :returns: None if no name is similar enough.
    """
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=likeness)), None)


def _read_environment(options: Mapping[str, Option], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values, injected = {}, []
    for variable in filter(lambda name: name.startswith(ENV_PREFIX), environ):
        name, text = variable.removeprefix(ENV_PREFIX).lower(), environ[variable]
        if variable in FLOWER_VARIABLES:
            continue
        if _INJECTED_NAME.fullmatch(name.upper()) or (name.endswith("port") and _INJECTED_VALUE.match(text)):
            injected.append(variable)
        elif name in options:
            values[name] = _named(variable, options[name].parse, [text])
        elif meant := nearest(name, options):
            raise OptionError(f"{variable}: unknown option; did you mean {options[meant].variable}?")
    notes = [f"Ignoring variables that Kubernetes or Docker set: {', '.join(sorted(injected))}"] if injected else []
    if environ.get(UNAUTHENTICATED_API):
        notes.append(f"{UNAUTHENTICATED_API} has no effect; use --no_auth if the reverse proxy authenticates users")
    return values, notes


def _read_file(options: Mapping[str, Option], conf: str | None, where: str) -> dict[str, Any]:
    default = options["conf"].default
    path = Path(conf or default).expanduser().absolute()
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not conf or conf == default:
            return {}
        raise OptionError(f"{where}: file {conf!r} does not exist") from None
    except (OSError, UnicodeError) as error:
        raise OptionError(f"{where}: {conf or path.name!r} cannot be read: {error}") from None
    namespace: dict[str, Any] = {"__file__": str(path)}
    try:
        code = compile(source, str(path), "exec")
        exec(code, namespace)  # noqa: S102  the configuration file is Python, as in Flower
    except (Exception, SystemExit) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise OptionError(f"{path}, line {_line_of(error, path)}: {type(error).__name__}: {reason}") from None
    lines = _assignments(source)
    values = {}
    for name, value in namespace.items():
        where = f"{path}, line {lines.get(name, '?')}: {name}"
        if name not in options:
            if name in lines and (meant := nearest(name.lower(), options)):
                raise OptionError(
                    f"{where}: unknown option; did you mean {meant}? To define another name, start it with _"
                )
        elif (accepted := _accept(options[name], value, where)) is not None:
            values[name] = accepted
    return values


def _assignments(source: str) -> dict[str, int]:
    """Return the line of each name that a script sets at its top level."""
    lines: dict[str, int] = {}
    nodes: list[ast.AST] = list(ast.parse(source).body)
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = node.lineno
        elif isinstance(node, ast.alias):
            lines[node.asname or node.name] = node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            lines[node.name] = node.lineno
            continue
        nodes.extend(ast.iter_child_nodes(node))
    return lines


def _line_of(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
