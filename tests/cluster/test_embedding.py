"""Embedding of flower-proxy in an asyncio program."""

from __future__ import annotations

import asyncio
import gc
import http.client
import logging
import os
import re
import shelve
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from celery import Celery
from kombu import pools
from prometheus_client import REGISTRY
from tornado.ioloop import IOLoop
from tornado.options import options as tornado_options

import flower_proxy
from flower_proxy import FlowerProxy, make_options
from flower_proxy._flower import STOCK_FAMILIES, FlowersLoop
from flower_proxy.settings.options import OPTIONS
from tests.support.processes import PROJECT, Address, Answer, basic, free_port, request, running, wait_until
from tests.support.programs import CREDENTIALS, Broker, Flower

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

EXAMPLE = PROJECT / "examples" / "embedding.py"


@pytest.fixture
def capp(broker: Broker) -> Iterator[Celery]:
    with Celery("server", broker=broker.url) as capp:
        yield capp
    # Flower uses kombu's global pools
    pools.reset()


def options(**settings: Any) -> Any:
    return make_options(**{"address": "127.0.0.1", "port": 0, "basic_auth": CREDENTIALS, **settings})


async def fetch(address: Address, path: str, **kwargs: Any) -> Answer:
    """Send a request from a thread, while the event loop runs."""
    return await asyncio.to_thread(request, address, path, headers=basic(CREDENTIALS), **kwargs)


def global_state() -> dict[str, Any]:
    """Return the process-wide state that embedding must not change."""
    return {
        "interpreter": (gc.get_threshold(), gc.get_freeze_count(), sys.getswitchinterval()),
        "options": tornado_options.as_dict(),
        "handlers": [*logging.getLogger().handlers],
        "level": logging.getLogger().level,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        # Importing Flower registers its metrics once
        "metrics": [metric.name for metric in REGISTRY.collect() if metric.name not in STOCK_FAMILIES],
        "hooks": (sys.excepthook, threading.excepthook),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }


def test_the_example_runs_and_ends_on_ctrl_c(worker: Broker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(
        [sys.executable, "-W", "always::ResourceWarning", "-X", "faulthandler", str(EXAMPLE)],
        log=log,
        ready=lambda: "/flower/\n" in log.read_text(),
        env=worker.environment,
        cwd=tmp_path,
    ) as process:
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/flower/\n", log.read_text())
        address = Address(int(port))
        assert request(address, "/flower/").status == 401

        def shows_worker() -> bool:
            return '"status": true' in request(address, "/flower/workers?json=1", headers=basic("me:secret")).text

        wait_until(shows_worker, what="the worker is online")
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 0
        except subprocess.TimeoutExpired:
            # faulthandler writes the stack of the hanging threads to the log
            process.send_signal(signal.SIGABRT)
            process.wait()
            raise AssertionError(log.read_text()) from None
    assert log.read_text() == f"http://127.0.0.1:{port}/flower/\n"


async def use(broker: Broker, capp: Celery, db: Path) -> None:
    """Run Flower, and assert that it leaves no threads, tasks or global changes behind."""
    before = set(threading.enumerate()), asyncio.all_tasks(), global_state()
    async with FlowerProxy(capp=capp, options=options(persistent=True, db=db)) as flower:
        assert flower.port is not None
        address = Address(flower.port)
        await asyncio.to_thread(Flower(address, "").watch_tasks, broker)
        assert (await fetch(address, "/metrics")).status == 200
        [worker] = flower.events.state.workers
        assert (await fetch(address, f"/worker/{worker}")).status == 200
        waiting = address.connect()
        waiting.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await asyncio.to_thread(waiting.recv, 4096)).startswith(b"HTTP/1.1 200")
        answer = asyncio.create_task(fetch(address, f"/api/workers?refresh=1&workername={worker}"))
    with waiting:
        assert waiting.recv(1) == b""
    # Closing interrupts the request
    with pytest.raises((OSError, http.client.HTTPException)):
        await answer
    assert not address.accepts()
    with shelve.open(str(db)) as state:
        assert worker in state["events"].workers
    # The default executor of the event loop still works
    assert await asyncio.to_thread(sum, [1, 2]) == 3
    assert asyncio.all_tasks() - {answer} == before[1]
    assert global_state() == before[2]
    left = {thread.name for thread in set(threading.enumerate()) - before[0]}
    # Threads of the default executor stay
    assert all(name.startswith("asyncio_") for name in left), left


def test_two_consecutive_runs_leave_nothing_behind(
    worker: Broker, capp: Celery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def twice() -> None:
        await use(worker, capp, tmp_path / "first")
        await use(worker, capp, tmp_path / "second")

    asyncio.run(twice(), debug=True)
    # Unclosed resources are reported on garbage collection
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_shutting_down_the_executor_cancels_waiting_calls() -> None:
    """Tornado's `run_in_executor` would wait for ever."""

    async def main() -> None:
        released = threading.Event()
        executor = ThreadPoolExecutor(1)
        loop = FlowersLoop(IOLoop.current())
        runs, waits = (loop.run_in_executor(executor, released.wait) for _ in range(2))
        executor.shutdown(wait=False, cancel_futures=True)
        released.set()
        assert await runs
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waits, timeout=10)

    asyncio.run(main())


def test_two_instances_run_at_the_same_time(worker: Broker, capp: Celery) -> None:
    async def both() -> None:
        first, second = (FlowerProxy(capp=capp, options=options(url_prefix=prefix)) for prefix in ("one", "two"))
        async with first, second:
            for flower, prefix in ((first, "one"), (second, "two")):
                page = await fetch(Address(flower.port or 0), f"/{prefix}/workers")
                assert f'href="/{prefix}/tasks"' in page.text
        assert first.port != second.port

    asyncio.run(both())


def test_unix_sockets_and_bound_sockets_are_served(capp: Celery, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "flower.sock"
        async with FlowerProxy(capp=capp, options=options(unix_socket=path)) as flower:
            assert flower.port is None
            assert (await fetch(Address(socket_path=path), "/healthcheck")).status == 200
        assert not path.exists()
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            flower = FlowerProxy(capp=capp, options=options(metrics_port=0, metrics_address="127.0.0.1"))
            await flower.open([bound])
            assert flower.port == bound.getsockname()[1]
            for port, path_ in ((flower.port, "/healthcheck"), (flower.metrics_port, "/metrics")):
                assert (await fetch(Address(port or 0), path_)).status == 200
            with pytest.raises(RuntimeError, match="opened once"):
                await flower.open()
            assert (await fetch(Address(flower.port or 0), "/healthcheck")).status == 200
            await flower.close()
            assert bound.fileno() == -1

    asyncio.run(main())


# Tornado does not close the socket that it failed to bind
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_in_use_leaves_no_socket_and_no_thread(capp: Celery, tmp_path: Path) -> None:
    async def main() -> None:
        before = threading.enumerate()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            flower = FlowerProxy(
                capp=capp, options=options(unix_socket=tmp_path / "s", metrics_port=taken.getsockname()[1])
            )
            with pytest.raises(OSError, match="in use"):
                await flower.open()
        assert not (tmp_path / "s").exists()
        assert [thread for thread in set(threading.enumerate()) - set(before) if "asyncio" not in thread.name] == []

    asyncio.run(main())


def test_closing_does_not_wait_for_an_unreachable_broker() -> None:
    async def main() -> None:
        with Celery("server", broker=f"redis://127.0.0.1:{free_port()}") as capp:
            async with FlowerProxy(capp=capp, options=options()) as flower:
                assert (await fetch(Address(flower.port or 0), "/ready")).status == 503
            assert not flower.events.is_alive()

    asyncio.run(main())


def test_closing_does_not_wait_for_a_hanging_broker(caplog: pytest.LogCaptureFixture) -> None:
    async def main(capp: Celery) -> FlowerProxy:
        flower = FlowerProxy(capp=capp, options=options())
        await flower.open()
        await flower.close(timeout=0.5)
        return flower

    # Connections are never accepted
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        capp = Celery("server", broker=f"redis://127.0.0.1:{deaf.getsockname()[1]}", set_as_current=False)
        flower = asyncio.run(main(capp))
        assert "set socket_timeout in broker_transport_options" in caplog.text
    # From here on connections are refused
    flower.executor.shutdown()
    for thread in (flower.events, flower.monitor.watch):
        thread.join()
    capp.close()


def test_opening_in_another_event_loop_raises_an_error(io_loop: IOLoop, capp: Celery) -> None:
    flower = FlowerProxy(capp=capp, options=options())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="in the same running event loop"):
            await flower.open()

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    thread.join()
    flower.stop()
    flower.executor.shutdown()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"url_prefx": "/flower"}, "--url_prefx: .* did you mean url_prefix", id="mistyped"),
        pytest.param({"conf": "flowerconfig.py"}, "--conf: available only on the command line", id="command-line"),
        pytest.param(
            {"broker_transport_options": {"master_name": "mymaster"}},
            "--broker_transport_options: available only on the command line",
            id="option-of-the-application",
        ),
        pytest.param({"nonsense": 1}, "--nonsense: unknown option; run flower-proxy --help", id="unknown"),
        pytest.param({"port": "many"}, "--port: 'many' is not a whole number", id="type"),
        pytest.param({"port": 70000}, "--port: 70000 is not between 0 and 65535", id="value"),
        pytest.param({"url_prefix": "a?b"}, "--url_prefix: 'a.b' is not", id="prefix"),
        pytest.param({"auth_file": None}, "--auth_file: None is not a value", id="none-disables-authentication"),
        pytest.param({"auth_file": Path("/nowhere")}, "--auth_file: '/nowhere' is not a readable file", id="file"),
        pytest.param({"certfile": EXAMPLE}, "--certfile and --keyfile: TLS needs both", id="certificate-without-key"),
    ],
)
def test_invalid_options_raise_an_error_of_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_options(**settings)
    assert "\n" not in str(error.value)


def test_options_have_the_types_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_PORT", "1234")
    made = make_options(viewers="bob, carol", metrics=["self"], auth_file=EXAMPLE)
    assert (made.viewers, made.metrics, made.auth_file) == (["bob", "carol"], ["self"], str(EXAMPLE))
    for name, option in OPTIONS.items():
        if name not in ("viewers", "metrics", "auth_file"):
            assert getattr(made, name) == option.default, name


def test_options_default_to_those_of_the_command_line(io_loop: IOLoop, capp: Celery) -> None:
    """Tornado's global options belong to the embedding program."""
    with mock.patch.object(tornado_options.mockable(), "port", 1234):
        flower = FlowerProxy(capp=capp)
    assert flower.options.port == OPTIONS["port"].default
    assert flower.access.generated
    flower.stop()
    flower.executor.shutdown()


def test_importing_the_package_does_not_import_its_dependencies() -> None:
    code = "import flower_proxy, sys; print({'flower', 'celery', 'tornado'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"
    assert {"FlowerProxy", "make_options"} <= set(dir(flower_proxy))
    with pytest.raises(AttributeError, match="no attribute 'flower'"):
        _ = flower_proxy.flower


def test_the_readme_shows_the_example() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert block in EXAMPLE.read_text()
