"""Delivery of decoded messages to a receiver, without a broker."""

from __future__ import annotations

from kombu import Connection

from flower_proxy.events.receiver import Receiver
from flower_proxy.events.stream import Stream


def intake_of(receiver: Receiver) -> Stream:
    """Return a stream whose `_receive` passes the valid events of a decoded message to the receiver."""
    return Stream(
        Connection("memory://"),
        receiver.capp,
        rejections=receiver.rejections,
        on_ready=lambda: None,
        on_event=receiver.on_event,
        is_stopping=lambda: False,
    )
