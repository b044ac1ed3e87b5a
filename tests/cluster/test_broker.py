"""Connections to the broker: error descriptions, timeouts and back-off."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis
from celery import Celery

from flower_proxy.events.broker import back_off, connected, problem_of
from tests.support import programs
from tests.support.outage import deaf_port
from tests.support.processes import Address, answers, free_port, program, request, running, wait_until
from tests.support.redis_servers import MASTER, RedisServers, redis_servers

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")


def wrapped() -> Exception:
    error = ValueError("redis://:secret@host")
    error.__cause__ = ConnectionRefusedError()
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        pytest.param(ConnectionRefusedError(), "the broker cannot be reached", id="connection-refused"),
        pytest.param(OSError("no such host"), "the broker cannot be reached", id="no-such-host"),
        pytest.param(wrapped(), "the broker cannot be reached", id="wrapped-by-kombu"),
        pytest.param(redis.ConnectionError(), "the broker cannot be reached", id="redis-closes-the-connection"),
        pytest.param(amqp.ConnectionForced(), "the broker cannot be reached", id="rabbitmq-shuts-down"),
        pytest.param(TimeoutError(), "the broker does not answer", id="timeout"),
        pytest.param(redis.TimeoutError(), "the broker does not answer", id="redis-timeout"),
        pytest.param(redis.AuthenticationError(), "the broker refuses the credentials", id="redis-password"),
        pytest.param(amqp.AccessRefused(), "the broker refuses the credentials", id="rabbitmq-password"),
        pytest.param(amqp.NotAllowed(), "the broker refuses the credentials", id="rabbitmq-no-such-vhost"),
        pytest.param(ssl.SSLError(), "the TLS handshake with the broker fails", id="tls"),
        pytest.param(ValueError("amqp://:secret@host"), "the broker answers with an error", id="other-errors"),
    ],
)
def test_errors_map_to_fixed_phrases(error: Exception, problem: str) -> None:
    assert problem_of(error) == problem


@pytest.fixture
def ports(broker: programs.Broker) -> Iterator[dict[str, int]]:
    with deaf_port() as (deaf, _):
        yield {"redis": int(broker.url.rpartition(":")[2].partition("/")[0]), "deaf": deaf, "free": free_port()}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        pytest.param("redis://user:secret@127.0.0.1:{free}", "the broker cannot be reached", id="redis-is-down"),
        pytest.param("amqp://user:secret@127.0.0.1:{free}", "the broker cannot be reached", id="rabbitmq-is-down"),
        pytest.param("redis://user:secret@127.0.0.1:{redis}", "the broker refuses the credentials", id="password"),
        pytest.param("rediss://user:secret@127.0.0.1:{redis}", "the broker does not answer", id="server-without-tls"),
        pytest.param("redis://user:secret@127.0.0.1:{deaf}", "the broker does not answer", id="redis-hangs"),
        pytest.param("amqp://user:secret@127.0.0.1:{deaf}", "the broker does not answer", id="rabbitmq-hangs"),
    ],
)
def test_error_descriptions_do_not_contain_the_url(url: str, problem: str, ports: dict[str, int]) -> None:
    options = {"broker_connection_timeout": 1, "broker_transport_options": {"socket_timeout": 1}}
    capp = Celery(broker=url.format(**ports))
    capp.conf.update(options if url.startswith("redis") else {"broker_connection_timeout": 1})
    with pytest.raises(Exception) as raised, connected(capp):  # noqa: PT011  the libraries share no base class
        pass
    assert problem_of(raised.value) == problem


def test_an_untrusted_certificate_is_reported_as_a_tls_error(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    address = Address(free_port())
    certfile, keyfile = map(str, certificate)
    command = [program("redis-server"), "--port", "0", "--tls-port", str(address.port), "--bind", "127.0.0.1"]
    command += ["--tls-cert-file", certfile, "--tls-key-file", keyfile, "--tls-ca-cert-file", certfile, "--save", ""]
    capp = Celery(broker=f"rediss://127.0.0.1:{address.port}")
    capp.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    with running(command, log=tmp_path / "redis.log", ready=address.accepts, cwd=tmp_path):
        with pytest.raises(Exception) as raised, connected(capp):  # noqa: PT011
            pass
        assert problem_of(raised.value) == "the TLS handshake with the broker fails"


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_the_first_reachable_broker_url_is_used(scheme: str, broker: programs.Broker) -> None:
    unreachable = [f"{scheme}://127.0.0.1:{free_port()}" for _ in range(3)]
    capp = Celery(broker=";".join([*unreachable, broker.url]))
    with connected(capp) as connection:
        assert broker.url == f"redis://{connection.host}/0"


def test_timeouts_of_the_application_are_kept(broker: programs.Broker) -> None:
    capp = Celery(broker=broker.url)
    capp.conf.broker_transport_options = {"socket_timeout": 1.5}
    with connected(capp) as connection:
        assert connection.default_channel.socket_timeout == 1.5
        assert connection.default_channel.socket_connect_timeout
    assert capp.conf.broker_transport_options == {"socket_timeout": 1.5}


# As a command


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[RedisServers]:
    with redis_servers(tmp_path_factory.mktemp("servers"), certificate) as servers:
        yield servers


def options_of(servers: RedisServers) -> dict[str, Any]:
    return {"master_name": MASTER, "sentinel_kwargs": {"password": servers.sentinel_password}}


SENTINEL = "sentinel://127.0.0.1:{0.sentinel_port}/3;sentinel://127.0.0.1:1/3"
TLS = "rediss://localhost:{0.tls_port}/5?ssl_cert_reqs=required&ssl_ca_certs={0.authority}"


@pytest.mark.parametrize("url", [SENTINEL, TLS], ids=["sentinel", "tls"])
def test_workers_tasks_and_queues_are_shown_without_an_application(
    url: str, servers: RedisServers, tmp_path: Path
) -> None:
    broker = programs.Broker(url.format(servers), results=f"redis://127.0.0.1:{servers.port}/9")
    options = options_of(servers) if url is SENTINEL else {}
    text = json.dumps(options)
    arguments = ["-b", broker.url, "--queues=mail", *([f"--broker_transport_options={text}"] if options else [])]
    with (
        programs.worker_process(broker, tmp_path, env={"BROKER_TRANSPORT_OPTIONS": text}),
        programs.launch("without-app", broker, tmp_path, options=arguments) as flower,
        Celery(broker=broker.url) as capp,
    ):
        wait_until(lambda: any(worker["status"] for worker in flower.workers()), what="the worker is online")
        capp.conf.broker_transport_options = options
        with capp.connection_for_write() as connection:
            task = capp.send_task("server.add", (1, 1), connection=connection, ignore_result=True)
            capp.send_task("server.add", (1, 1), queue="mail", connection=connection, ignore_result=True)
        wait_until(lambda: flower.tasks().get(task.id, {}).get("state") == "SUCCESS", what="the task has succeeded")
        queues = json.loads(request(flower.address, "/api/queues/length", headers=programs.KNOWN).text)["active_queues"]
        assert {queue["name"]: queue["messages"] for queue in queues} == {"celery": 0, "mail": 1}
    log = (tmp_path / "flower.log").read_text()
    assert servers.sentinel_password not in log
    assert "Traceback" not in log


def test_transport_options_override_those_of_the_application(servers: RedisServers, tmp_path: Path) -> None:
    broker = programs.Broker(SENTINEL.format(servers))
    of_application = json.dumps({**options_of(servers), "master_name": "of the application"})
    given = json.dumps({"master_name": MASTER})
    with programs.launch(
        "ours",
        broker,
        tmp_path,
        options=[f"--broker_transport_options={given}"],
        env={"BROKER_TRANSPORT_OPTIONS": of_application},
    ) as flower:
        wait_until(lambda: answers(flower.address, "/ready"), what="the broker answers")


def test_a_wrong_certificate_authority_is_reported_as_a_tls_error(servers: RedisServers, tmp_path: Path) -> None:
    other, _ = programs.certificate(tmp_path)
    broker = programs.Broker(TLS.format(replace(servers, authority=other)))
    with programs.launch("without-app", broker, tmp_path) as flower:
        log = tmp_path / "flower.log"
        wait_until(
            lambda: "Failed to poll the queues (the TLS handshake with the broker fails)" in log.read_text(),
            what="the log has the cause",
        )
        assert "the TLS handshake with the broker fails" in request(flower.address, "/ready").text


def test_a_sentinel_url_without_master_name_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flower_proxy", "-b", "sentinel://:PLANTED@127.0.0.1:1/0", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "flower-proxy: the broker is Redis Sentinel, which needs the name of the master; add"
        """ --broker_transport_options='{"master_name": "mymaster"}'\n""",
    )


def test_timeouts_also_apply_to_sentinels_with_a_password(servers: RedisServers) -> None:
    """By default redis-py ignores the socket options if `sentinel_kwargs` is set."""
    capp = Celery(broker=f"sentinel://127.0.0.1:{servers.sentinel_port}/0")
    capp.conf.broker_transport_options = {**options_of(servers), "socket_timeout": 1.5}
    with connected(capp) as connection:
        (sentinel,) = connection.default_channel.client.connection_pool.sentinel_manager.sentinels
        settings = sentinel.connection_pool.connection_kwargs
    assert settings["socket_timeout"] == 1.5
    assert settings["socket_connect_timeout"]
    assert settings["password"] == servers.sentinel_password


def test_back_off_grows_up_to_the_maximum() -> None:
    """Stock Flower doubles its interval without a limit (mher/flower#321)."""
    intervals = list(islice(back_off(10.0), 100))
    assert intervals[0] <= 1
    assert all(0.5 <= interval <= 10 for interval in intervals)
    assert all(interval >= 5 for interval in intervals[4:])
    assert len(set(intervals)) > 50
