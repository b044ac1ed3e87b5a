"""Notes on pages about events that did not arrive."""

from __future__ import annotations

from collections.abc import Mapping

_MAX_NAMES = 3


def missed_note(missed: Mapping[str, int]) -> str:
    """Return the note of the workers page about missed tasks, as plain text; empty if no task was missed.

    :param missed: number of missed tasks by worker.
    """
    workers = sorted(((number, name) for name, number in missed.items() if number), reverse=True)
    if not workers:
        return ""
    named = [f"{number} of {name}" for number, name in workers[:_MAX_NAMES]]
    if rest := len(workers) - len(named):
        named.append(f"the rest of {rest} other workers" if rest > 1 else "the rest of another worker")
    total = sum(number for number, _ in workers)
    return (
        f"The events of {total} tasks did not arrive ({', '.join(named)}): pages and metrics lack them, or show them "
        "in an old state."
    )
