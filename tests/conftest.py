"""What the tests stand on: a broker, a worker and a browser, each started once and only when a test asks for it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import programs


@pytest.fixture(scope="session", autouse=True)
def event_loop_to_go_back_to() -> Iterator[None]:
    """pytest-tornado goes back to the loop of before; where there is none, asyncio makes one that nobody closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Who runs in the background may have these ignored, and what it starts with it: Ctrl-C would end nothing."""
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
    """The same, with one worker that is ready."""
    with programs.worker(broker, tmp_path_factory.mktemp("worker")):
        yield broker


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    return programs.certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def files(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that the examples name, and where they are here."""
    folder = tmp_path_factory.mktemp("files")
    both = folder / "example.com.pem"
    both.write_text("".join(file.read_text() for file in certificate))
    return {
        "/etc/flower/htpasswd": str(programs.htpasswd(folder, programs.CREDENTIALS, programs.COLLEAGUE)),
        "/etc/haproxy/example.com.pem": str(both),
        **{f"/etc/letsencrypt/live/example.com/{file.name}": str(file) for file in certificate},
    }
