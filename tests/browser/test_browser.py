"""Under every set-up of the field, a person comes through with one and the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.journey import Journey
from tests.support.programs import Broker
from tests.support.setups import SETUPS, Setup, standing

# They share no server
SEPARATE = [pytest.param(setup, id=setup.id, marks=pytest.mark.xdist_group(setup.id)) for setup in SETUPS]


@pytest.mark.parametrize("setup", SEPARATE)
def test_a_person_comes_through(
    setup: Setup, worker: Broker, certificate: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    with standing(setup, "ours", worker, certificate, tmp_path) as places:
        # the first once more after the last: two instances on one host must not disturb each other
        for place in [*places, *places[:-1]]:
            journey = Journey(browser, place, screenshots=tmp_path)
            assert not journey.faults()
            posts = [request for request in journey.requests if request.method == "POST"]
            # what makes these set-ups differ: elsewhere the browser does not say which site is asking
            assert any("sec-fetch-site" in post.headers for post in posts) == setup.is_trusted_by_browsers
