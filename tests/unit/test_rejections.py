"""Counters and log lines of rejected input."""

from __future__ import annotations

import threading

import pytest

from flower_proxy.events.rejections import Rejections

REASONS = ("no type", "not a number")


def test_counters_of_all_reasons_start_at_zero() -> None:
    rejections = Rejections("an event", REASONS)
    assert rejections.counts == {"no type": 0, "not a number": 0}
    rejections.count("no type", "")
    rejections.count("no type", "")
    assert rejections.counts == {"no type": 2, "not a number": 0}


def test_unknown_reasons_raise_an_error() -> None:
    with pytest.raises(KeyError):
        Rejections("an event", REASONS).count("unknown", "")


def test_each_reason_is_logged_at_most_once_per_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    rejections = Rejections("an event", REASONS, clock=lambda: now[0])
    for seconds, reason in ((0, "no type"), (1, "no type"), (2, "not a number"), (59, "no type"), (60, "no type")):
        now[0] = 1000.0 + seconds
        rejections.count(reason, f"at {seconds}")
    assert caplog.messages == [
        "Rejected an event (no type): 'at 0'; 0 more since the last such line",
        "Rejected an event (not a number): 'at 2'; 0 more since the last such line",
        "Rejected an event (no type): 'at 60'; 2 more since the last such line",
    ]


HOSTILE = {
    "control characters": "x\r\ny\x1b[31m\u2028",
    "surrogate": "\ud800",
    "huge": "x" * 10_000_000,
    "format": "%s %d",
}


@pytest.mark.parametrize("detail", HOSTILE.values(), ids=HOSTILE)
def test_untrusted_details_are_escaped_and_truncated_in_the_log(caplog: pytest.LogCaptureFixture, detail: str) -> None:
    Rejections("an event", REASONS).count("no type", detail)
    (line,) = caplog.messages
    line.encode()
    assert line.isprintable()
    assert len(line) < 1000


def test_counting_is_thread_safe() -> None:
    rejections = Rejections("an event", REASONS)

    def count() -> None:
        for _ in range(2000):
            rejections.count("no type", "")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rejections.counts["no type"] == 8000
