"""Sources of events: each transport, real brokers and workers, and messages that only kombu can decode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer
from kombu.serialization import register
from redis import Redis
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

from flower_proxy.events.amqp_source import AmqpSource
from flower_proxy.events.kombu_source import KombuSource
from flower_proxy.events.receiver import Receiver
from flower_proxy.events.redis_source import RedisSource
from flower_proxy.events.source import source_for
from tests.support import programs, rabbitmq
from tests.support.loops import running
from tests.support.outage import interruptible
from tests.support.processes import wait_until
from tests.support.redis_servers import MASTER, RedisServers, redis_servers
from tests.support.tasks import lost_events

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

TASKS = 2000
UPPER = "application/x-upper"
USER, PASSWORD = "events", "of events/@"
# A module that cannot be imported, so that flower-proxy runs as without its extra `fast`
MISSING = 'raise ImportError("as without flower-proxy[fast]")\n'


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rabbitmq.Managed]:
    with rabbitmq.managed(tmp_path_factory.mktemp("rabbitmq")) as managed:
        yield managed


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[RedisServers]:
    with redis_servers(tmp_path_factory.mktemp("servers"), certificate) as servers:
        client = Redis(port=servers.port)
        client.acl_setuser(
            USER,
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            keys=["*"],
            channels=["*"],
            commands=["+@all", "-@dangerous", "-@admin"],
        )
        client.close()
        yield servers


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    """An event loop that runs in a thread."""
    loop = AsyncIOLoop(make_current=False)
    with running(loop):
        yield loop
    loop.close(all_fds=True)


# Real workers


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_no_event_of_real_workers_on_redis_is_lost(fast: bool, broker: programs.Broker, tmp_path: Path) -> None:
    if not fast:
        for name in ("hiredis", "orjson"):
            (tmp_path / f"{name}.py").write_text(MISSING)
    mine = programs.Broker(broker.url.removesuffix("/0") + f"/{6 + fast}")
    assert_nothing_is_lost(mine, tmp_path, "the Redis connection", env={"PYTHONPATH": str(tmp_path)})


def test_no_event_of_real_workers_on_rabbitmq_is_lost(managed: rabbitmq.Managed, tmp_path: Path) -> None:
    managed.add_user(USER, PASSWORD, vhost="lossless")
    mine = rabbitmq.RabbitMQ(f"amqp://{USER}:of%20events%2F%40@127.0.0.1:{managed.port}/lossless")
    assert_nothing_is_lost(mine, tmp_path, "the AMQP connection")


def assert_nothing_is_lost(broker: programs.Broker, folder: Path, name: str, **launched: Any) -> None:
    with (
        programs.launch("ours", broker, folder, **launched) as flower,
        programs.worker_process(broker, folder, options=["-c", "4"]),
    ):
        wait_until(lambda: any(worker["status"] for worker in flower.workers()), what="the worker is online")
        assert lost_events(broker, flower, TASKS) == {}
    assert f"Receiving events through {name}" in (folder / "flower.log").read_text()


# Transports


@contextmanager
def receiving(loop: IOLoop, capp: Celery) -> Iterator[Receiver]:
    receiver = Receiver(capp, io_loop=loop, max_tasks_in_memory=1000, enable_events=False)
    receiver.start()
    try:
        wait_until(lambda: receiver.connected, what="the receiver is connected")
        yield receiver
    finally:
        receiver.stop()
        receiver.join()


def send_heartbeats(capp: Celery, *workers: str) -> None:
    with capp.connection_for_write() as connection:
        for worker in workers:
            with capp.events.Dispatcher(connection, hostname=worker) as dispatcher:
                dispatcher.send("worker-heartbeat", freq=60.0)


REDIS: dict[str, tuple[str, dict[str, Any]]] = {
    "database": ("redis://127.0.0.1:{0.port}/4", {}),
    "user": ("redis://events:of%20events%2F%40@127.0.0.1:{0.port}/0", {}),
    "socket": ("redis+socket://{0.socket}?virtual_host=2", {}),
    "tls": ("rediss://localhost:{0.tls_port}/5?ssl_cert_reqs=required&ssl_ca_certs={0.authority}", {}),
    "sentinel": ("sentinel://127.0.0.1:{0.sentinel_port}/3", {"master_name": MASTER}),
    "key-prefix": ("redis://127.0.0.1:{0.port}/1", {"global_keyprefix": "of-events:"}),
    "fanout-prefix": ("redis://127.0.0.1:{0.port}/1", {"fanout_prefix": "/of-{db}."}),
    "no-fanout-prefix": ("redis://127.0.0.1:{0.port}/1", {"fanout_prefix": False}),
    "no-fanout-patterns": ("redis://127.0.0.1:{0.port}/1", {"fanout_patterns": False}),
}


@pytest.mark.parametrize(("url", "options"), REDIS.values(), ids=REDIS)
def test_events_are_received_from_redis(url: str, options: dict[str, Any], servers: RedisServers, loop: IOLoop) -> None:
    capp = Celery(broker=url.format(servers))
    if "master_name" in options:
        options = {**options, "sentinel_kwargs": {"password": servers.sentinel_password}}
    capp.conf.broker_transport_options = options
    assert_received(capp, loop, RedisSource)


def test_redis_py_formats_no_message_for_its_log(
    servers: RedisServers, loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """It would take 3 µs for each message, even if the record is dropped."""
    caplog.set_level("DEBUG", "push_response")
    assert_received(Celery(broker=f"redis://127.0.0.1:{servers.port}/6"), loop, RedisSource)
    assert "pmessage" not in caplog.text


def test_events_are_received_from_a_virtual_host(managed: rabbitmq.Managed, loop: IOLoop) -> None:
    managed.add_user("user", "secret", vhost="a/b")
    assert_received(Celery(broker=f"amqp://user:secret@127.0.0.1:{managed.port}/a%2Fb"), loop, AmqpSource)


def test_other_transports_are_read_by_kombu(tmp_path: Path, loop: IOLoop) -> None:
    assert_received(Celery(broker="memory://"), loop, KombuSource)
    capp = Celery(broker="filesystem://")
    names = ("data_folder_in", "data_folder_out", "control_folder", "processed_folder")
    capp.conf.broker_transport_options = {
        name: str(tmp_path / name.removesuffix("_in").removesuffix("_out")) for name in names
    }
    for folder in capp.conf.broker_transport_options.values():
        Path(folder).mkdir(exist_ok=True)
    with capp.connection_for_write() as connection:
        assert source_for(connection) is KombuSource


def test_duplicates_of_a_rolling_upgrade_are_dropped_by_kombu() -> None:
    options = {"sentinel_fanout_compat": True, "master_name": MASTER}
    assert source_for(Connection("sentinel://127.0.0.1", transport_options=options)) is KombuSource


def assert_received(capp: Celery, loop: IOLoop, kind: type[KombuSource]) -> None:
    with capp.connection_for_write() as connection:
        assert source_for(connection) is kind
    with receiving(loop, capp) as receiver:
        send_heartbeats(capp, *(f"w{number}@test" for number in range(5)))
        wait_until(lambda: len(receiver.state.workers) == 5, what="all events are processed")
        assert (receiver.dispatcher.received, receiver.reconnects) == (5, 0)
        assert sum(receiver.dispatcher.rejections.counts.values()) == 0


# Messages that only kombu decodes


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_unusual_messages_are_decoded_by_kombu(
    kind: str, servers: RedisServers, managed: rabbitmq.Managed, loop: IOLoop
) -> None:
    urls: dict[str, Callable[[], str]] = {
        "redis": lambda: f"redis://127.0.0.1:{servers.port}/8",
        "rabbitmq": lambda: f"amqp://guest:guest@127.0.0.1:{managed.port}//",
    }
    capp = Celery(broker=urls[kind]())
    # Workers with this serializer, too
    register(
        "upper", lambda event: json.dumps(event).upper(), lambda text: json.loads(text.lower()), "application/x-upper"
    )
    capp.conf.event_serializer = "upper"
    usual = [{"serializer": "json"}] * 5
    unusual = [
        {"serializer": "json", "compression": "zlib"},
        {"serializer": "upper"},
        {"serializer": "json", "content_type": "application/json", "content_encoding": "utf-16"},
    ]
    refused = [{"serializer": "pickle"}, {"serializer": "yaml"}]
    with receiving(loop, capp) as receiver, capp.connection_for_write() as connection:
        exchange = capp.events.Dispatcher(connection, enabled=False).exchange
        producer = Producer(connection.default_channel, Exchange(exchange.name, exchange.type))
        sent = [*usual, *unusual, *usual, *refused, *usual]
        for number, options in enumerate(sent):
            event = {"type": "worker-heartbeat", "hostname": f"w{number}@test", "freq": 60, "timestamp": 1, "clock": 1}
            if options.get("content_encoding"):
                producer.publish(json.dumps(event).encode(), routing_key="worker.heartbeat", **options)
            else:
                producer.publish(event, routing_key="worker.heartbeat", **options)
        wait_until(lambda: f"w{len(sent) - 1}@test" in receiver.state.workers, what="the last event is processed")
        counts = receiver.dispatcher.rejections.counts
        assert {reason: count for reason, count in counts.items() if count} == {"undecodable": len(refused)}
        refused_names = {f"w{number}@test" for number, options in enumerate(sent) if options in refused}
        assert list(receiver.state.workers) == [
            f"w{number}@test" for number in range(len(sent)) if f"w{number}@test" not in refused_names
        ]


# Connections without events


def answered(client: Redis) -> int:
    """Return the number of PINGs that Redis has answered."""
    calls: int = client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0)
    return calls


def test_a_redis_server_that_does_not_answer_is_noticed(tmp_path: Path, loop: IOLoop) -> None:
    with interruptible("redis", tmp_path) as server:
        capp = Celery(broker=server.broker.url)
        capp.conf.broker_transport_options = {"health_check_interval": 1}
        with receiving(loop, capp) as receiver, Redis.from_url(server.broker.url) as client:
            before = answered(client)
            wait_until(lambda: answered(client) > before + 2, what="PINGs")
            assert (receiver.connected, receiver.reconnects) == (True, 0)
            with server.frozen():
                wait_until(lambda: not receiver.connected, what="the unanswered PINGs are noticed")
            wait_until(lambda: receiver.reconnects == 1, what="it is subscribed again")
