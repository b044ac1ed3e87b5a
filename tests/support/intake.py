"""Delivery of decoded messages to a receiver, without a broker."""

from __future__ import annotations

from typing import Any

from flower_proxy.events.receiver import Receiver


class Intake:
    """Passes decoded messages to a receiver, as its source does."""

    def __init__(self, receiver: Receiver) -> None:
        self._put = receiver.dispatcher.put

    def _receive(self, body: Any, message: object = None) -> None:
        self._put(lambda raw: body, [b""])


def intake_of(receiver: Receiver) -> Intake:
    """Return an object whose `_receive` passes a decoded message to the receiver, like that of Celery's receiver."""
    return Intake(receiver)
