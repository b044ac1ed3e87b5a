"""Polling of queues and workers, with real brokers that fail, hang and recover."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery
from kombu import Consumer, Queue
from tornado.web import HTTPError

from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.metrics import broker_poller
from flower_proxy.metrics.broker_poller import BrokerPoller, QueueFigures
from flower_proxy.web.queues import BrokerQueues
from tests.support import programs
from tests.support.concurrently import each, entering
from tests.support.invalid_replies import INSPECTIONS, Answer, answering_worker
from tests.support.outage import Interruptible, deaf_port, interruptible, leaves_a_deaf_broker, network_to
from tests.support.processes import running, wait_until

# The oldest supported kombu uses a deprecated function of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

HOST = socket.gethostname()
INTERVAL = 0.2  # seconds

ON_REDIS = pytest.mark.parametrize("site", ["redis"], indirect=True)
ON_RABBITMQ = pytest.mark.parametrize("site", ["rabbitmq"], indirect=True)


@contextmanager
def polling(
    capp: Celery,
    *,
    queues: Sequence[str] = (),
    workers: Callable[[], Sequence[str]] = tuple,
    on_tasks: Callable[[str, set[str], float], None] = lambda *_: None,
    rejections: Rejections | None = None,
    interval: float = INTERVAL,
    inspect_interval: float = INTERVAL,
) -> Iterator[BrokerPoller]:
    poller = BrokerPoller(
        capp,
        queues=queues,
        workers=workers,
        on_tasks=on_tasks,
        rejections=rejections or Rejections("a reply", REASONS),
        interval=interval,
        inspect_interval=inspect_interval,
    )
    poller.start()
    try:
        yield poller
    finally:
        poller.stop()
        poller.join()


def poll(poller: BrokerPoller) -> QueueFigures:
    """The figures of a poll that starts after the call."""
    for what in ("the poll in progress ends", "the next poll ends"):
        called_at = time.monotonic()
        wait_until(lambda called_at=called_at: (poller.answered_at or 0) > called_at, what=what)  # type: ignore[misc]
    return poller.figures


def send(capp: Celery, queue: str, *, priority: int | None = None) -> None:
    with capp.connection_for_write() as connection:
        capp.send_task("unknown.task", queue=queue, connection=connection, priority=priority, ignore_result=True)


@contextmanager
def worker(broker: programs.Broker, folder: Path, name: str, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "celery", "-A", programs.APPLICATION, "worker", "-n", name, "-l", "info", *options]
    log = folder / f"{name}.log"
    with running(command, log=log, ready=lambda: " ready." in log.read_text(), env=broker.environment):
        yield name


class Site(NamedTuple):
    """A broker and two workers that share a queue, by name."""

    outage: Interruptible
    workers: list[str]


@contextmanager
def site_with(kind: str, folder: Path) -> Iterator[Site]:
    with interruptible(kind, folder) as outage:
        starting = {
            "a": worker(outage.broker, folder, f"a@{HOST}", "-Q", "shared,alone", "-c", "2"),
            "b": worker(outage.broker, folder, f"b@{HOST}", "-Q", "shared", "-c", "3", "-P", "threads"),
        }
        with entering(starting) as workers:
            yield Site(outage, [worker.result() for worker in workers.values()])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Future[Site]]]:
    with entering({kind: site_with(kind, tmp_path_factory.mktemp(kind)) for kind in ("redis", "rabbitmq")}) as sites:
        yield sites


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, sites: Mapping[str, Future[Site]]) -> Site:
    return sites[request.param].result()


@pytest.fixture(scope="module")
def outage(site: Site) -> Interruptible:
    return site.outage


@pytest.fixture(scope="module")
def workers(site: Site) -> list[str]:
    return site.workers


@pytest.fixture
def server(outage: Interruptible) -> Celery:
    """An application whose broker is a server."""
    return application(outage)


def application(outage: Interruptible) -> Celery:
    capp = Celery(broker=outage.broker.url)
    # Messages are in RabbitMQ's queue when send_task returns
    capp.conf.broker_transport_options = {"confirm_publish": True}
    return capp


@pytest.fixture
def memory() -> Celery:
    capp = Celery(broker="memory://")
    # The broker is shared by the process, and other tests leave messages
    with capp.connection_for_write() as connection:
        connection.default_channel.queue_purge(capp.conf.task_default_queue)
    return capp


@pytest.fixture
def filesystem(tmp_path: Path) -> Celery:
    capp = Celery(broker="filesystem://")
    folders = {name: tmp_path / name for name in ("data_folder_in", "data_folder_out", "control_folder")}
    folders["data_folder_out"] = folders["data_folder_in"]
    folders["data_folder_in"].mkdir()
    capp.conf.broker_transport_options = {name: str(folder) for name, folder in folders.items()}
    return capp


# Queues


def check_lengths(capp: Celery) -> None:
    for _ in range(3):
        send(capp, "three")
    with polling(capp, queues=["three", "missing"]) as poller:
        figures = poll(poller)
        assert figures.lengths == {"three": 3, "missing": 0, "celery": 0}
        assert figures.workers == figures.consumers == {"three": 0, "missing": 0, "celery": 0}
        send(capp, "three")
        assert poll(poller).lengths["three"] == 4
        assert poller.problem is None


def test_queue_lengths(server: Celery) -> None:
    check_lengths(server)


@pytest.mark.parametrize("application", ["memory", "filesystem"])
def test_queue_lengths_of_any_kombu_transport(application: str, request: pytest.FixtureRequest) -> None:
    check_lengths(request.getfixturevalue(application))


@ON_REDIS
def test_queue_length_includes_all_priorities(server: Celery) -> None:
    for priority in (0, 3, 6, 9, 9):
        send(server, "priorities", priority=priority)
    with polling(server, queues=["priorities"]) as poller:
        assert poll(poller).lengths["priorities"] == 5


@ON_RABBITMQ
def test_consumers_are_counted_by_the_broker(server: Celery) -> None:
    """RabbitMQ also counts consumers that are not workers."""
    with server.connection_for_read() as connection, polling(server, queues=["consumed"]) as poller:
        queue = Queue("consumed")
        with Consumer(connection, [queue]), Consumer(connection, [queue]):
            assert poll(poller).consumers["consumed"] == 2
            assert poller.figures.workers["consumed"] == 0
        assert poll(poller).consumers["consumed"] == 0


@ON_RABBITMQ
def test_inaccessible_queues_are_omitted(server: Celery) -> None:
    with server.connection_for_read() as connection:
        Queue("exclusive", exclusive=True, durable=False)(connection.default_channel).declare()
        with polling(server, queues=["exclusive", "other"]) as poller:
            assert poll(poller).lengths == {"other": 0, "celery": 0}
            assert poller.problem is None


def test_configured_queues_are_polled_without_workers(memory: Celery) -> None:
    memory.conf.task_queues = [Queue("mail"), Queue("reports")]
    with polling(memory, queues=["given"]) as poller:
        assert list(poll(poller).lengths) == ["given", "mail", "reports"]


def test_at_most_max_queues_are_polled(memory: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_poller, "MAX_QUEUES", 2)
    with polling(memory, queues=["one", "one", "two", "three"]) as poller:
        assert list(poll(poller).lengths) == ["one", "two"]


def test_refresh_polls_immediately(server: Celery) -> None:
    with polling(server, interval=3600) as poller:
        for number in range(3):
            figures = asyncio.run(poller.refresh(["fresh"]))
            assert figures.lengths["fresh"] == number
            send(server, "fresh")


def test_concurrent_refreshes_share_a_poll(memory: Celery) -> None:
    polled = []

    def workers() -> list[str]:
        polled.append(1)
        return []

    async def refresh() -> list[QueueFigures]:
        return await asyncio.gather(*(poller.refresh([]) for _ in range(100)))

    with polling(memory, workers=workers, interval=3600) as poller:
        asyncio.run(poller.refresh([]))
        before = len(polled)
        asyncio.run(refresh())
        # One may have started before the last request, the other starts after it
        assert len(polled) - before <= 2


# Workers


def test_workers_and_processes_of_queues(server: Celery, workers: list[str]) -> None:
    alive: list[str] = []
    with polling(server, workers=lambda: list(alive), inspect_interval=3600) as poller:
        assert poll(poller).workers == {"celery": 0}
        # New workers are inspected at the next poll
        alive.extend(workers)
        wait_until(lambda: len(poller.figures.queues_of) == 2, what="both workers reply")
        figures = poll(poller)
        assert figures.queues_of == {workers[0]: ("shared", "alone"), workers[1]: ("shared",)}
        assert figures.workers == {"celery": 0, "shared": 2, "alone": 1}
        assert figures.processes == {"celery": 0, "shared": 5, "alone": 2}
        assert figures.consumers == {"celery": 0, "shared": 2, "alone": 1}
        assert figures.lengths == {"celery": 0, "shared": 0, "alone": 0}
        # Offline workers are not counted
        alive.remove(workers[1])
        figures = poll(poller)
        assert (figures.workers["shared"], figures.processes["shared"]) == (1, 2)
        assert list(figures.queues_of) == [workers[0]]
    # The poller does not use the application's connection pool
    assert server._pool is None


def test_tasks_of_workers_are_reported(server: Celery, workers: list[str]) -> None:
    """Active, reserved and scheduled tasks."""
    found: dict[str, tuple[set[str], float]] = {}
    started_at = time.monotonic()
    with server.connection_for_write() as connection:
        options: dict[str, Any] = {"queue": "alone", "connection": connection, "ignore_result": True}
        ids = {server.send_task("server.slow", (3600,), **options).id for _ in range(4)}
        ids.add(server.send_task("server.add", (1, 1), countdown=3600, **options).id)
    try:
        with polling(
            server,
            workers=lambda: [workers[0], "gone@test"],
            on_tasks=lambda name, *tasks: found.update({name: tasks}),
        ):
            wait_until(lambda: workers[0] in found and found[workers[0]][0] == ids, what="all tasks are reported")
        assert list(found) == [workers[0]]
        assert started_at < found[workers[0]][1] < time.monotonic()
    finally:
        with server.connection_for_write() as connection:
            server.control.revoke(list(ids), terminate=True, signal="SIGKILL", connection=connection)


def test_malformed_replies_do_not_affect_other_workers(server: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_poller, "_INSPECT_TIMEOUT", 0.3)
    rejections = Rejections("a reply", REASONS)

    def answers(command: str) -> list[Answer]:
        replies = {"stats": {**INSPECTIONS["stats"], "pool": "x"}, "reserved": [{}]}
        return [Answer(None), Answer({"bad@test": replies.get(command, INSPECTIONS[command])})]

    found: dict[str, set[str]] = {}
    with (
        answering_worker(server.conf.broker_url, "bad@test", answers),
        answering_worker(
            server.conf.broker_url, "good@test", lambda command: [Answer({"good@test": INSPECTIONS[command]})]
        ),
        polling(
            server,
            workers=lambda: ["bad@test", "good@test"],
            on_tasks=lambda name, ids, _: found.update({name: ids}),
            rejections=rejections,
        ) as poller,
    ):
        wait_until(lambda: rejections.counts["invalid"] > 2 and poll(poller).queues_of, what="both workers reply")
        figures = poll(poller)
        assert poller.problem is None
    assert figures.queues_of == {"good@test": ("celery",)}
    assert figures.processes == {"celery": 2}
    assert found == {"good@test": {"1", "2", "3"}}


def test_ask_workers_inspects_at_the_next_poll(server: Celery, workers: list[str]) -> None:
    inspected: list[str] = []
    with polling(
        server, workers=lambda: workers, on_tasks=lambda name, *_: inspected.append(name), inspect_interval=3600
    ) as poller:
        wait_until(lambda: sorted(inspected) == workers, what="both workers reply")
        poller.ask_workers()
        wait_until(lambda: sorted(inspected) == sorted(workers * 2), what="both workers reply again")


def test_a_worker_that_was_offline_is_inspected_at_the_next_poll(server: Celery, workers: list[str]) -> None:
    online = {workers[0]}
    with polling(server, workers=lambda: tuple(online), inspect_interval=600) as poller:
        wait_until(lambda: workers[0] in poller.figures.queues_of, what="the worker replies")
        online.clear()
        assert workers[0] not in poll(poller).queues_of
        online.add(workers[0])
        wait_until(lambda: workers[0] in poller.figures.queues_of, what="the worker replies again")


@ON_RABBITMQ
def test_queues_that_lost_their_last_worker_are_polled(server: Celery, workers: list[str]) -> None:
    online = {workers[1]}

    def control(command: str) -> None:
        with server.connection_for_write() as connection:
            options = {"destination": [workers[1]], "reply": True, "connection": connection}
            assert getattr(server.control, command)("left", **options)

    with polling(server, workers=lambda: tuple(online)) as poller:
        control("add_consumer")
        wait_until(lambda: poller.figures.workers.get("left") == 1, what="the worker consumes from the queue")
        control("cancel_consumer")
        wait_until(lambda: poller.figures.consumers["left"] == 0, what="the queue has no consumer")
        online.clear()
        # Another application, since sending adds the queue to the application's queues
        send(Celery(broker=server.conf.broker_url), "left")
        wait_until(lambda: poll(poller).lengths["left"] == 1, what="the message is counted")


# Outages


@contextmanager
def network(outage: Interruptible, folder: Path) -> Iterator[Interruptible]:
    """The network between a poller and the broker."""
    relay = network_to(outage.broker, folder)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()


@ON_REDIS
def test_workers_are_inspected_after_an_outage(outage: Interruptible, workers: list[str], tmp_path: Path) -> None:
    """Events may have been lost meanwhile."""
    inspected: list[str] = []
    with (
        network(outage, tmp_path) as relay,
        polling(
            application(relay),
            workers=lambda: workers,
            on_tasks=lambda name, *_: inspected.append(name),
            inspect_interval=3600,
        ) as poller,
    ):
        wait_until(lambda: sorted(inspected) == workers, what="both workers reply")
        relay.stop()
        wait_until(lambda: poller.problem, what="the outage is detected")
        relay.start()
        wait_until(lambda: sorted(inspected) == sorted(workers * 2), what="both workers reply again")


def test_a_broker_outage_is_reported_until_it_recovers(
    server: Celery, outage: Interruptible, caplog: pytest.LogCaptureFixture
) -> None:
    with polling(server, queues=["mail"]) as poller:
        assert poll(poller).lengths == {"mail": 0, "celery": 0}
        outage.stop()
        assert wait_until(lambda: poller.problem, what="the outage is detected") == "the broker cannot be reached"
        # Outdated figures are discarded
        assert (poller.figures.lengths, poller.figures.consumers) == ({}, {})
        outage.start()
        wait_until(lambda: poller.problem is None, what="the broker answers again")
        assert poll(poller).lengths == {"mail": 0, "celery": 0}
    logged = [record.message for record in caplog.records if record.name == "flower_proxy.metrics.broker_poller"]
    assert logged == ["Failed to poll the queues (the broker cannot be reached); retrying"]


def test_connections_to_an_unresponsive_broker_time_out(
    sites: Mapping[str, Future[Site]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(site: Future[Site]) -> None:
        outage = site.result().outage
        with polling(application(outage)) as poller:
            poll(poller)
            with outage.frozen():
                assert wait_until(lambda: poller.problem, what="the timeout") == "the broker does not answer"
            wait_until(lambda: poller.problem is None, what="the broker answers again")

    monkeypatch.setattr(broker_poller, "_POLL_TIMEOUT", 3600)
    each(check, sites)


def test_a_transport_without_timeouts_is_reported(memory: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang() -> list[str]:
        released.wait(60)
        return []

    monkeypatch.setattr(broker_poller, "_POLL_TIMEOUT", 0.0)
    with polling(memory, workers=hang) as poller:
        wait_until(lambda: poller.problem == "the broker does not answer", what="the problem is reported")
        released.set()
        wait_until(lambda: poller.answered_at, what="the broker answers")


def test_refresh_returns_immediately_during_an_outage(outage: Interruptible, tmp_path: Path) -> None:
    with network(outage, tmp_path) as relay:
        capp = application(relay)
        with polling(capp, interval=3600) as poller:
            asyncio.run(poller.refresh([]))
            relay.stop()
            # The requested poll detects the broken connection
            assert asyncio.run(poller.refresh([], timeout=60)).lengths == {}
            assert poller.problem == "the broker cannot be reached"
            assert asyncio.run(poller.refresh([], timeout=60)).lengths == {}
            with pytest.raises(HTTPError, match="the broker cannot be reached") as raised:
                asyncio.run(BrokerQueues(capp, poller, broker_api=None).queues([]))
            assert raised.value.status_code == 503


def test_refresh_does_not_wait_for_an_unresponsive_broker(server: Celery, outage: Interruptible) -> None:
    with polling(server, queues=["known"], interval=3600) as poller:
        before = asyncio.run(poller.refresh([]))
        with outage.frozen():
            # After a longer wait the problem would be detected and the figures discarded
            assert asyncio.run(poller.refresh([], timeout=0.01)) == before


def test_refresh_returns_after_the_poller_has_ended(memory: Celery) -> None:
    with polling(memory) as poller:
        figures = poll(poller)
    assert asyncio.run(poller.refresh([], timeout=60)) is figures


def test_a_problem_is_reported_before_the_first_answer() -> None:
    with deaf_port() as (port, _):
        poller = BrokerPoller(
            Celery(broker=f"redis://127.0.0.1:{port}"),
            workers=tuple,
            on_tasks=lambda *_: None,
            rejections=Rejections("a reply", REASONS),
        )
        assert poller.problem == "the broker has not answered yet"
        assert poller.answered_at is None
        assert poller.figures == QueueFigures()


SCRIPT = """
import sys
from celery import Celery
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.metrics.broker_poller import BrokerPoller

rejections = Rejections("a reply", REASONS)
poller = BrokerPoller(Celery(broker=sys.argv[1]), workers=tuple, on_tasks=print, rejections=rejections)
poller.start()
sys.stdin.readline()
poller.stop()
print("stopped")
"""


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_an_unresponsive_broker_does_not_delay_the_exit(scheme: str) -> None:
    """See mher/flower#771."""
    assert leaves_a_deaf_broker(SCRIPT, scheme) == ("stopped\n", 0)
