"""Every page of Flower in a real browser, behind every proxy set-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.journey import Journey
from tests.support.setups import SETUPS, Flowers, Setup, deployed

# Set-ups with the same options of Flower share it; two groups, since there are many
GROUPED = [
    pytest.param(
        setup,
        id=setup.id,
        marks=pytest.mark.xdist_group(f"{setup.url_prefixes} {setup.unix_socket} {number % 2}"),
    )
    for number, setup in enumerate(SETUPS)
]


@pytest.mark.parametrize("setup", GROUPED)
def test_every_page_works(
    setup: Setup, flowers: Flowers, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    with deployed(setup, flowers, certificate, tmp_path) as places:
        # The first one again, as cookies of the second instance on the host must not affect it
        for place in [*places, *places[:-1]]:
            journey = Journey(browser, place, screenshots=tmp_path)
            assert not journey.faults()
            posts = [request for request in journey.requests if request.method == "POST"]
            # Elsewhere browsers omit Sec-Fetch-Site, and Flower compares Origin
            assert any("sec-fetch-site" in post.headers for post in posts) == setup.is_secure_context
