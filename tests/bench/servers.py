"""Measured servers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Address


@dataclass(frozen=True)
class Server:
    """Flower in a separate process."""

    pid: int
    address: Address

    @property
    def cpu(self) -> float:
        """Return its CPU time in seconds."""
        # The clock of clock_getcpuclockid(3); /proc/PID/stat has a resolution of only 10 ms
        return time.clock_gettime(~self.pid << 3 | 2)

    @property
    def memory(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
