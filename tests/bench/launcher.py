"""Launcher of a measured server: ``python -m tests.bench.launcher``.

It hides packages that are installed, and slows the processing of events down.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from typing import Any

from tests.support.programs import COMMANDS


def slow_down(microseconds: float) -> None:
    """Let flower-proxy use so much more CPU time for each event."""
    from flower_proxy.metrics.recorder import Recorder

    on_event = Recorder.on_event

    def slower(self: Recorder, event: Any) -> None:
        end = time.perf_counter() + microseconds / 1e6
        on_event(self, event)
        while time.perf_counter() < end:
            pass

    Recorder.on_event = slower  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=COMMANDS)
    parser.add_argument("--without", nargs="*", default=[], help="packages that cannot be imported")
    parser.add_argument("--slower", type=float, default=0, help="additional microseconds per event")
    arguments, options = parser.parse_known_args()
    sys.modules.update(dict.fromkeys(arguments.without))
    if arguments.slower:
        slow_down(arguments.slower)
    _, module, *command = COMMANDS[arguments.kind]
    sys.argv = [module, *command, *options]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
