"""Protocol of event listeners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Listener(Protocol):
    """Processes events in the event loop."""

    def on_events(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Process events.

        :param batch: events in order of arrival; Flower's state has processed these and no later one.
        """
