"""Protocol of event listeners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Listener(Protocol):
    """Processes events in the event loop."""

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Process an event.

        :param event: a valid event, which Flower's state has processed, and no later one.
        """
