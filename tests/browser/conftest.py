"""Fixtures of a browser and of Flower behind nginx."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, chromium
from tests.support.programs import Broker
from tests.support.setups import Flowers


@pytest.fixture(scope="session")
def chromium_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium_process: Browser) -> Iterator[Browser]:
    """A browser without cookies and cache, from one Chromium process for all tests."""
    chromium_process.forget()
    yield chromium_process
    # A page would go on polling
    chromium_process.open("about:blank")


@pytest.fixture(scope="module")
def flowers(worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flowers]:
    """The Flowers of a module's set-ups."""
    with Flowers("ours", worker, tmp_path_factory.mktemp("flowers")) as flowers:
        yield flowers
