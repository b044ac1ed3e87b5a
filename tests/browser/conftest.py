"""Fixtures of a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, chromium


@pytest.fixture(scope="session")
def chromium_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium_process: Browser) -> Browser:
    """A browser without cookies and cache, from one Chromium process for all tests."""
    chromium_process.forget()
    return chromium_process
