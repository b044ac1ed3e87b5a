"""What browsers are told to allow a page, as plain functions on text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OTHER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What goes with `content_security_policy`."""

SELF, NONE = "'self'", "'none'"

_WORDS = {"self": SELF, SELF: SELF, "none": NONE, NONE: NONE}
# CSP Level 3, host-source, without the paths and the wildcard port
_ORIGIN = re.compile(r"https?://(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:(?P<port>[0-9]{1,5}))?")


def content_security_policy(nonce: str, frame_ancestors: Sequence[str]) -> str:
    """Return the value of the header ``Content-Security-Policy``.

    :param nonce: what the scripts that stand in the page carry, new for each page; empty for what is no page.
    :param frame_ancestors: who may show the page in a frame, as `parse_frame_ancestors` returns it.
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


def parse_frame_ancestors(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring ``--frame_ancestors`` into the spelling of the policy.

    :raises ValueError: with the reason in one line.
    """
    ancestors = tuple(parse_frame_ancestor(text) for text in texts)
    if not ancestors:
        raise ValueError("it is empty: name at least one, or none")
    if NONE in ancestors and len(ancestors) > 1:
        raise ValueError("none allows nobody: it stands alone")
    return ancestors


def parse_frame_ancestor(text: str) -> str:
    """Bring one of ``--frame_ancestors`` into the spelling of the policy.

    :param text: ``self`` or ``none``, with or without the policy's quotes, or an origin: ``https://portal.example``,
        ``https://portal.example:8443``, ``https://*.example.com``.
    :raises ValueError: it is none of these; what browsers cannot read would be ignored in silence.
    """
    ancestor = text.lower()
    if ancestor in _WORDS:
        return _WORDS[ancestor]
    match = _ORIGIN.fullmatch(ancestor)
    if match is None or not 0 < int(match["port"] or 443) <= 65535:
        raise ValueError(f"{text!r} is not self, none, or an origin such as https://portal.example, without a path")
    return ancestor
