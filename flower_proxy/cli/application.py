"""Loading of the Celery application, its configuration, and the client library of its broker."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import metadata
from types import ModuleType
from typing import Any, NoReturn

import celery
from celery.app.utils import find_app
from kombu.transport import TRANSPORT_ALIASES

from flower_proxy.cli.errors import InputError, MachineError


def import_app(name: str | None, *, debug: bool) -> celery.Celery:
    """Import the Celery application; its configuration is loaded later, by `load_configuration`.

    :param name: as for ``celery -A``; None if only a broker is given.
    :param debug: print the traceback of an error, too.
    :raises InputError: it cannot be imported.
    """
    return celery.Celery() if name is None else _import_app(name, debug)


def load_configuration(app: celery.Celery, *, source: str, debug: bool) -> None:
    """Make Celery read its configuration, once logging is set up, as Celery only logs the errors of signal receivers.

    :param source: begins the message of an error.
    :param debug: print the traceback of an error, too.
    :raises InputError: it cannot be loaded.
    """
    try:
        # A look-up would take a KeyError in the user's module for a missing setting
        len(app.conf)
    except Exception as error:
        refuse(f"{source}Celery's configuration cannot be loaded", error, debug)


def use_transport_options(app: celery.Celery, given: Mapping[str, Any]) -> None:
    """Let these options of the broker's transport take precedence over those of the application's configuration."""
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **given}


def check_broker(app: celery.Celery) -> None:
    """Check the broker's URL and that its client library is installed, without a connection.

    :raises InputError: the URL cannot be used.
    :raises MachineError: the library is missing.
    """
    try:
        with app.connection_for_read() as connection:
            _ = connection.transport
            complete = connection.transport_cls != "sentinel" or connection.transport_options.get("master_name")
    except ValueError:
        # Its text may hold a part of the password
        raise InputError(
            "the broker's URL is malformed: / # @ and the like in a password are written %2F %23 %40"
        ) from None
    except (ImportError, AttributeError, NameError) as error:
        # Transports set what cannot be imported to None, or leave it undefined
        raise MachineError(_missing_library(app, error)) from None
    except Exception as error:
        raise InputError(f"the broker cannot be used: {one_line(error)}") from None
    if not complete:
        raise InputError(
            "the Sentinel broker needs its master's name: add"
            """ --broker_transport_options='{"master_name": "mymaster"}'"""
        )


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    # A KeyError's text is the key, in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def describe(error: BaseException) -> str:
    """Return type and message of the first cause of an error, with file and line in the user's code, on one line."""
    cause = _first_cause(error)
    if isinstance(cause, SyntaxError):
        return f"{type(cause).__name__}: {cause.msg} ({cause.filename}, line {cause.lineno})"
    place = _place(cause)
    where = f" ({place[0]}, line {place[1]})" if place else ""
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}{where}"


def refuse(what: str, error: Exception, debug: bool) -> NoReturn:
    """Raise InputError for an error in the user's code, with its first cause.

    :param what: begins the message.
    :param debug: print the traceback, too.
    """
    if debug:
        traceback.print_exception(error)
    raise InputError(f"{what}: {describe(error)}") from None


def _import_app(name: str, debug: bool) -> celery.Celery:
    module, _, attribute = name.partition(":")
    try:
        app = find_app(name)
    except Exception as error:
        if attribute and isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError(f"-A: module {module!r} has no attribute {attribute!r}") from None
        if isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0]):
            raise InputError(
                f"-A: {name!r} cannot be loaded: {describe(error)}; is it in this folder, or in --workdir?"
            ) from None
        if (hidden := _hidden_error(name, error)) is None:
            raise InputError(f"-A: {name!r} contains no Celery application; write -A MODULE:ATTRIBUTE") from None
        refuse(f"-A: {name!r} cannot be loaded", hidden, debug)
    if callable(app) and not isinstance(app, (celery.Celery, ModuleType)):
        raise InputError(
            f"-A: {name!r} is a function, and factories are not called; write a module with app = {app.__name__}()"
            " and name that"
        )
    if not isinstance(app, celery.Celery):
        raise InputError(f"-A: {name!r} is not a Celery application")
    return app


def _hidden_error(name: str, error: Exception) -> Exception | None:
    """Return the error behind one of `find_app`; None if the module was imported and has no application."""
    if not (isinstance(error, AttributeError) and _is_of_celery(error)):
        return error
    module = sys.modules.get(name)
    try:
        if module is None:
            # The module read a setting, and Celery takes an error of the configuration for a missing setting
            len(celery.current_app.conf)
            return error
        if hasattr(module, "__path__"):
            # Celery tries this too, and ignores an ImportError there
            find_app(f"{name}.celery")
    except ModuleNotFoundError as hidden:
        return None if hidden.name == f"{name}.celery" else hidden
    except Exception as hidden:
        return hidden if module is None else _hidden_error(f"{name}.celery", hidden)
    return None


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that Celery replaced by one of its own, as it does while it tries to import a name."""
    while _is_of_celery(error) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def _is_of_celery(error: BaseException) -> bool:
    frames = list(_frames(error))
    return bool(frames) and frames[-1][0] in ("celery", "kombu")


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return file and line of the innermost frame that belongs neither to Python nor to an installed package."""
    found = None
    # The first frame is the one here that caught the error
    for package, filename, line in list(_frames(error))[1:]:
        installed = "site-packages" in filename or "dist-packages" in filename
        if not (installed or package in sys.stdlib_module_names or package == "flower_proxy"):
            found = filename, line
    return found


def _frames(error: BaseException) -> Iterator[tuple[str, str, int]]:
    """Yield package, file and line of each frame of the traceback."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield str(frame.f_globals.get("__name__", "")).partition(".")[0], frame.f_code.co_filename, line


def _missing_library(app: celery.Celery, error: Exception) -> str:
    # kombu's aliases: rediss and sentinel lead to kombu.transport.redis
    scheme = str(app.conf.broker_read_url or app.conf.broker_url).partition("://")[0]
    transport = TRANSPORT_ALIASES.get(scheme.partition("+")[0], "")
    extra = transport.removeprefix("kombu.transport.").replace(".", ":").partition(":")[0].lower()
    packages = [name for name in ("celery", "kombu") if extra in (metadata(name).get_all("Provides-Extra") or ())]
    remedy = f'; pip install "{packages[0]}[{extra}]"' if packages else ""
    return f"--broker: {scheme}:// needs a client library that cannot be imported ({one_line(error)}){remedy}"
