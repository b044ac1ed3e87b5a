"""What browsers are told to allow a page, as plain functions on text."""

from __future__ import annotations

from collections.abc import Sequence

OTHER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What goes with `content_security_policy`."""

SELF, NONE = "'self'", "'none'"


def content_security_policy(nonce: str, frame_ancestors: Sequence[str]) -> str:
    """Return the value of the header ``Content-Security-Policy``.

    :param nonce: what the scripts that stand in the page carry, new for each page; empty for what is no page.
    :param frame_ancestors: who may show the page in a frame, as `settings.validators.parse_frame_ancestors` returns it.
    """
    directives = {
        "default-src": SELF,
        "script-src": f"{SELF} 'nonce-{nonce}'" if nonce else SELF,
        "style-src": SELF,
        # Flower has one, the width of a column; where a browser does not know this, the column is a bit wider
        "style-src-attr": "'unsafe-inline'",
        # Bootstrap's icons are data: addresses
        "img-src": f"{SELF} data:",
        "object-src": NONE,
        "base-uri": SELF,
        "form-action": SELF,
        "frame-ancestors": " ".join(frame_ancestors),
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())
