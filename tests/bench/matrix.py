"""Matrix of proxy set-ups and working features of Flower: ``python -m tests.bench.matrix [stock|ours]``.

With -v it also prints the failures. It has no assertions.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.support import programs
from tests.support.browser import Browser, chromium
from tests.support.journey import Journey
from tests.support.setups import SETUPS, Flowers, Setup, deployed

TIMEOUT = 3.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=list(programs.COMMANDS), help="test only this kind")
    parser.add_argument("-k", default="", metavar="PART", help="test only set-ups whose name contains PART")
    parser.add_argument("-v", action="store_true", help="print failures")
    arguments = parser.parse_args()
    setups = [setup for setup in SETUPS if arguments.k in setup.id]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = programs.certificate(folder)
        with programs.redis(folder) as broker, programs.worker(broker, folder), chromium(folder) as browser:
            browser.timeout = TIMEOUT
            for kind in [arguments.kind] if arguments.kind else programs.COMMANDS:
                print_table(kind, setups, broker, certificate, browser, folder, verbose=arguments.v)


def print_table(
    kind: str,
    setups: list[Setup],
    broker: programs.Broker,
    certificate: tuple[Path, Path],
    browser: Browser,
    folder: Path,
    *,
    verbose: bool,
) -> None:
    width = max(len(setup.id) for setup in setups)
    passed = 0
    for number, setup in enumerate(setups):
        faults: dict[str, list[str]] = {}
        browser.forget()
        part = folder / f"{kind}{number}"
        with Flowers(kind, broker, part) as flowers, deployed(setup, flowers, certificate, part) as places:
            # All instances, then the first ones again after the last
            for place in [*places, *places[:-1]]:
                journey = Journey(browser, place)
                journey.log_in()
                for step, found in journey.walk().items():
                    faults.setdefault(step, []).extend(found)
        if number == 0:
            print(f"\n{kind:{width}}  {'  '.join(faults)}")
        passed += not any(faults.values())
        marks = "  ".join(("-" if found else "ok").ljust(len(step)) for step, found in faults.items())
        print(f"{setup.id:{width}}  {marks}", flush=True)
        if verbose:
            for step, found in faults.items():
                for fault in found:
                    print(f"    {step}: {fault}")
    print(f"{kind}: {passed} of {len(setups)} set-ups pass", flush=True)


if __name__ == "__main__":
    main()
