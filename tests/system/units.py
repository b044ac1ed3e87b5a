"""The systemd units of ``flower-proxy config`` and of the examples, run by systemd as process 1.

Each test runs the commands in the comment of the unit. No request is retried, as ``systemctl start`` returns when
flower-proxy is ready.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import PROJECT, wait_until
from tests.system.machine import Machine, booted

SERVICE, SOCKET = "flower-proxy.service", "flower-proxy.socket"
UNITS = "/etc/systemd/system"
FILE = "/run/flower/flower.sock"
PREFIX = "--url_prefix=flower"
PORT = "http://127.0.0.1:5555/flower/"
APPLICATION = 'from celery import Celery\n\napp = Celery("server", broker="redis://127.0.0.1:6379/0")\n'
NGINX = """
server {
  listen 8080;
  location /flower/ {
    proxy_pass http://unix:%s;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
  }
}
"""
# Sends requests until the file /tmp/stop exists, and prints the number of each status and error
LOAD = """
import base64, collections, os, threading, urllib.request

def send(counts):
    headers = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    while not os.path.exists("/tmp/stop"):
        for page in ("", "workers?json=1", "healthcheck", "static/css/flower.css"):
            request = urllib.request.Request("http://127.0.0.1:8080/flower/" + page, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    response.read()
                    counts[str(response.status)] += 1
            except OSError as error:
                counts[str(error)] += 1

counts = collections.Counter()
threads = [threading.Thread(target=send, args=[counts]) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import json; print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine, with a project in /srv/app and flower-proxy in its virtual environment."""
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        make_project(machine, "/srv/app")
        yield machine


def make_project(machine: Machine, folder: str) -> None:
    machine.write(f"{folder}/server.py", APPLICATION)
    machine.run(f"cd /source && python3 -m venv {folder}/.venv && {folder}/.venv/bin/pip install . 'celery[redis]'")


SECRETS = {"CELERY_BROKER_URL": "redis://127.0.0.1:6379/0", "FLOWER_METRICS_AUTH": "p:q"}


def _added(line: re.Match[str]) -> str:
    return f"echo '{line[1]}={SECRETS[line[1]]}' >> /etc/flower/environment"


@dataclass(frozen=True)
class Units:
    """The units of flower-proxy on the machine."""

    machine: Machine

    def install(self, words: str, *, folder: str = "/", program: str = "/srv/app/.venv/bin/flower-proxy") -> None:
        """Write the units for these arguments of ``config``, and run the commands in their comment."""
        self.write_printed("systemd", words, SERVICE, folder, program)
        if self.has_socket():
            self.write_printed("systemd-socket", words, SOCKET, folder, program)
        self.follow(SERVICE)

    def write_printed(
        self, target: str, words: str, unit: str, folder: str = "/", program: str = "/srv/app/.venv/bin/flower-proxy"
    ) -> None:
        self.machine.run(f"cd {folder} && {program} config {target} {words} > {UNITS}/{unit}")

    def has_socket(self) -> bool:
        return f"\nRequires={SOCKET}\n" in self.text(SERVICE)

    def text(self, unit: str) -> str:
        return self.machine.run(f"cat {UNITS}/{unit}").stdout

    def follow(self, unit: str) -> None:
        """Run the commands in the comment of a unit, except the first one, which starts flower-proxy without systemd.

        Lines such as ``CELERY_BROKER_URL=...`` are added to the environment file.
        """
        _, *commands = re.findall(r"^#   (.*)$", self.text(unit).partition("\n[")[0], re.MULTILINE)
        lines = [re.sub(r"^(\w+)=\.\.\.$", _added, command) for command in commands]
        self.machine.run("\n".join(lines), text="secret\n")

    def stop(self) -> None:
        """Stop the units, and assert that flower-proxy exited with status 0."""
        self.machine.run(f"cd {UNITS} && systemctl stop $(ls -r flower-proxy.*)")
        shown = self.machine.show(SERVICE, "ActiveState", "Result", "ExecMainCode", "ExecMainStatus")
        assert shown == ["inactive", "success", "1", "0"], "exited, with status 0"
        assert self.machine.run("systemctl --failed --no-legend").stdout == ""


@pytest.fixture
def units(machine: Machine) -> Iterator[Units]:
    """Units that are removed after the test."""
    yield Units(machine)
    machine.run(f"systemctl disable --now {SERVICE} {SOCKET}", check=False)
    machine.run(f"rm -rf {UNITS}/flower-proxy.* /etc/flower /etc/nginx/conf.d/* /var/lib/private/flower-proxy")
    machine.run("systemctl daemon-reload; systemctl reset-failed; systemctl restart nginx")


PREPARE = {
    "passwords": "install -D -m 0600 /dev/stdin /etc/flower/passwords <<< me:secret",
    "certificate": (
        "install -d -m 0700 /etc/flower; openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost"
        " -keyout /etc/flower/key.pem -out /etc/flower/cert.pem; chmod 0600 /etc/flower/*.pem"
    ),
}
AT_PORT = {
    "a port": (PREFIX, "", [PORT]),
    "another port": (f"{PREFIX} --port=8000", "", ["http://127.0.0.1:8000/flower/"]),
    "state": (f"{PREFIX} --persistent", "", [PORT]),
    "metrics": (
        f"{PREFIX} --metrics_port=9808 --metrics_address=127.0.0.1 --metrics_open",
        "",
        [PORT, "http://127.0.0.1:9808/metrics"],
    ),
    "other password file": (f"{PREFIX} --auth_file=/etc/flower/users", "", [PORT]),
    "passwords": (f"{PREFIX} --basic_auth_file=/etc/flower/passwords", "passwords", [PORT]),
    "TLS": (
        f"{PREFIX} --certfile=/etc/flower/cert.pem --keyfile=/etc/flower/key.pem",
        "certificate",
        [PORT.replace("http", "https")],
    ),
    "secrets in the environment": (
        f"{PREFIX} --broker={SECRETS['CELERY_BROKER_URL']} --metrics_auth={SECRETS['FLOWER_METRICS_AUTH']}",
        "",
        [PORT, f"-u p:q {PORT}metrics"],
    ),
    "a port below 1024": (f"{PREFIX} --port=80", "", ["http://127.0.0.1/flower/"]),
    "a port below 1024 on two addresses": (
        f"{PREFIX} --port=81 --address=localhost",
        "",
        ["http://127.0.0.1:81/flower/", "http://[::1]:81/flower/"],
    ),
}


@pytest.mark.parametrize(("words", "prepare", "pages"), AT_PORT.values(), ids=AT_PORT)
def test_units_that_listen_on_a_port(units: Units, words: str, prepare: str, pages: list[str]) -> None:
    units.machine.run("systemctl stop nginx")
    units.machine.run(PREPARE.get(prepare, ""))
    units.install(words)
    assert [units.machine.status(page) for page in pages] == [200] * len(pages)
    assert units.machine.status(pages[0], "-u me:wrong") == 401
    units.machine.run(f"systemctl is-active {SERVICE}")
    units.stop()


def test_special_characters_in_options_are_escaped(units: Units) -> None:
    option = """--queues=100%,$HOME,$$(HOME),%n,a b,x"z"""
    units.install(f"{PREFIX} '{option}'")
    (pid,) = units.machine.show(SERVICE, "MainPID")
    assert option in units.machine.run(f"tr '\\0' '\\n' < /proc/{pid}/cmdline").stdout.splitlines()
    units.stop()


AT_SOCKET = {"a unix socket": "", "with state": "--persistent", "another group": "--socket_group=games"}


@pytest.mark.parametrize("words", AT_SOCKET.values(), ids=AT_SOCKET)
def test_units_that_listen_on_a_unix_socket(units: Units, words: str) -> None:
    units.install(f"{PREFIX} --unix_socket={FILE} {words}")
    units.machine.run(f"systemctl is-active {SERVICE} {SOCKET}")
    option, page = f"--unix-socket {FILE}", "http://localhost/flower/"
    member, other = ("games", "www-data") if "games" in words else ("www-data", "nobody")
    assert units.machine.status(page, option, user=member) == 200
    assert units.machine.status(page, option, user=other) == 0, "only members of the group can connect"
    units.stop()


@pytest.mark.parametrize("service", [SERVICE, "with-socket.service"])
def test_units_of_the_examples(units: Units, service: str) -> None:
    units.machine.run(f"cp /source/examples/systemd/{service} {UNITS}/{SERVICE}")
    page = PORT
    if service != SERVICE:
        units.machine.run(f"cp /source/examples/systemd/{SOCKET} {UNITS}")
        page = f"--unix-socket {FILE} {PORT}"
    units.follow(SERVICE)
    assert units.machine.status(page) == 200
    units.stop()


def test_state_persists_across_a_restart(units: Units) -> None:
    units.install(f"{PREFIX} --persistent")
    units.machine.run(f"systemctl restart {SERVICE}")
    assert units.machine.status(PORT) == 200
    units.stop()
    assert "flower.db" in units.machine.run("ls /var/lib/private/flower-proxy").stdout


@pytest.mark.parametrize("folder", ["/home/dev/app", "/root/app", "/var/tmp/app"])
def test_units_for_projects_in_folders_that_hardening_hides(units: Units, folder: str) -> None:
    make_project(units.machine, folder)
    # HOME_MODE in login.defs may be 0700
    units.machine.run(f"chmod 0700 {folder.rpartition('/')[0]}" if folder.startswith("/home") else "")
    units.install(PREFIX, folder=folder, program=f"{folder}/.venv/bin/flower-proxy")
    assert f"ExecStart={folder}/.venv/bin/flower-proxy " in units.text(SERVICE)
    assert units.machine.status(PORT) == 200
    (pid,) = units.machine.show(SERVICE, "MainPID")
    assert units.machine.run(f"readlink /proc/{pid}/cwd").stdout == f"{folder}\n"
    units.stop()


def test_migration_from_a_port_to_a_unix_socket(units: Units) -> None:
    units.install(PREFIX)
    assert units.machine.status(PORT) == 200
    for target, unit in (("systemd", SERVICE), ("systemd-socket", SOCKET)):
        units.write_printed(target, f"{PREFIX} --unix_socket={FILE}", unit)
    units.follow(SOCKET)
    units.machine.run(f"systemctl is-active {SERVICE} {SOCKET}")
    assert units.machine.status(f"--unix-socket {FILE} {PORT}") == 200
    assert units.machine.status(PORT) == 0, "the port is closed"
    units.stop()


def test_migration_to_socket_activation_on_the_same_port(units: Units) -> None:
    units.install(PREFIX)
    for target, unit in (("systemd", SERVICE), ("systemd-socket", SOCKET)):
        units.write_printed(target, PREFIX, unit)
    units.follow(SOCKET)
    units.machine.run(f"systemctl is-active {SERVICE} {SOCKET}")
    (pid,) = units.machine.show(SERVICE, "MainPID")
    assert "LISTEN_FDS=1" in units.machine.run(f"cat /proc/{pid}/environ").stdout
    assert units.machine.status(PORT) == 200
    units.stop()


def test_restarts_behind_nginx_lose_no_request(units: Units) -> None:
    units.install(f"{PREFIX} --unix_socket={FILE}")
    units.machine.write("/etc/nginx/conf.d/flower.conf", NGINX % FILE)
    units.machine.write("/tmp/load.py", LOAD)
    units.machine.run("nginx -t && systemctl reload nginx")
    units.machine.run(
        "systemd-run --unit=load -p RemainAfterExit=yes -p StandardOutput=file:/tmp/load python3 /tmp/load.py"
    )
    for _ in range(5):
        # reset-failed resets the rate limit of five starts in ten seconds
        units.machine.run(f"systemctl reset-failed {SERVICE}; systemctl restart {SERVICE}")
        assert units.machine.status("http://127.0.0.1:8080/flower/") == 200
    units.machine.run("touch /tmp/stop")
    counts = wait_until(lambda: units.machine.run("cat /tmp/load").stdout, what="the end of the load")
    units.machine.run("systemctl stop load; rm /tmp/stop")
    answered = json.loads(counts)
    errors = units.machine.run("tail -n 5 /var/log/nginx/error.log").stdout
    assert set(answered) == {"200"}, f"{answered} {errors}"
    assert answered["200"] > 100
    units.stop()


def test_an_unknown_option_is_not_restarted(units: Units) -> None:
    units.install(PREFIX)
    units.machine.run(f"systemctl stop {SERVICE} && sed -i 's/{PREFIX}/--url_prefx=flower/' {UNITS}/{SERVICE}")
    started = units.machine.run(f"systemctl daemon-reload && systemctl start {SERVICE}", check=False)
    assert started.returncode == 1
    assert units.machine.show(SERVICE, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "2", "0"]
    assert "did you mean --url_prefix?" in units.machine.run(f"journalctl --unit={SERVICE} --lines=5").stdout


def test_commands_of_the_django_readme(units: Units) -> None:
    """The packages are installed before; stubs replace apt-get, certbot and the prompts."""
    readme = (PROJECT / "examples" / "django" / "README.md").read_text()
    commands = "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    folder = "/etc/letsencrypt/live/flower.test"
    units.machine.write("/usr/local/bin/apt-get", "#!/bin/sh\n")
    units.machine.write(
        "/usr/local/bin/certbot",
        f"#!/bin/sh\nmkdir -p {folder}\nopenssl req -x509 -newkey rsa:2048 -nodes -subj /CN=flower.test"
        f" -keyout {folder}/privkey.pem -out {folder}/fullchain.pem\n",
    )
    units.machine.run("chmod +x /usr/local/bin/*")
    commands = commands.replace("name=example.com", "name=flower.test")
    units.machine.run(f"cd /source\n{commands}", text="secret\n")
    units.machine.run("systemctl is-active gunicorn celery-worker celery-beat flower-proxy nginx redis-server")
    resolve = "--resolve flower.test:443:127.0.0.1"
    for path in ("", "flower/", "flower/ready", "static/server/front.css"):
        assert units.machine.status(f"https://flower.test/{path}", resolve) == 200, path
    workers = f"curl -sk -u me:secret {resolve} 'https://flower.test/flower/workers?json=1'"
    wait_until(lambda: '"status": true' in units.machine.run(workers).stdout, what="an online worker in Flower")
    units.machine.run("systemctl stop flower-proxy")
    assert units.machine.show(SERVICE, "Result", "ExecMainStatus") == ["success", "0"]
    assert units.machine.run("systemctl --failed --no-legend").stdout == ""
    assert "flower.test" in units.machine.show(SERVICE, "Description")[0]
