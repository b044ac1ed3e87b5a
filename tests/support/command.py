"""The command ``flower-proxy`` in a user's project, in the foreground or background."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .processes import Address, answers, free_port, running

APPLICATION = """\
from celery import Celery

app = Celery("shop", broker="memory://")
"""


# Authentication disabled
OPEN = {"FLOWER_NO_AUTH": "true"}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "CELERY_"))}
    return {**plain, **(extra or {})}


def run(
    arguments: Sequence[str], project: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `flower-proxy` that exits without serving."""
    return run_python(["-m", "flower_proxy", *arguments], project, env)


def run_program(
    program: str, arguments: Sequence[str], project: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python program until it exits."""
    return run_python(["-c", program, *arguments], project, env)


def run_python(
    words: Sequence[str], project: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=project, env=environment(env), capture_output=True, text=True, timeout=60
    )


@contextmanager
def started(
    command: Sequence[str], project: Path, **env: str
) -> Iterator[tuple[Address, subprocess.Popen[bytes], Path]]:
    """Run a Python module in the background until the block ends; ``PORT`` in the command becomes a free port."""
    address, log = Address(free_port()), project / "log"
    words = [sys.executable, "-m", *(word.replace("PORT", str(address.port)) for word in command)]
    with running(
        words, log=log, ready=lambda: answers(address, "/healthcheck"), cwd=project, env=environment({**OPEN, **env})
    ) as process:
        yield address, process, log
