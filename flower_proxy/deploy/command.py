"""The flower-proxy command of a deployment, as options and as arguments."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Command:
    """The command that starts flower-proxy; ``str`` formats it for a shell.

    :ivar celery: Celery's options, such as ``-A``, with their values; None for a flag.
    :ivar options: Flower's and flower-proxy's options, by name, with their values; True for a flag. They contain no
        secrets.
    """

    celery: Mapping[str, str | None]
    options: Mapping[str, Any]

    def with_options(self, **changes: str | None) -> Command:
        """Return the command with these options moved to its end; None removes an option."""
        kept = {name: value for name, value in self.options.items() if name not in changes}
        return replace(self, options=kept | {name: text for name, text in changes.items() if text is not None})

    def without_celery(self, name: str) -> Command:
        """Return the command without one of Celery's options."""
        return replace(self, celery={other: value for other, value in self.celery.items() if other != name})

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield each option, with its dashes, and the text of its value, which is empty for a flag."""
        yield from ((option, text or "") for option, text in self.celery.items())
        yield from ((f"--{name}", _text(value)) for name, value in self.options.items())

    def arguments(self) -> list[str]:
        """Return the arguments, without the name of the program."""
        celery = [word for pair in self.celery.items() for word in pair if word is not None]
        options = (f"--{name}" if value is True else f"--{name}={_text(value)}" for name, value in self.options.items())
        return [*celery, *options]

    def __str__(self) -> str:
        return shlex.join(["flower-proxy", *self.arguments()])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
