"""Notes on pages about events that did not arrive."""

from __future__ import annotations

from collections.abc import Mapping

from flower_proxy.events.ends import NOT_SEEN, RESULT_BACKEND

_MAX_NAMES = 3
_ENDS = {
    RESULT_BACKEND: "from the result backend; the event did not arrive",
    NOT_SEEN: "end not seen: its worker no longer has it, and the result backend has no result",
}


def end_note(end: str | None) -> str:
    """Return the note of a task's page, as plain text; may be empty.

    :param end: how the end is known, as by `flower_proxy.events.ends.Ends`.
    """
    return _ENDS.get(end or "", "")


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
    tasks = f"{total} tasks" if total > 1 else "1 task"
    return (
        f"The events of {tasks} did not arrive ({', '.join(named)}): pages and metrics lack them, or show them in an "
        "old state."
    )
