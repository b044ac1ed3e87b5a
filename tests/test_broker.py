"""One's own connection to the broker: what is wrong with it is told in a few words, and it is not tried too often."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import amqp
import pytest
import redis
from celery import Celery

from flower_proxy.events.broker import back_off, connected, problem_of
from tests.support import programs
from tests.support.outage import deaf_port
from tests.support.processes import Address, free_port, program, running


def wrapped() -> Exception:
    error = ValueError("redis://:secret@host")
    error.__cause__ = ConnectionRefusedError()
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        pytest.param(ConnectionRefusedError(), "the broker cannot be reached", id="nobody-listens"),
        pytest.param(OSError("no such host"), "the broker cannot be reached", id="no-such-host"),
        pytest.param(wrapped(), "the broker cannot be reached", id="wrapped-by-kombu"),
        pytest.param(redis.ConnectionError(), "the broker cannot be reached", id="redis-hangs-up"),
        pytest.param(amqp.ConnectionForced(), "the broker cannot be reached", id="rabbitmq-shuts-down"),
        pytest.param(TimeoutError(), "the broker does not answer", id="timeout"),
        pytest.param(redis.TimeoutError(), "the broker does not answer", id="redis-timeout"),
        pytest.param(redis.AuthenticationError(), "the broker refuses the credentials", id="redis-password"),
        pytest.param(amqp.AccessRefused(), "the broker refuses the credentials", id="rabbitmq-password"),
        pytest.param(amqp.NotAllowed(), "the broker refuses the credentials", id="rabbitmq-no-such-vhost"),
        pytest.param(ssl.SSLError(), "the broker's TLS fails", id="tls"),
        pytest.param(ValueError("amqp://:secret@host"), "the broker answers with an error", id="anything-else"),
    ],
)
def test_a_problem_is_one_of_a_few_phrases(error: Exception, problem: str) -> None:
    assert problem_of(error) == problem


@pytest.fixture
def ports(broker: programs.Broker) -> Iterator[dict[str, int]]:
    with deaf_port() as (deaf, _):
        yield {"redis": int(broker.url.rpartition(":")[2].partition("/")[0]), "deaf": deaf, "free": free_port()}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        pytest.param("redis://someone:secret@127.0.0.1:{free}", "the broker cannot be reached", id="redis-is-down"),
        pytest.param("amqp://someone:secret@127.0.0.1:{free}", "the broker cannot be reached", id="rabbitmq-is-down"),
        pytest.param("redis://someone:secret@127.0.0.1:{redis}", "the broker refuses the credentials", id="password"),
        pytest.param("rediss://someone:secret@127.0.0.1:{redis}", "the broker does not answer", id="no-tls-there"),
        pytest.param("redis://someone:secret@127.0.0.1:{deaf}", "the broker does not answer", id="redis-hangs"),
        pytest.param("amqp://someone:secret@127.0.0.1:{deaf}", "the broker does not answer", id="rabbitmq-hangs"),
    ],
)
def test_what_is_wrong_is_told_without_the_url(url: str, problem: str, ports: dict[str, int]) -> None:
    options = {"broker_connection_timeout": 1, "broker_transport_options": {"socket_timeout": 1}}
    capp = Celery(broker=url.format(**ports))
    capp.conf.update(options if url.startswith("redis") else {"broker_connection_timeout": 1})
    with pytest.raises(Exception) as raised, connected(capp):  # noqa: PT011  any: they come from many libraries
        pass
    assert problem_of(raised.value) == problem


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    address = Address(free_port())
    certfile, keyfile = map(str, certificate)
    command = [program("redis-server"), "--port", "0", "--tls-port", str(address.port), "--bind", "127.0.0.1"]
    command += ["--tls-cert-file", certfile, "--tls-key-file", keyfile, "--tls-ca-cert-file", certfile, "--save", ""]
    capp = Celery(broker=f"rediss://127.0.0.1:{address.port}")
    capp.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    with running(command, log=tmp_path / "redis.log", ready=address.accepts, cwd=tmp_path):
        with pytest.raises(Exception) as raised, connected(capp):  # noqa: PT011
            pass
        assert problem_of(raised.value) == "the broker's TLS fails"


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_the_first_of_several_addresses_that_answers_is_taken(scheme: str, broker: programs.Broker) -> None:
    others = [f"{scheme}://127.0.0.1:{free_port()}" for _ in range(3)]
    capp = Celery(broker=";".join([*others, broker.url]))
    with connected(capp) as connection:
        assert broker.url == f"redis://{connection.host}/0"


def test_timeouts_of_the_application_count(broker: programs.Broker) -> None:
    capp = Celery(broker=broker.url)
    capp.conf.broker_transport_options = {"socket_timeout": 1.5}
    with connected(capp) as connection:
        assert connection.default_channel.socket_timeout == 1.5
        assert connection.default_channel.socket_connect_timeout
    assert capp.conf.broker_transport_options == {"socket_timeout": 1.5}


def test_pauses_grow_and_never_exceed_ten_seconds() -> None:
    """P9: stock Flower doubles its pauses without end, and so stays blind for as long again as the broker was away."""
    pauses = list(islice(back_off(10.0), 100))
    assert pauses[0] <= 1
    assert all(0.5 <= pause <= 10 for pause in pauses)
    assert all(pause >= 5 for pause in pauses[4:])
    assert len(set(pauses)) > 50
