"""Benchmark of ``--persistent``: ``python -m tests.bench.persistence``. It has no assertions.

It starts flower-proxy with a saved state, waits for a save and ends it. Each callback of its event loop is timed, in
CPU time, which does not depend on the load of the machine and includes garbage collections, and in elapsed time.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from flower_proxy.events.state import State
from flower_proxy.events.state_file import StateFile
from tests.support.processes import Address, answers, free_port, running, tail, wait_until
from tests.support.states import save

BAR = 50  # milliseconds
INTERVAL = 20  # seconds between two saves
RESULT = 400  # bytes
# Writes each long callback of the event loop: when it ended, its CPU time and its elapsed time
TIMED = """\
import asyncio.events, sys, time

log, run = open(sys.argv.pop(1), "a", buffering=1), asyncio.events.Handle._run

def timed(handle):
    cpu, begin = time.thread_time(), time.monotonic()
    run(handle)
    cpu, elapsed = time.thread_time() - cpu, time.monotonic() - begin
    if elapsed > 0.004:
        log.write(f"{time.monotonic()} {cpu} {elapsed} {handle!r:.200}\\n")

asyncio.events.Handle._run = timed
from flower_proxy.__main__ import main
main()
"""


def state_of(count: int) -> State:
    """Return a state with tasks of ten workers, with distinct arguments and results."""
    state = State(max_tasks_in_memory=count, max_workers_in_memory=100)
    for number in range(count):
        at = time.time() - count / 1000 + number / 1000
        base = {"hostname": f"w{number % 10}@host", "timestamp": at, "local_received": at, "clock": number}
        task = {**base, "uuid": f"{number:08}-0000-4000-8000-000000000000", "pid": 1, "utcoffset": 0}
        state.event({**task, "type": "task-received", "name": f"tasks.t{number % 20}", "args": f"({number},)"})
        state.event({**task, "type": "task-started"})
        result = f"'{number}'".ljust(RESULT, "x")
        state.event({**task, "type": "task-succeeded", "result": result, "runtime": 0.1})
    return state


class Peaks:
    """Peaks of the resident memory of a process and its children, in MB."""

    def __init__(self, pid: int) -> None:
        self.own = self.of_children = 0.0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        children, own = Path(f"/proc/{self._pid}/task/{self._pid}/children"), command(self._pid)
        while not self._ended.wait(0.05):
            self.own = max(self.own, peak(self._pid))
            try:
                # A new one shares the memory of its parent until it executes its own program
                found = [child for child in children.read_text().split() if command(child) != own]
            except OSError:
                return
            self.of_children = max([self.of_children, *(peak(child) for child in found)])


def command(pid: int | str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def peak(pid: int | str) -> float:
    """Return the peak of the resident memory of a process in MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:"))


def holds(log: Path) -> Iterator[tuple[float, float, float, str]]:
    for line in log.read_text().splitlines():
        ended, cpu, elapsed, callback = line.split(" ", 3)
        yield float(ended), float(cpu) * 1000, float(elapsed) * 1000, callback


def is_replaced(files: list[Path], inodes: list[int]) -> bool:
    try:
        return [file.stat().st_ino for file in files] != inodes
    except FileNotFoundError:
        return False


def measure(folder: Path, *, verbose: bool) -> None:
    """Print a table of the phases."""
    (folder / "shop.py").write_text("from celery import Celery\n\napp = Celery('shop', broker='memory://')\n")
    files = [path for path in folder.glob("flower*") if path.suffix != ".lock"]
    inodes = [file.stat().st_ino for file in files]
    address, log = Address(free_port()), folder / "holds"
    begin = time.monotonic()
    with running(
        [
            *(sys.executable, "-c", TIMED, str(log), "-A", "shop", "--address=127.0.0.1", f"--port={address.port}"),
            *("--no_auth", "--persistent", f"--state_save_interval={INTERVAL * 1000}", "--max_tasks=1000000"),
        ],
        log=folder / "log",
        ready=lambda: answers(address, "/healthcheck"),
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        cwd=folder,
    ) as process:
        live = time.monotonic()
        peaks = Peaks(process.pid)
        wait_until(lambda: answers(address, "/ready"), timeout=300, what="the state is loaded")
        ready = time.monotonic()
        wait_until(lambda: is_replaced(files, inodes), timeout=300, what="the state is saved")
        saved = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=300)
        ended = time.monotonic()
        peaks.stop()
    if verbose:
        print(tail(folder / "log"))
    print(f"first /healthcheck after {live - begin:.1f} s, /ready after {ready - begin:.1f} s")
    print(f"end {ended - saved:.1f} s after the signal")
    print(f"peak of the resident memory: {peaks.own:.0f} MB, process for the files: {peaks.of_children:.0f} MB")
    print(f"{'longest hold, ms':>16} {'CPU':>8} {'elapsed':>8}  bar")
    times = {"start": (0.0, live), "loading": (live, ready), "saving": (ready, saved), "ending": (saved, ended)}
    every = list(holds(log))
    for phase, (first, last) in times.items():
        of_phase = [hold for hold in every if first <= hold[0] < last]
        cpu = max((hold[1] for hold in of_phase), default=0)
        elapsed = max((hold[2] for hold in of_phase), default=0)
        print(f"{phase:>16} {cpu:>8.1f} {elapsed:>8.1f}  {'within' if cpu <= BAR else 'over'}")
        if verbose:
            for hold in sorted(of_phase, key=lambda hold: -hold[1])[:5]:
                print(f"{'':>16} {hold[1]:>8.1f} {hold[2]:>8.1f}  {hold[3]}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("-v", "--verbose", action="store_true", help="print the log and the longest callbacks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file = StateFile(str(Path(name) / "flower"))
        save(file, state_of(arguments.tasks))
        file.release()
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        print(f"{arguments.tasks} tasks with results of {RESULT} bytes, {size:.0f} MB")
        measure(Path(name), verbose=arguments.verbose)


if __name__ == "__main__":
    main()
