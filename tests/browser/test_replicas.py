"""Two flower-proxies behind ``examples/nginx/replicas.conf``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.examples import read
from tests.support.journey import Journey, Place
from tests.support.processes import Address, free_port, wait_until
from tests.support.programs import Broker, Flower, launch
from tests.support.proxies import proxy, substitute

EXAMPLE = "nginx/replicas.conf"


@pytest.fixture
def replicas(worker: Broker, tmp_path: Path) -> Iterator[list[Flower]]:
    worker.run_tasks()
    with contextlib.ExitStack() as stack:
        flowers = [
            stack.enter_context(
                launch("ours", worker, tmp_path / name, url_prefix="flower", options=["--cookie_secret=example"])
            )
            for name in ("one", "other")
        ]
        for flower in flowers:
            flower.watch_tasks(worker)
        yield flowers


@pytest.fixture
def place(replicas: list[Flower], tmp_path: Path) -> Iterator[Place]:
    table = dict(zip(("127.0.0.1:5555", "127.0.0.1:5556"), (str(flower.address) for flower in replicas), strict=True))
    plain, tls = Address(free_port()), Address(free_port(), tls=True)
    with proxy("nginx", substitute(read(EXAMPLE)[0], table), tmp_path / "nginx", plain=plain, tls=tls, files={}):
        wait_until(plain.accepts, what="nginx listens")
        yield Place(f"http://localhost:{plain.port}", "/flower")


def test_the_death_of_a_replica_is_not_noticed_in_a_browser(
    replicas: list[Flower], place: Place, browser: Browser, tmp_path: Path
) -> None:
    journey = Journey(browser, place, screenshots=tmp_path)
    journey.log_in()
    # Pages, scripts and control actions come from both
    assert not any(journey.walk().values())
    for number, (name, step) in enumerate(journey.steps().items()):
        if number == 1:
            process = replicas[0].process
            assert process
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert journey.take(name, step) == [], name
    assert {request.status for request in journey.requests if request.type == "Document"} <= {200, 302, 304, 308, 404}
