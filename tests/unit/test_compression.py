"""Negotiation of content codings."""

from __future__ import annotations

import pytest

from flower_proxy.web.compression import CODINGS, accepted_codings


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", []),
        ("gzip", ["gzip"]),
        ("GZIP", ["gzip"]),
        ("deflate, gzip;q=0.5", ["gzip"]),
        ("gzip, deflate, br, zstd", ["br", "gzip"]),
        ("gzip;q=1, br;q=0.5", ["gzip", "br"]),
        ("*", ["br", "gzip"]),
        ("*;q=0.1, br;q=0", ["gzip"]),
        ("*;q=0", []),
        ("gzip;q=0", []),
        ("gzip ; q=0.000", []),
        ("gzip;q=x", []),
        ("gzip;q=nan", []),
        ("gzip;level=1", []),
        ("identity", []),
        ("identity, gzip", ["gzip"]),
        ("identity, gzip;q=0.5", []),
        ("identity;q=0.5, gzip;q=0.5, br;q=0.4", ["gzip"]),
        ("identity;q=0, *", ["br", "gzip"]),
    ],
)
def test_codings_are_negotiated(header: str, accepted: list[str]) -> None:
    assert accepted_codings(header) == accepted


def test_an_instance_compresses_like_its_replicas() -> None:
    content = b"content" * 1000
    for compress in CODINGS.values():
        assert compress(content) == compress(content)
        assert len(compress(content)) < 200
