"""Size of the buffer in which Redis keeps the messages that a subscriber has not read yet."""

from __future__ import annotations

import time
from typing import Any

_SAMPLE_INTERVAL = 1.0  # seconds
_SAMPLE_VALID = 10.0  # seconds
# Redis closes the connection at 32 MB, or after a minute above 8 MB, unless configured otherwise
_NEARLY_FULL = 8 * 2**20


class OutputBufferFullError(ConnectionError):
    """Redis has closed the connection, probably because its output buffer was full."""


class OutputBuffer:
    """Samples the output buffer of a subscription; never nearly full where Redis refuses the commands for that.

    :param channel: kombu's channel, which has not subscribed yet; its other connections ask for the size.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._id = _identify(channel)
        self._size, self._sampled_at, self._next_at = 0, 0.0, 0.0

    @property
    def was_nearly_full(self) -> bool:
        """Whether that is a likely reason of Redis to close the connection now."""
        return self._size > _NEARLY_FULL and time.monotonic() - self._sampled_at < _SAMPLE_VALID

    def sample(self) -> None:
        """Ask for the size, at most once a second."""
        now = time.monotonic()
        if self._id is None or now < self._next_at:
            return
        self._next_at = now + _SAMPLE_INTERVAL
        try:
            with self._channel.conn_or_acquire() as client:
                clients = client.client_list(client_id=[self._id])
        except Exception:
            # No permission, or Redis before 6.2
            self._id = None
            return
        # A connection that Redis has closed is not in the list
        if clients:
            self._size, self._sampled_at = int(clients[0]["omem"]), now


def _identify(channel: Any) -> int | None:
    """Return the id of the connection, for which Redis cannot be asked after the subscription."""
    subscription = channel.subclient
    try:
        subscription.execute_command("CLIENT", "ID")
        return int(subscription.connection.read_response())
    except channel.ResponseError:
        return None
