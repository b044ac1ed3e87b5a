"""Content codings: negotiation, and compression of files."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from tornado.httputil import HTTPHeaders
from tornado.web import GZipContentEncoding

try:
    import brotli
except ImportError:  # not installed with flower-proxy[fast]
    brotli = None


def _gzip(content: bytes) -> bytes:
    # Without the time, every instance sends the same bytes and ETag
    return gzip.compress(content, mtime=0)


def _brotli(content: bytes) -> bytes:
    # Higher qualities take 10 times as long for a tenth less
    compressed: bytes = brotli.compress(content, quality=7)
    return compressed


CODINGS: dict[str, Callable[[bytes], bytes]] = {"br": _brotli, "gzip": _gzip} if brotli else {"gzip": _gzip}
"""Functions that compress, by content coding; the preferred coding first."""

MAX_COMPRESSED = 1_000_000
"""Maximum size in bytes of content to compress, which holds the event loop for about 20 ms per megabyte."""

_TEXT = ("text/", "application/javascript", "application/json", "application/xml", "image/svg+xml")


class ResponseCompression(GZipContentEncoding):
    """Tornado's compression of responses, except of long ones."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Compress the content, or leave it unchanged."""
        if finishing and len(chunk) > MAX_COMPRESSED:
            headers.add("Vary", "Accept-Encoding")
            return status_code, headers, chunk
        return super().transform_first_chunk(status_code, headers, chunk, finishing)


def is_compressible(content_type: str) -> bool:
    """Return whether content of this type is text."""
    return content_type.startswith(_TEXT)


def accepted_codings(accept_encoding: str) -> list[str]:
    """Return the codings of `CODINGS` that an Accept-Encoding header accepts (RFC 9110, section 12.5.3).

    :returns: those that the client does not like less than uncompressed content, the best first.
    """
    weights: dict[str, float] = {}
    for element in accept_encoding.lower().split(","):
        coding, _, parameters = element.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            weights[coding.strip()] = float(quality or 1)
        except ValueError:
            weights[coding.strip()] = 0
    found = {coding: weights.get(coding, weights.get("*", 0)) for coding in CODINGS}
    accepted = [coding for coding, weight in found.items() if weight > 0 and weight >= weights.get("identity", 0)]
    return sorted(accepted, key=lambda coding: -found[coding])
