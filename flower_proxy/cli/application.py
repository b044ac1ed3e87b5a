"""Loading of the Celery application, its configuration and its broker's client library."""

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
    """Import the Celery application, without loading its configuration.

    :param name: the name as for ``celery -A``; None if only a broker is given.
    :param debug: print the traceback of an error.
    :raises InputError: the application cannot be imported.
    """
    return celery.Celery() if name is None else _import_app(name, debug)


def load_configuration(app: celery.Celery, *, source: str, debug: bool) -> None:
    """Load Celery's configuration; logging must be set up, as Celery only logs errors of signal receivers.

    :param source: the beginning of error messages.
    :param debug: print the traceback of an error.
    :raises InputError: the configuration cannot be loaded.
    """
    try:
        # Looking up a setting would hide a KeyError raised by the user's module
        len(app.conf)
    except Exception as error:
        refuse(f"{source}Celery's configuration cannot be loaded", error, debug)


def use_transport_options(app: celery.Celery, given: Mapping[str, Any]) -> None:
    """Override broker transport options of the application's configuration."""
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **given}


def check_broker(app: celery.Celery) -> None:
    """Check the broker URL and its client library, without connecting.

    :raises InputError: the URL is invalid.
    :raises MachineError: the client library is missing.
    """
    try:
        with app.connection_for_read() as connection:
            _ = connection.transport
            complete = connection.transport_cls != "sentinel" or connection.transport_options.get("master_name")
    except ValueError:
        # The original message may contain a part of the password
        raise InputError(
            "the broker URL is malformed; percent-encode special characters in the password: %2F for /, %23 for #"
        ) from None
    except (ImportError, AttributeError, NameError) as error:
        # Transports set a missing client library to None or leave it undefined
        raise MachineError(_missing_library(app, error)) from None
    except Exception as error:
        raise InputError(f"the broker URL cannot be used: {one_line(error)}") from None
    if not complete:
        raise InputError(
            "the broker is Redis Sentinel, which needs the name of the master; add"
            """ --broker_transport_options='{"master_name": "mymaster"}'"""
        )


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    # The text of a KeyError is only the repr of its argument
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def describe(error: BaseException) -> str:
    """Return the type, message and location in the user's code of an error's first cause, on one line."""
    cause = _first_cause(error)
    if isinstance(cause, SyntaxError):
        return f"{type(cause).__name__}: {cause.msg} ({cause.filename}, line {cause.lineno})"
    place = _place(cause)
    where = f" ({place[0]}, line {place[1]})" if place else ""
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}{where}"


def refuse(what: str, error: Exception, debug: bool) -> NoReturn:
    """Raise InputError for an error in the user's code, with its first cause.

    :param what: the beginning of the message.
    :param debug: print the traceback.
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
                f"-A: {name!r} cannot be imported: {describe(error)}; run in the project's folder, or set --workdir"
            ) from None
        if (hidden := _hidden_error(name, error)) is None:
            raise InputError(f"-A: {name!r} contains no Celery application; name it with -A MODULE:ATTRIBUTE") from None
        refuse(f"-A: {name!r} cannot be imported", hidden, debug)
    if callable(app) and not isinstance(app, (celery.Celery, ModuleType)):
        raise InputError(
            f"-A: {name!r} is a function, and application factories are not called; name a module with"
            f" app = {app.__name__}()"
        )
    if not isinstance(app, celery.Celery):
        raise InputError(f"-A: {name!r} is not a Celery application; name it with -A MODULE:ATTRIBUTE")
    return app


def _hidden_error(name: str, error: Exception) -> Exception | None:
    """Return the error that `find_app` replaced; None if the module was imported but has no application."""
    if not (isinstance(error, AttributeError) and _is_of_celery(error)):
        return error
    module = sys.modules.get(name)
    try:
        if module is None:
            # The module reads a setting, and Celery reports an error in the configuration as a missing setting
            len(celery.current_app.conf)
            return error
        if hasattr(module, "__path__"):
            # Celery also tries this name, but ignores an ImportError
            find_app(f"{name}.celery")
    except ModuleNotFoundError as hidden:
        return None if hidden.name == f"{name}.celery" else hidden
    except Exception as hidden:
        return hidden if module is None else _hidden_error(f"{name}.celery", hidden)
    return None


def _first_cause(error: BaseException) -> BaseException:
    """Return the original error where Celery raised its own while importing a name."""
    while _is_of_celery(error) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def _is_of_celery(error: BaseException) -> bool:
    frames = list(_frames(error))
    return bool(frames) and frames[-1][0] in ("celery", "kombu")


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return file and line of the innermost frame outside Python and installed packages."""
    found = None
    # The first frame is the one in this module that caught the error
    for package, filename, line in list(_frames(error))[1:]:
        installed = "site-packages" in filename or "dist-packages" in filename
        if not (installed or package in sys.stdlib_module_names or package == "flower_proxy"):
            found = filename, line
    return found


def _frames(error: BaseException) -> Iterator[tuple[str, str, int]]:
    """Yield top-level package, file and line of each frame of the traceback."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield str(frame.f_globals.get("__name__", "")).partition(".")[0], frame.f_code.co_filename, line


def _missing_library(app: celery.Celery, error: Exception) -> str:
    # kombu maps schemes such as rediss and sentinel to kombu.transport.redis
    scheme = str(app.conf.broker_read_url or app.conf.broker_url).partition("://")[0]
    transport = TRANSPORT_ALIASES.get(scheme.partition("+")[0], "")
    extra = transport.removeprefix("kombu.transport.").replace(".", ":").partition(":")[0].lower()
    packages = [name for name in ("celery", "kombu") if extra in (metadata(name).get_all("Provides-Extra") or ())]
    remedy = f'; run: pip install "{packages[0]}[{extra}]"' if packages else ""
    return f"--broker: the client library for {scheme}:// cannot be imported ({one_line(error)}){remedy}"
