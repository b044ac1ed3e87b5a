"""Fixtures that several folders share; each server starts once in a process, when a test needs it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import programs

# No test asserts on a time, so neither does Hypothesis
settings.register_profile("tests", deadline=None, max_examples=200)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile("tests")

# Folders in which the tests of a module share servers
SHARING_SERVERS = ("browser", "cluster", "process")


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for ``-n auto``, which wait for servers and browsers half of the time."""
    return 2 * (os.cpu_count() or 1)


# Before pytest-xdist reads the groups; otherwise their order depends on the versions of its dependencies
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share servers on one pytest-xdist worker, and begin with them.

    These folders are mixed: browsers need the processor, while most tests of clusters wait.
    """
    groups: dict[str, dict[str, int]] = {folder: {} for folder in SHARING_SERVERS}

    def position(item: pytest.Item) -> float:
        group = item.get_closest_marker("xdist_group")
        numbers = groups.get(item.path.parent.name)
        return numbers[group.args[0]] / len(numbers) if group and numbers else 1

    for item in items:
        numbers = groups.get(item.path.parent.name)
        if numbers is not None:
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(item.path.stem))
            group = item.get_closest_marker("xdist_group")
            assert group
            numbers.setdefault(group.args[0], len(numbers))
    items.sort(key=position)


@pytest.fixture(scope="session", autouse=True)
def current_event_loop() -> Iterator[None]:
    """Current event loop, which pytest-tornado restores; without one, asyncio would create one that is never closed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Default handling of signals, which background jobs ignore together with the processes that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Broker]:
    """A Redis server."""
    with programs.redis(tmp_path_factory.mktemp("redis")) as broker:
        yield broker


@pytest.fixture(scope="session")
def worker(broker: programs.Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[programs.Broker]:
    """The Redis server, with one worker that is ready."""
    with programs.worker(broker, tmp_path_factory.mktemp("worker")):
        yield broker


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    return programs.certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def files(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of the files in the examples, and those of the files that replace them in tests."""
    folder = tmp_path_factory.mktemp("files")
    both = folder / "example.com.pem"
    both.write_text("".join(file.read_text() for file in certificate))
    return {
        "/etc/flower/htpasswd": str(programs.htpasswd(folder, programs.CREDENTIALS, programs.COLLEAGUE)),
        "/etc/haproxy/example.com.pem": str(both),
        **{f"/etc/letsencrypt/live/example.com/{file.name}": str(file) for file in certificate},
    }
