"""The programs that tests run: Redis, a Celery worker, nginx, and Flower (stock or ours)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from celery import Celery
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from .processes import Address, answers, basic, free_port, program, request, running, wait_until

APPLICATION = "tests.support.server"
WORKER = "w1"
CREDENTIALS = "demo:secret"
USER = CREDENTIALS.partition(":")[0]
COLLEAGUE = "bob:secret"
# Credentials for Flower without a proxy: the password, and the header for --auth_header
KNOWN = {**basic(CREDENTIALS), "X-Forwarded-User": USER}

# As on Debian, the main file includes conf.d. The temporary folders replace those below /var
NGINX_MAIN = """
events {}
http {
  include /etc/nginx/mime.types;
  access_log access.log;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  include conf.d/*.conf;
}
"""

COMMANDS = {
    "stock": ["-m", "celery", "-A", APPLICATION, "flower"],
    "ours": ["-m", "flower_proxy", "-A", APPLICATION],
}
_LAUNCHED = {**COMMANDS, "without-app": ["-m", "flower_proxy"]}


@dataclass(frozen=True)
class Broker:
    """A broker that is also the result backend, unless `results` names another one."""

    url: str
    results: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which Celery programs use this broker."""
        return {"CELERY_BROKER_URL": self.url, "CELERY_RESULT_BACKEND": self.results or self.url}

    def run_tasks(self) -> list[str]:
        """Run a few tasks, one of which fails, and return their ids when all have ended."""
        with Celery(broker=self.url, backend=self.url) as app:
            results = [app.send_task("server.add", (n, n)) for n in range(2)]
            results.append(app.send_task("server.fail"))
            try:
                for result in results:
                    wait_until(result.ready, what="the tasks to end")
                return [result.id for result in results]
            finally:
                app.backend.result_consumer.stop()
                app.backend.client.close()
                for result in results:
                    # Otherwise its finalizer would connect again to cancel the subscription
                    result.backend = None


@dataclass(frozen=True)
class Flower:
    """A running Flower.

    :ivar path: the path below which it answers without a proxy.
    :ivar known: headers that authenticate the tests.
    :ivar process: the process, unless it runs elsewhere.
    """

    address: Address
    path: str
    known: Mapping[str, str] = field(default_factory=lambda: KNOWN)
    process: subprocess.Popen[bytes] | None = None

    def tasks(self) -> dict[str, dict[str, object]]:
        """Return the tasks of Flower's API by id."""
        answer = request(self.address, f"{self.path}/api/tasks", headers=self.known)
        tasks: dict[str, dict[str, object]] = json.loads(answer.text) if answer.status == 200 else {}
        return tasks

    def workers(self) -> list[dict[str, object]]:
        """Return the workers as the workers page requests them."""
        answer = request(self.address, f"{self.path}/workers?json=1", headers=self.known)
        workers: list[dict[str, object]] = json.loads(answer.text)["data"] if answer.status == 200 else []
        return workers

    def watch_tasks(self, broker: Broker) -> None:
        """Run a few tasks, and wait until Flower has received their events."""
        wait_until(lambda: any(worker.get("status") for worker in self.workers()), what="an online worker in Flower")
        ids = set(broker.run_tasks())
        wait_until(lambda: ids <= self._ended(), what=f"the end of {ids} in Flower")

    def _ended(self) -> set[str]:
        return {uuid for uuid, task in self.tasks().items() if task["state"] in ("SUCCESS", "FAILURE")}

    def metrics(self) -> list[Metric]:
        """Return the metrics of a scrape."""
        answer = request(self.address, f"{self.path}/metrics", headers=self.known)
        if answer.status != 200:
            raise ValueError(f"/metrics answers {answer.status}")
        return list(text_string_to_metric_families(answer.text))


def redis_server(folder: Path, port: int, *, keeps: bool) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a Redis server.

    :param keeps: the data outlives it in the folder.
    """
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes" if keeps else "no"]
    return running(command, log=folder / "redis.log", ready=Address(port).accepts)


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Broker]:
    """Run a Redis server without persistence."""
    port = free_port()
    with redis_server(folder, port, keeps=False):
        yield Broker(f"redis://127.0.0.1:{port}/0")


@contextlib.contextmanager
def worker_process(
    broker: Broker,
    folder: Path,
    *,
    name: str = f"{WORKER}@%h",
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker with one pool process, until it is ready."""
    command = [sys.executable, "-m", "celery", "-A", APPLICATION, "worker", "-P", "prefork", "-c", "1"]
    command += ["-n", name, "-l", "info", *options]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "worker.log"
    env = {**broker.environment, **(env or {})}
    with running(command, log=log, ready=lambda: " ready." in log.read_text(), env=env) as process:
        yield process


@contextlib.contextmanager
def worker(broker: Broker, folder: Path) -> Iterator[None]:
    """Run a worker that has already run a few tasks."""
    with worker_process(broker, folder):
        broker.run_tasks()
        yield


@contextlib.contextmanager
def launch(
    kind: str,
    broker: Broker,
    folder: Path,
    *,
    url_prefix: str = "",
    unix_socket: bool = False,
    authenticates: bool = True,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Flower]:
    """Run Flower.

    :param kind: "stock" for Celery's own command, "ours" for the launcher, "without-app" for the launcher without -A.
    :param url_prefix: the option of that name.
    :param authenticates: Flower requires `CREDENTIALS`; otherwise `options` configure authentication.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if unix_socket:
        address = Address(socket_path=folder / "flower.sock")
        listen = [f"--unix_socket={address.socket_path}"]
    else:
        address = Address(free_port())
        listen = [f"--port={address.port}", "--address=127.0.0.1"]
    prefix = [f"--url_prefix={url_prefix}"] if url_prefix else []
    auth = [f"--basic_auth={CREDENTIALS}"] if authenticates else []
    # Stock Flower answers only below the prefix
    flower = Flower(address, f"/{url_prefix.strip('/')}" if url_prefix else "")
    with running(
        [sys.executable, *_LAUNCHED[kind], *listen, *prefix, *auth, *options],
        log=folder / "flower.log",
        ready=lambda: answers(address, f"{flower.path}/healthcheck"),
        env={**broker.environment, **(env or {})},
    ) as process:
        yield replace(flower, process=process)


def htpasswd(folder: Path, *credentials: str) -> Path:
    """Write an htpasswd file with `hash-password`, for --auth_file and nginx."""
    file = folder / "htpasswd"
    lines = []
    for entry in credentials:
        user, _, password = entry.partition(":")
        command = [sys.executable, "-m", "flower_proxy", "hash-password", "--cost=4", user]
        lines.append(subprocess.run(command, input=password, check=True, capture_output=True, text=True).stdout)
    file.write_text("".join(lines))
    file.chmod(0o640)
    return file


def nginx_command(config: str, folder: Path) -> list[str]:
    """Return the command that runs nginx with this configuration, as a file in ``conf.d``.

    :raises RuntimeError: nginx rejects it.
    """
    (folder / "conf.d").mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(NGINX_MAIN)
    (folder / "conf.d" / "flower.conf").write_text(config)
    # A single foreground process does not change its user, so it works with and without root
    directives = "daemon off; master_process off; pid nginx.pid; error_log error.log;"
    command = [program("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", directives]
    check = subprocess.run([*command, "-t"], capture_output=True, text=True)
    if check.returncode != 0:
        raise RuntimeError(f"nginx -t rejects the configuration:\n{check.stderr}")
    return command


@contextlib.contextmanager
def nginx(config: str, folder: Path, *, ready: Address) -> Iterator[None]:
    """Run nginx with this configuration, until it accepts connections on `ready`."""
    command = nginx_command(config, folder)
    with running(command, log=folder / "nginx.log", ready=ready.accepts):
        yield


def certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for all host names of the tests, and its key."""
    certfile, keyfile = folder / "fullchain.pem", folder / "privkey.pem"
    command = [
        program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:flower.test"]
    command += ["-keyout", str(keyfile), "-out", str(certfile)]
    subprocess.run(command, check=True, capture_output=True)
    return certfile, keyfile
