"""RabbitMQ servers of Debian's package, with ports and files of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from celery import Celery

from .processes import Address, basic, free_port, program, request, running, wait_until
from .programs import Broker

# The script on the PATH requires the user root or rabbitmq
SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"

LOOPBACK = "127.0.0.1"
# In its log: the ports are open some time before its plugins answer
STARTED = "Server startup complete"
# A single scheduler without busy waiting starts faster on few cores
ERLANG = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"


@dataclass(frozen=True)
class RabbitMQ(Broker):
    """A RabbitMQ server that is also the result backend."""

    @property
    def environment(self) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.url, "CELERY_RESULT_BACKEND": "rpc://"}

    def run_tasks(self) -> list[str]:
        with Celery(broker=self.url, backend="rpc://") as app:
            results = [app.send_task("server.add", (n, n)) for n in range(2)]
            results.append(app.send_task("server.fail"))
            try:
                for result in results:
                    wait_until(result.ready, what="a worker runs the tasks")
                return [result.id for result in results]
            finally:
                app.backend.result_consumer.stop()


@contextlib.contextmanager
def server(folder: Path, port: int, *, management: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a RabbitMQ server whose data outlives it in the folder.

    :param management: the port of its management API, which is disabled by default.
    """
    names = Address(free_port())
    config = ["log.file = false", "log.console = true"]
    if management:
        config += [f"management.tcp.port = {management}", f"management.tcp.ip = {LOOPBACK}"]
        config += ["collect_statistics_interval = 500"]  # milliseconds
    (folder / "enabled_plugins").write_text("[rabbitmq_management]." if management else "[].")
    (folder / "rabbitmq.conf").write_text("\n".join(config))
    env = {
        # Erlang writes its cookie there
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(names.port),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
    }
    log = folder / "rabbitmq.log"
    with (
        running([program("epmd")], log=folder / "epmd.log", ready=names.accepts, env=env),
        running([SERVER], log=log, ready=lambda: STARTED in log.read_text(), env=env, cwd=folder) as process,
    ):
        yield process


@dataclass(frozen=True)
class Managed:
    """A RabbitMQ server with its management API.

    :ivar port: the AMQP port.
    :ivar management: the address of the API.
    """

    port: int
    management: Address

    def add_user(self, user: str, password: str, *, vhost: str) -> None:
        """Create a virtual host and a user with all permissions in it."""
        place, name = quote(vhost, safe=""), quote(user, safe="")
        self._put(f"/api/vhosts/{place}")
        self._put(f"/api/users/{name}", password=password, tags="management")
        self._put(f"/api/permissions/{place}/{name}", configure=".*", write=".*", read=".*")

    def _put(self, path: str, **body: str) -> None:
        headers = {**basic("guest:guest"), "Content-Type": "application/json"}
        answer = request(self.management, path, method="PUT", body=json.dumps(body), headers=headers)
        assert answer.status in (201, 204), answer


@contextlib.contextmanager
def managed(folder: Path) -> Iterator[Managed]:
    """Run an empty RabbitMQ server with its management API."""
    managed = Managed(free_port(), Address(free_port()))
    with server(folder, managed.port, management=managed.management.port):
        yield managed


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """Run an empty RabbitMQ server."""
    port = free_port()
    with server(folder, port):
        yield RabbitMQ(f"amqp://guest:guest@{LOOPBACK}:{port}//")
