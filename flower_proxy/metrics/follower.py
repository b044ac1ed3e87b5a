"""Interface of what counts along with the metrics."""

from __future__ import annotations

from typing import Protocol


class Follower(Protocol):
    """Counts what the metrics count, with the same labels."""

    def count(self, kind: str, name: str, worker: str, queue: str) -> None:
        """Count an event of a type."""

    def observe_runtime(self, runtime: float, name: str, worker: str, queue: str) -> None:
        """Count a run time in seconds."""

    def observe_wait(self, wait: float, name: str, worker: str, queue: str) -> None:
        """Count a time in a queue in seconds."""
