"""Security headers of responses."""

from __future__ import annotations

from collections.abc import Sequence

OTHER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers sent in addition to ``Content-Security-Policy``."""

SELF, NONE = "'self'", "'none'"


def content_security_policy(nonce: str, frame_ancestors: Sequence[str]) -> str:
    """Return the value of the ``Content-Security-Policy`` header.

    :param nonce: the nonce of inline scripts, new for each page; empty if the response is not a page.
    :param frame_ancestors: the result of `settings.validators.parse_frame_ancestors`.
    """
    directives = {
        "default-src": SELF,
        "script-src": f"{SELF} 'nonce-{nonce}'" if nonce else SELF,
        "style-src": SELF,
        # Flower has one style attribute, the width of a column
        "style-src-attr": "'unsafe-inline'",
        # Bootstrap's icons are data: URLs
        "img-src": f"{SELF} data:",
        "object-src": NONE,
        "base-uri": SELF,
        "form-action": SELF,
        "frame-ancestors": " ".join(frame_ancestors),
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())
