"""RabbitMQ from Debian's package, beside no service of that name: all its ports and files are its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from .processes import Address, free_port, program, running, wait_until
from .programs import Broker

# Not the one on the PATH, which wants to be root or rabbitmq
SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"

LOOPBACK = "127.0.0.1"
# One scheduler that does not spin: it starts sooner where there are few cores
ERLANG = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"


@dataclass(frozen=True)
class RabbitMQ(Broker):
    """A RabbitMQ server; results come back through it too."""

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
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A RabbitMQ server that listens there. What it keeps is in the folder, and there again for the next one."""
    names = Address(free_port())
    (folder / "enabled_plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text("log.file = false\nlog.console = true\n")
    env = {
        # Erlang's cookie is put there
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
    with (
        running([program("epmd")], log=folder / "epmd.log", ready=names.accepts, env=env),
        running([SERVER], log=folder / "rabbitmq.log", ready=Address(port).accepts, env=env, cwd=folder) as process,
    ):
        yield process


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """A RabbitMQ server that has nothing yet."""
    port = free_port()
    with server(folder, port):
        yield RabbitMQ(f"amqp://guest:guest@{LOOPBACK}:{port}//")
