"""Notification of the service manager with the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket

_SEND_TIMEOUT = 1.0  # seconds


class ServiceManager:
    """The service manager that started this process, if it expects notifications.

    NOTIFY_SOCKET is the path of a datagram socket, or an abstract name after ``@``; other address families are ignored.
    The variable is removed from the environment, so that child processes do not send notifications.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Report that start-up is complete.

        With socket activation, systemd listens and queues connections before it starts the service. ``systemctl
        start`` returns after READY=1.
        """
        self._send("READY=1")

    def stopping(self) -> None:
        """Report that shutdown has begun."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if self._address[:1] not in ("/", "\0"):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(_SEND_TIMEOUT)
                connection.sendto(state.encode(), self._address)
        except OSError:
            # The service works without notifications
            return
