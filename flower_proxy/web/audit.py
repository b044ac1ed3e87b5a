"""The audit log and the access log.

A line consists of named fields, each value in ASCII JSON, so that client-supplied text can neither end a line nor forge
a field. Other parts of a request are never logged, because they may contain secrets.
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
"""The logged arguments of control actions; the arguments of tasks are not logged."""

_MAX_VALUE = 500  # characters


class OneLineFormatter(LogFormatter):
    """Tornado's log format with control characters escaped, because Flower logs client-supplied names unescaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; only a traceback adds lines."""
        plain = copy.copy(record)
        plain.msg, plain.args = _printable(record.getMessage()), None
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            plain.exc_text = "\n".join(map(_printable, lines))
        return super().format(plain)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def control_action(*, user: str, client: str, path: str, arguments: Mapping[str, str], status: int) -> None:
    """Log an action on workers or tasks, or an attempt.

    :param path: the decoded path without prefix, which names the action and its target.
    :param arguments: the arguments of the action; only those in `ARGUMENTS` are logged.
    :param status: the HTTP status of the response.
    """
    known = {name: value[:_MAX_VALUE] for name, value in sorted(arguments.items()) if name in ARGUMENTS}
    logger.info(_line("control action", user=user, client=client, path=path, arguments=known, status=status))


def refused_login(*, user: str, client: str, method: str, path: str, reason: str, status: int) -> None:
    """Log a failed login."""
    fields = {"user": user, "client": client, "method": method, "path": path, "reason": reason, "status": int(status)}
    logger.warning(_line("login refused", **fields))


def refused_request(*, client: str, method: str, path: str, reason: str) -> None:
    """Log a request that was refused for a reason other than its credentials."""
    logger.warning(_line("request refused", client=client, method=method, path=path, reason=reason))


def failed_request(*, client: str, method: str, path: str, error: BaseException | None) -> None:
    """Log an unhandled exception of a request, with its traceback."""
    logger.error(_line("request failed", client=client, method=method, path=path), exc_info=error)


def request(*, user: str, client: str, method: str, path: str, status: int, seconds: float) -> None:
    """Log a request, without its query: that of an OAuth callback contains the authorization code."""
    milliseconds = round(1000 * seconds, 1)
    logger.info(
        _line("request", user=user, client=client, method=method, path=path, status=status, milliseconds=milliseconds)
    )


def _line(event: str, **fields: object) -> str:
    return f"{event}: " + " ".join(f"{name}={_shown(value)}" for name, value in fields.items())


def _shown(value: object) -> str:
    return json.dumps(value[:_MAX_VALUE] if isinstance(value, str) else value)
