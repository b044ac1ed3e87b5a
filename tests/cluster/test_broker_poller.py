"""What is known about queues is true, and a broker that fails or hangs is told apart from one without queues."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from tests.support.invalid_replies import INSPECTIONS, Answer, answering_worker
from tests.support.outage import Interruptible, deaf_port, interruptible, leaves_a_deaf_broker, network_to
from tests.support.processes import running, wait_until

# The oldest kombu calls redis in a way that its newest release for that kombu no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

HOST = socket.gethostname()
INTERVAL = 0.2  # seconds

ON_REDIS = pytest.mark.parametrize("outage", ["redis"], indirect=True)
ON_RABBITMQ = pytest.mark.parametrize("outage", ["rabbitmq"], indirect=True)


@contextmanager
def watching(
    capp: Celery,
    *,
    queues: Sequence[str] = (),
    workers: Callable[[], Sequence[str]] = tuple,
    on_held: Callable[[str, set[str], float], None] = lambda *_: None,
    rejections: Rejections | None = None,
    interval: float = INTERVAL,
    inspect_every: float = INTERVAL,
) -> Iterator[BrokerPoller]:
    watch = BrokerPoller(
        capp,
        queues=queues,
        workers=workers,
        on_held=on_held,
        rejections=rejections or Rejections("a reply", REASONS),
        interval=interval,
        inspect_every=inspect_every,
    )
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
        watch.join()


def look(watch: BrokerPoller) -> QueueFigures:
    """The figures of a look at the broker that begins now."""
    for what in ("the look that is under way", "the next one"):
        asked = time.monotonic()
        wait_until(lambda asked=asked: (watch.answered_at or 0) > asked, what=what)  # type: ignore[misc]
    return watch.figures


def send(capp: Celery, queue: str, *, priority: int | None = None) -> None:
    with capp.connection_for_write() as connection:
        capp.send_task("nobody.runs.this", queue=queue, connection=connection, priority=priority, ignore_result=True)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def outage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interruptible]:
    with interruptible(request.param, tmp_path_factory.mktemp(request.param)) as outage:
        yield outage


@pytest.fixture
def standing(outage: Interruptible) -> Celery:
    """The application of a broker that is a server."""
    capp = Celery(broker=outage.broker.url)
    # RabbitMQ has a message once it is sent
    capp.conf.broker_transport_options = {"confirm_publish": True}
    return capp


@pytest.fixture
def memory() -> Celery:
    capp = Celery(broker="memory://")
    # The whole process has this broker, and other tests have left messages
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
    with watching(capp, queues=["three", "missing"]) as watch:
        figures = look(watch)
        assert figures.lengths == {"three": 3, "missing": 0, "celery": 0}
        assert figures.workers == figures.consumers == {"three": 0, "missing": 0, "celery": 0}
        send(capp, "three")
        assert look(watch).lengths["three"] == 4
        assert watch.problem is None


def test_the_length_of_queues(standing: Celery) -> None:
    """P4."""
    check_lengths(standing)


@pytest.mark.parametrize("application", ["memory", "filesystem"])
def test_the_length_of_queues_without_a_server(application: str, request: pytest.FixtureRequest) -> None:
    """P22: whatever the broker."""
    check_lengths(request.getfixturevalue(application))


@ON_REDIS
def test_all_priorities_count(standing: Celery) -> None:
    for priority in (0, 3, 6, 9, 9):
        send(standing, "priorities", priority=priority)
    with watching(standing, queues=["priorities"]) as watch:
        assert look(watch).lengths["priorities"] == 5


@ON_RABBITMQ
def test_consumers_are_those_the_broker_knows(standing: Celery) -> None:
    """RabbitMQ knows of consumers that are no workers of ours."""
    with standing.connection_for_read() as connection, watching(standing, queues=["consumed"]) as watch:
        queue = Queue("consumed")
        with Consumer(connection, [queue]), Consumer(connection, [queue]):
            assert look(watch).consumers["consumed"] == 2
            assert watch.figures.workers["consumed"] == 0
        assert look(watch).consumers["consumed"] == 0


@ON_RABBITMQ
def test_a_queue_that_may_not_be_asked_for_is_left_out(standing: Celery) -> None:
    with standing.connection_for_read() as connection:
        Queue("ours-alone", exclusive=True, durable=False)(connection.default_channel).declare()
        with watching(standing, queues=["ours-alone", "other"]) as watch:
            assert look(watch).lengths == {"other": 0, "celery": 0}
            assert watch.problem is None


def test_configured_queues_are_known_without_workers(memory: Celery) -> None:
    memory.conf.task_queues = [Queue("mail"), Queue("reports")]
    with watching(memory, queues=["given"]) as watch:
        assert list(look(watch).lengths) == ["given", "mail", "reports"]


def test_not_more_queues_than_the_bound_are_asked_for(memory: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_poller, "MAX_QUEUES", 2)
    with watching(memory, queues=["one", "one", "two", "three"]) as watch:
        assert list(look(watch).lengths) == ["one", "two"]


def test_figures_are_counted_anew_on_request(standing: Celery) -> None:
    with watching(standing, interval=3600) as watch:
        for number in range(3):
            figures = asyncio.run(watch.refresh(["fresh"]))
            assert figures is watch.figures
            assert figures.lengths["fresh"] == number
            send(standing, "fresh")


def test_requests_that_wait_share_a_poll(memory: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    polled = []

    def workers() -> list[str]:
        polled.append(1)
        return []

    async def refresh() -> list[QueueFigures]:
        return await asyncio.gather(*(watch.refresh([]) for _ in range(100)))

    with watching(memory, workers=workers, interval=3600) as watch:
        asyncio.run(watch.refresh([]))
        before = len(polled)
        asyncio.run(refresh())
        # One that may have begun before the last request, and one after it
        assert len(polled) - before <= 2


# Workers


@contextmanager
def worker(broker: programs.Broker, folder: Path, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", programs.APPLICATION, "worker", "-n", name, "-l", "info", *options]
    log = folder / f"{name}.log"
    with running(command, log=log, ready=lambda: " ready." in log.read_text(), env=broker.environment) as process:
        yield process


@pytest.fixture(scope="module")
def workers(outage: Interruptible, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two that share a queue, by name."""
    folder = tmp_path_factory.mktemp("workers")
    with (
        worker(outage.broker, folder, f"a@{HOST}", "-Q", "shared,alone", "-c", "2"),
        worker(outage.broker, folder, f"b@{HOST}", "-Q", "shared", "-c", "3", "-P", "threads"),
    ):
        yield [f"a@{HOST}", f"b@{HOST}"]


def test_workers_and_processes_of_queues(standing: Celery, workers: list[str]) -> None:
    alive: list[str] = []
    with watching(standing, workers=lambda: list(alive), inspect_every=3600) as watch:
        assert look(watch).workers == {"celery": 0}
        # One that is new is asked at once
        alive.extend(workers)
        wait_until(lambda: len(watch.figures.queues_of) == 2, what="the workers tell")
        figures = look(watch)
        assert figures.queues_of == {workers[0]: ("shared", "alone"), workers[1]: ("shared",)}
        assert figures.workers == {"celery": 0, "shared": 2, "alone": 1}
        assert figures.processes == {"celery": 0, "shared": 5, "alone": 2}
        assert figures.consumers == {"celery": 0, "shared": 2, "alone": 1}
        assert figures.lengths == {"celery": 0, "shared": 0, "alone": 0}
        # One that has died is no longer counted
        alive.remove(workers[1])
        figures = look(watch)
        assert (figures.workers["shared"], figures.processes["shared"]) == (1, 2)
        assert list(figures.queues_of) == [workers[0]]
    # The application's own connections, which others wait for, were left alone
    assert standing._pool is None


def test_what_a_worker_holds(standing: Celery, workers: list[str]) -> None:
    """Tasks that run, that were fetched before, and that wait for their time."""
    held: dict[str, tuple[set[str], float]] = {}
    began = time.monotonic()
    with standing.connection_for_write() as connection:
        options: dict[str, Any] = {"queue": "alone", "connection": connection, "ignore_result": True}
        ids = {standing.send_task("server.slow", (3600,), **options).id for _ in range(4)}
        ids.add(standing.send_task("server.add", (1, 1), countdown=3600, **options).id)
    try:
        with watching(
            standing, workers=lambda: [workers[0], "gone@test"], on_held=lambda name, *told: held.update({name: told})
        ):
            wait_until(lambda: workers[0] in held and held[workers[0]][0] == ids, what="all are held")
        assert list(held) == [workers[0]]
        assert began < held[workers[0]][1] < time.monotonic()
    finally:
        with standing.connection_for_write() as connection:
            standing.control.revoke(list(ids), terminate=True, signal="SIGKILL", connection=connection)


def test_a_malformed_reply_costs_no_other(standing: Celery) -> None:
    rejections = Rejections("a reply", REASONS)
    usual = INSPECTIONS["stats"]

    def answers(command: str) -> list[Answer]:
        replies = {"stats": {**usual, "pool": "x"}, "reserved": [{}]}
        return [Answer(None), Answer({"bad@test": replies.get(command, INSPECTIONS[command])})]

    held: dict[str, set[str]] = {}
    with (
        answering_worker(standing.conf.broker_url, "bad@test", answers),
        answering_worker(
            standing.conf.broker_url, "good@test", lambda command: [Answer({"good@test": INSPECTIONS[command]})]
        ),
        watching(
            standing,
            workers=lambda: ["bad@test", "good@test"],
            on_held=lambda name, ids, _: held.update({name: ids}),
            rejections=rejections,
        ) as watch,
    ):
        wait_until(lambda: rejections.counts["invalid"] > 2 and look(watch).queues_of, what="both are asked")
        figures = look(watch)
        assert watch.problem is None
    assert figures.queues_of == {"good@test": ("celery",)}
    assert figures.processes == {"celery": 2}
    assert held == {"good@test": {"1", "2", "3"}}


def test_workers_are_asked_anew_when_events_may_have_been_missed(standing: Celery, workers: list[str]) -> None:
    told: list[str] = []
    with watching(
        standing, workers=lambda: workers, on_held=lambda name, *_: told.append(name), inspect_every=3600
    ) as watch:
        wait_until(lambda: sorted(told) == workers, what="they are asked")
        watch.ask_workers()
        wait_until(lambda: sorted(told) == sorted(workers * 2), what="they are asked again")


# Outages


def test_an_outage_is_told_and_is_over_when_the_broker_is_back(
    standing: Celery, outage: Interruptible, caplog: pytest.LogCaptureFixture
) -> None:
    with watching(standing, queues=["mail"]) as watch:
        assert look(watch).lengths == {"mail": 0, "celery": 0}
        outage.stop()
        assert wait_until(lambda: watch.problem, what="the outage is noticed") == "the broker cannot be reached"
        # Nothing that is no longer true is told
        assert (watch.figures.lengths, watch.figures.consumers) == ({}, {})
        outage.start()
        wait_until(lambda: watch.problem is None, what="the broker answers again")
        assert look(watch).lengths == {"mail": 0, "celery": 0}
    told = [record.message for record in caplog.records if record.name == "flower_proxy.metrics.broker_poller"]
    assert told == ["No queue lengths: the broker cannot be reached; trying again and again"]


def test_after_an_outage_the_workers_are_asked_at_once(broker: programs.Broker, tmp_path: Path) -> None:
    """P30: they may have told something meanwhile."""
    network = network_to(broker, tmp_path)
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.callback(network.stop)
        network.start()
        stack.enter_context(programs.worker_process(broker, tmp_path, name="w7@h", options=["-Q", "q7"]))
        capp = Celery(broker=network.broker.url)
        watch = stack.enter_context(
            watching(capp, workers=lambda: ["w7@h"], on_held=lambda name, *_: told.append(name), inspect_every=3600)
        )
        wait_until(lambda: told == ["w7@h"], what="it is asked")
        network.stop()
        wait_until(lambda: watch.problem, what="the outage is noticed")
        network.start()
        wait_until(lambda: told == ["w7@h"] * 2, what="it is asked again")


def test_a_broker_that_hangs_is_given_up(
    standing: Celery, outage: Interruptible, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a connection whose other end is gone without a word is replaced."""
    monkeypatch.setattr(broker_poller, "_PATIENCE", 3600)
    with watching(standing) as watch:
        look(watch)
        with outage.frozen():
            assert wait_until(lambda: watch.problem, what="it is noticed") == "the broker does not answer"
        wait_until(lambda: watch.problem is None, what="the broker answers again")


def test_a_transport_that_waits_for_ever_is_told(memory: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every transport of kombu's gives up in time."""
    released = threading.Event()

    def hang() -> list[str]:
        released.wait(60)
        return []

    monkeypatch.setattr(broker_poller, "_PATIENCE", 0.0)
    with watching(memory, workers=hang) as watch:
        wait_until(lambda: watch.problem == "the broker does not answer", what="it is noticed")
        released.set()
        wait_until(lambda: watch.answered_at, what="it has answered")


def test_a_request_during_an_outage_is_answered_at_once(standing: Celery, outage: Interruptible) -> None:
    with watching(standing, interval=3600) as watch:
        asyncio.run(watch.refresh([]))
        outage.stop()
        # The connection is found broken by the poll that is asked for
        assert asyncio.run(watch.refresh([], timeout=60)).lengths == {}
        assert watch.problem == "the broker cannot be reached"
        assert asyncio.run(watch.refresh([], timeout=60)).lengths == {}
        with pytest.raises(HTTPError, match="the broker cannot be reached") as raised:
            asyncio.run(BrokerQueues(standing, watch, broker_api=None).queues([]))
        assert raised.value.status_code == 503
        outage.start()


def test_a_request_does_not_wait_for_a_broker_that_hangs(standing: Celery, outage: Interruptible) -> None:
    with watching(standing, queues=["known"], interval=3600) as watch:
        before = asyncio.run(watch.refresh([]))
        with outage.frozen():
            # Had it waited for longer, the problem would have been noticed, and there were no figures
            assert asyncio.run(watch.refresh([], timeout=0.01)) == before


def test_a_request_to_a_poller_that_has_ended_is_answered(memory: Celery) -> None:
    with watching(memory) as watch:
        figures = look(watch)
    assert asyncio.run(watch.refresh([], timeout=60)) is figures


def test_before_the_first_answer_there_is_a_problem() -> None:
    with deaf_port() as (port, _):
        watch = BrokerPoller(
            Celery(broker=f"redis://127.0.0.1:{port}"),
            workers=tuple,
            on_held=lambda *_: None,
            rejections=Rejections("a reply", REASONS),
        )
        assert watch.problem == "the broker has not answered yet"
        assert watch.answered_at is None
        assert watch.figures == QueueFigures()


SCRIPT = """
import sys
from celery import Celery
from flower_proxy.events.rejections import Rejections
from flower_proxy.events.replies import REASONS
from flower_proxy.metrics.broker_poller import BrokerPoller

rejections = Rejections("a reply", REASONS)
watch = BrokerPoller(Celery(broker=sys.argv[1]), workers=tuple, on_held=print, rejections=rejections)
watch.start()
sys.stdin.readline()
watch.stop()
print("left")
"""


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_hangs_does_not_keep_the_process(scheme: str) -> None:
    """P10: SIGTERM, then nothing for minutes."""
    assert leaves_a_deaf_broker(SCRIPT, scheme) == ("left\n", 0)


def test_a_worker_that_is_back_is_asked_at_the_next_look(broker: programs.Broker, tmp_path: Path) -> None:
    alive = {"w9@h"}
    with (
        programs.worker_process(broker, tmp_path, name="w9@h", options=["-Q", "q9"]),
        watching(Celery(broker=broker.url), workers=lambda: tuple(alive), inspect_every=600) as watch,
    ):
        wait_until(lambda: "w9@h" in watch.figures.queues_of, what="it is asked")
        alive.clear()
        assert "w9@h" not in look(watch).queues_of
        alive.add("w9@h")
        wait_until(lambda: "w9@h" in watch.figures.queues_of, what="it is asked again")


def test_a_queue_whose_last_worker_is_gone_is_still_counted(broker: programs.Broker, tmp_path: Path) -> None:
    alive: set[str] = set()
    with watching(Celery(broker=broker.url), workers=lambda: tuple(alive)) as watch:
        with programs.worker_process(broker, tmp_path, name="w8@h", options=["-Q", "q8"]):
            alive.add("w8@h")
            wait_until(lambda: "q8" in watch.figures.lengths, what="it is asked")
        alive.clear()
        # Not with the watch's application, which would know the queue from then on
        send(Celery(broker=broker.url), "q8")
        assert look(watch).lengths["q8"] == 1
