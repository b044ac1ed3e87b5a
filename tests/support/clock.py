"""A wall clock that a test can step while a program runs; the monotonic clock is unaffected."""

from __future__ import annotations

from pathlib import Path

_STEPPED = Path(__file__).with_name("stepped")


class Clock:
    """The clock of all programs that run with its environment.

    :param folder: for the file that contains the step.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "step"
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(_STEPPED), "CLOCK_STEP": str(self._file)}

    def step(self, seconds: float) -> None:
        """Set the clock ahead of the machine's, or behind it if `seconds` is negative."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        # Atomic, so that programs never read a partial file
        new.replace(self._file)
