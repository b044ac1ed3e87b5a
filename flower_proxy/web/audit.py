"""What is written down of people: who acted, who was refused, who asked.

A line names its fields, and each value is JSON in ASCII, so that nothing a client sends can end a line or look like
another field. Of what a request carries only what is listed here is written; the rest may hold secrets.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping

from tornado.log import LogFormatter

logger = logging.getLogger(__name__)

ARGUMENTS = frozenset(
    ("hard", "max", "min", "n", "queue", "ratelimit", "signal", "soft", "terminate", "timeout", "type", "workername")
)
"""The arguments of control actions that are written down; a task's own are not."""

_LONGEST = 500  # characters of a value


class OneLineFormatter(LogFormatter):
    """Formats as Tornado does, but lets no message end its line: Flower writes down names as they were sent."""

    def format(self, record: logging.LogRecord) -> str:
        plain = copy.copy(record)
        plain.msg, plain.args = _printable(record.getMessage()), None
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            plain.exc_text = "\n".join(map(_printable, lines))
        return super().format(plain)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def control_action(*, user: str, client: str, path: str, arguments: Mapping[str, str], status: int) -> None:
    """Write down that somebody acted on workers or tasks, or tried to.

    :param path: of the action, without prefix, decoded: it names what was done, and on what.
    :param arguments: of the action; those that are not in `ARGUMENTS` are left out.
    :param status: how it ended.
    """
    known = {name: value[:_LONGEST] for name, value in sorted(arguments.items()) if name in ARGUMENTS}
    logger.info(_line("control action", user=user, client=client, path=path, arguments=known, status=status))


def refused_login(*, user: str, client: str, method: str, path: str, reason: str, status: int) -> None:
    """Write down that somebody tried to log in and was not let in."""
    fields = {"user": user, "client": client, "method": method, "path": path, "reason": reason, "status": int(status)}
    logger.warning(_line("login refused", **fields))


def refused_request(*, client: str, method: str, path: str, reason: str) -> None:
    """Write down that a request was refused for what it is, where it comes from, or where it was sent to."""
    logger.warning(_line("request refused", client=client, method=method, path=path, reason=reason))


def failed_request(*, client: str, method: str, path: str, error: BaseException | None) -> None:
    """Write down that a request could not be answered, and where in the program that happened."""
    logger.error(_line("request failed", client=client, method=method, path=path), exc_info=error)


def request(*, user: str, client: str, method: str, path: str, status: int, seconds: float) -> None:
    """Write down one request; its query is left out, since a provider's answer to a login stands there."""
    milliseconds = round(1000 * seconds, 1)
    logger.info(
        _line("request", user=user, client=client, method=method, path=path, status=status, milliseconds=milliseconds)
    )


def _line(event: str, **fields: object) -> str:
    return f"{event}: " + " ".join(f"{name}={_shown(value)}" for name, value in fields.items())


def _shown(value: object) -> str:
    return json.dumps(value[:_LONGEST] if isinstance(value, str) else value)
