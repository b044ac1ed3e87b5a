"""Python programs run in forks of a process that has already imported flower-proxy.

A fork starts in a few milliseconds, where a new Python needs most of a second for its imports. Each program has its own
process, and ends with the same status and output as a new Python.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from .command import environment
from .processes import PROJECT

LIGHT = ("celery", "flower_proxy.cli.main", "flower_proxy.cli.config", "flower_proxy.cli.check")
"""Modules that do not load Flower."""

FULL = (*LIGHT, "celery.bin.celery", "flower_proxy.cli.serve")
_TIMEOUT = 60  # seconds


def run(
    arguments: Sequence[str], project: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m flower_proxy``, for input that does not start the server."""
    return run_python(["-m", "flower_proxy", *arguments], project, env)


def run_python(
    words: Sequence[str], project: Path, env: Mapping[str, str] | None = None, *, preload: Sequence[str] = FULL
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE`` or ``python -c PROGRAM`` in a folder, with arguments.

    :param env: environment variables in addition to those of `environment`.
    :param preload: the modules that are imported before the fork.
    """
    server = _server(tuple(preload))
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        request = [list(words), str(project), environment(env), str(output), str(errors)]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, output.read_text(), errors.read_text())


@functools.cache
def _server(preload: tuple[str, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.forks", *preload]
    server = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(words: Sequence[str], folder: str, env: Mapping[str, str], output: str, errors: str) -> NoReturn:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_CREAT),
        (2, errors, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags), number)
    signal.alarm(_TIMEOUT)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = folder
    kind, program, *arguments = words
    status: object = 0
    try:
        if kind == "-m":
            sys.argv = [program, *arguments]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            exec(program, {"__name__": "__main__"})
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    _serve(sys.argv[1:])
