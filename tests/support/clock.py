"""A wall clock that a test can step while a program runs; the program's monotonic clock goes on."""

from __future__ import annotations

from pathlib import Path

_STEPPED = Path(__file__).with_name("stepped")


class Clock:
    """The clock of all programs that are started with its environment.

    :param folder: of the file that holds the step.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "step"
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(_STEPPED), "CLOCK_STEP": str(self._file)}

    def step(self, seconds: float) -> None:
        """Set the clock to so many seconds ahead of the machine's; a negative number is behind."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        # At once: a program that reads it now finds either the old step or the new one
        new.replace(self._file)
