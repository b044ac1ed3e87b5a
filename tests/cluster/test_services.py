"""The output of ``flower-proxy config`` for service managers and containers, used by the real programs.

The files of Docker and Kubernetes are validated against a schema, and their commands run without a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from flower_proxy.deploy.plan import EXAMPLE_HOST, EXAMPLE_PROJECT, SOCKET_GROUP, DeploymentSpec, Project, plan
from flower_proxy.deploy.render import render
from flower_proxy.deploy.targets import TARGETS
from flower_proxy.settings.options import OPTIONS
from tests.support.configurations import config, documents, printed
from tests.support.processes import PROJECT, Address, answers, basic, free_port, program, request, running, wait_until
from tests.support.programs import CREDENTIALS, htpasswd

FLOWER_PROXY = str(Path(sys.executable).with_name("flower-proxy"))
INSTALLED = "/srv/app/.venv/bin/flower-proxy"
PREFIXED = "--url_prefix=flower"
SOCKET = "/run/flower/flower.sock"
ODD = "100%,$HOME,$$(HOME),$$$$,a b,x\"y'z"
SECRETS = {"FLOWER_COOKIE_SECRET": "a secret"}
SPEC = DeploymentSpec(
    values={},
    celery={"-A": "server"},
    secrets=[],
    strip=False,
    server_name=EXAMPLE_HOST,
    tls=False,
    forward_auth="",
    proxy_basic_auth=False,
    socket_group=SOCKET_GROUP,
    project=EXAMPLE_PROJECT,
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a Celery application, ``server``, and a password file."""
    (tmp_path / "server.py").write_text("from celery import Celery\n\napp = Celery('server', broker='memory://')\n")
    htpasswd(tmp_path, CREDENTIALS)
    return tmp_path


def adapted(text: str, project: Path, address: Address) -> str:
    """Replace the folder, port and socket, and remove the system user."""
    table = {
        INSTALLED: FLOWER_PROXY,
        "/srv/app": str(project),
        "/etc/flower": str(project),
        "/run/secrets": str(project),
        "/var/log/supervisor": str(project),
        "5555": str(address.port),
        "user=flower\n": "",
    }
    if address.socket_path:
        table[SOCKET] = str(address.socket_path)
    for old, new in table.items():
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def started(words: Sequence[str], project: Path, address: Address, env: Mapping[str, str]) -> Iterator[None]:
    """Run a printed command, which requires authentication with the password file."""
    ready = lambda: answers(address, "/healthcheck")  # noqa: E731
    with running(words, log=project / "flower.log", ready=ready, cwd=project, env=env):
        assert_answers(address)
        yield


def assert_answers(address: Address) -> None:
    assert request(address, "/flower/").status == 401
    page = request(address, "/flower/", headers=basic(CREDENTIALS))
    assert page.status == 200
    assert 'href="/flower/tasks"' in page.text


# systemd


def setting(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def exec_start(unit: str, credentials: Path) -> list[str]:
    (line,) = setting(unit, "ExecStart")
    return shlex.split(line.replace("%d", str(credentials)).replace("%S", str(credentials)))


UNITS = {
    "a port": PREFIXED,
    "a unix socket": f"{PREFIXED} --unix_socket={SOCKET}",
    "persistent state": f"{PREFIXED} --persistent",
    "TLS": f"{PREFIXED} --certfile=/etc/flower/cert.pem --keyfile=/etc/flower/key.pem",
    "special characters": f"--queues={shlex.quote(ODD)}",
    "a port below 1024": f"{PREFIXED} --port=80",
}


@pytest.fixture(params=UNITS)
def units(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """The unit files for these options, with the path of this flower-proxy."""
    files = {"flower-proxy.service": "systemd"}
    if request.param in ("a unix socket", "a port below 1024"):
        files["flower-proxy.socket"] = "systemd-socket"
    for name, target in files.items():
        (tmp_path / name).write_text(printed(f"{target} {UNITS[request.param]}").replace(INSTALLED, FLOWER_PROXY))
    return [tmp_path / name for name in files]


def test_systemd_accepts_the_units(units: list[Path]) -> None:
    verify = [program("systemd-analyze"), "verify", "--man=no", *map(str, units)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_rates_the_exposure_as_low(units: list[Path]) -> None:
    analyse = [program("systemd-analyze"), "security", "--no-pager", "--offline=yes", "--threshold=20"]
    done = subprocess.run([*analyse, str(units[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        ("", ["127.0.0.1:5555"]),
        ("0.0.0.0", ["0.0.0.0:5555"]),
        ("::", ["[::]:5555"]),
        ("localhost", ["127.0.0.1:5555", "[::1]:5555"]),
        ("192.0.2.1", ["192.0.2.1:5555"]),
    ],
)
def test_systemd_listens_on_the_given_address(address: str, listens: list[str], tmp_path: Path) -> None:
    socket = tmp_path / "flower-proxy.socket"
    socket.write_text(printed(f"systemd-socket {f'--address={address}' if address else ''}"))
    (tmp_path / "flower-proxy.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert dumped(socket)["ListenStream"] == listens


def dumped(*units: Path) -> dict[str, list[str]]:
    """Return the settings that systemd parsed, by its own names."""
    verify = [program("systemd-analyze"), "verify", "--man=no", *map(str, units)]
    done = subprocess.run(verify, capture_output=True, text=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"})
    assert done.returncode == 0, done.stderr
    read: dict[str, list[str]] = {}
    for name, value in re.findall(r"^\t+([\w ]+): (.*)$", done.stdout, re.MULTILINE):
        read.setdefault(name, []).append(value)
    return read


def test_services_raise_the_file_descriptor_limit() -> None:
    django = (PROJECT / "examples" / "django" / "systemd" / "flower-proxy.service").read_text()
    for unit in (printed("systemd"), printed(f"systemd --unix_socket={SOCKET}"), django):
        assert setting(unit, "LimitNOFILE") == ["4096"]
    (compose,) = documents(printed("compose"))
    assert compose["services"]["flower-proxy"]["ulimits"] == {"nofile": 4096}


def test_the_command_of_systemd_serves_flower(project: Path) -> None:
    address = Address(free_port())
    unit = adapted(printed(f"systemd {PREFIXED} --port={address.port}"), project, address)
    assert setting(unit, "LoadCredential") == [f"htpasswd:{project}/htpasswd"]
    with started(exec_start(unit, project), project, address, SECRETS):
        pass


@pytest.mark.parametrize("words", ["", "--workdir={}"])
def test_a_unit_printed_in_a_project_runs_that_project(
    words: str, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = Address(free_port())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    options = f"{PREFIXED} --port={address.port} --auth_file={project}/htpasswd {words.format(project)}"
    unit = printed(f"systemd {options}", cwd=elsewhere if words else project)
    assert setting(unit, "WorkingDirectory") == [str(project)]
    assert f"{FLOWER_PROXY} hash-password --output {project}/htpasswd me" in unit
    start = exec_start(unit, project)
    assert start[0] == FLOWER_PROXY
    with started(start, project, address, SECRETS):
        pass


@pytest.mark.parametrize("app", ["shop", "shop.celery:app", "server.celery"])
def test_a_unit_printed_outside_a_project_has_an_example_folder(app: str, project: Path) -> None:
    (project / "shop").mkdir()
    (project / "server.py").unlink()
    unit = printed(f"systemd -A {app}", cwd=project)
    assert setting(unit, "WorkingDirectory") == ["/srv/app"]
    assert setting(unit, "ExecStart")[0].startswith(f"{INSTALLED} -A {app} ")


def test_a_unit_for_another_machine_uses_the_virtual_environment_in_workdir() -> None:
    unit = printed("systemd --workdir=/opt/shop")
    assert setting(unit, "WorkingDirectory") == ["/opt/shop"]
    assert setting(unit, "ExecStart")[0].startswith("/opt/shop/.venv/bin/flower-proxy -A server ")


@pytest.mark.parametrize(
    ("project", "visible", "homes"),
    [
        (Project(folder="/srv/app", venv="/srv/app/.venv", python="/usr"), [], "yes"),
        (Project(folder="/home/me/app", venv="/home/me/app/.venv", python="/usr"), ["/home/me/app"], "tmpfs"),
        (
            Project(folder="/root/app", venv="/root/env", python="/root/.pyenv/versions/3.13"),
            ["/root/.pyenv/versions/3.13", "/root/app", "/root/env"],
            "tmpfs",
        ),
        (Project(folder="/srv/app", venv="/srv/app/.venv", python="/home/me/python"), ["/home/me/python"], "tmpfs"),
        (Project(folder="/tmp/app", venv="/tmp/app/.venv", python="/usr"), ["/tmp/app"], "yes"),
    ],
)
def test_a_project_hidden_by_the_sandbox_is_mounted(project: Project, visible: list[str], homes: str) -> None:
    spec = replace(SPEC, project=project)
    unit = render(TARGETS["systemd"], plan(TARGETS["systemd"], spec, OPTIONS))
    assert setting(unit, "BindReadOnlyPaths") == visible
    assert setting(unit, "ProtectHome") == [homes]


def test_the_folder_of_a_project_must_be_a_plain_path(tmp_path: Path) -> None:
    odd = tmp_path / "a b"
    odd.mkdir()
    (odd / "server.py").touch()
    done = config("systemd", cwd=odd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"flower-proxy: --workdir: '{odd}' is not an absolute path of letters")


@pytest.mark.parametrize(("options", "group"), [("", "www-data"), ("--socket_group=nginx", "nginx")])
def test_the_group_of_the_proxy_can_connect_to_the_socket(options: str, group: str) -> None:
    socket = printed(f"systemd-socket --unix_socket={SOCKET} {options}")
    assert setting(socket, "SocketGroup") == [group]
    assert setting(socket, "SocketMode") == ["0660"]
    # The service accepts the same options
    assert setting(printed(f"systemd --unix_socket={SOCKET} {options}"), "Requires") == ["flower-proxy.socket"]


def test_users_are_written_to_the_password_file_with_tls_too() -> None:
    unit = printed("systemd --certfile=/etc/flower/cert.pem --keyfile=/etc/flower/key.pem")
    assert "hash-password --output /etc/flower/htpasswd me" in unit


def test_a_socket_passed_by_systemd_is_served(project: Path) -> None:
    address = Address(socket_path=project / "flower.sock")
    options = f"{PREFIXED} --unix_socket={SOCKET}"
    unit, socket = (
        adapted(printed(f"{target} {options}"), project, address) for target in ("systemd", "systemd-socket")
    )
    (listen,) = setting(socket, "ListenStream")
    assert listen == str(address.socket_path)
    activate = [program("systemd-socket-activate"), f"--listen={listen}"]
    with started([*activate, *exec_start(unit, project)], project, address, SECRETS):
        pass


def test_state_is_stored_in_the_state_directory(project: Path) -> None:
    address = Address(free_port())
    unit = adapted(printed(f"systemd {PREFIXED} --persistent --port={address.port}"), project, address)
    assert setting(unit, "StateDirectory") == ["flower-proxy"]
    (project / "flower-proxy").mkdir()
    with started(exec_start(unit, project), project, address, SECRETS):
        pass
    assert list((project / "flower-proxy").glob("flower.db*")), "shelve may append a suffix"


def test_secrets_are_not_printed() -> None:
    secrets = "--basic_auth=me:hush --cookie_secret=hush --broker=redis://:hush@redis/0 --metrics_auth=p:hush"
    for target in ("systemd", "systemd-socket", "supervisor", "compose", "dockerfile", "kubernetes", "prometheus"):
        text = printed(f"{target} {secrets}")
        assert "hush" not in text
        if target not in ("systemd-socket", "dockerfile", "prometheus"):
            names = ("FLOWER_BASIC_AUTH", "FLOWER_COOKIE_SECRET", "CELERY_BROKER_URL", "FLOWER_METRICS_AUTH")
            assert all(name in text for name in names)


# supervisor


@contextlib.contextmanager
def supervisord(program_section: str, folder: Path) -> Iterator[Path]:
    """Run supervisor with this program, and yield its log file."""
    head = "[supervisord]\nnodaemon=true\nloglevel=info\nlogfile=/dev/null\nlogfile_maxbytes=0\n"
    head += f"pidfile={folder}/supervisord.pid\nchildlogdir={folder}\n"
    (folder / "supervisord.conf").write_text(f"{head}\n{program_section}")
    log = folder / "supervisord.log"
    command = [str(Path(sys.executable).with_name("supervisord")), "-n", "-e", "debug", "-l", str(log)]
    ready = lambda: log.exists() and "spawned" in log.read_text()  # noqa: E731
    env = SECRETS
    with running(
        [*command, "-c", str(folder / "supervisord.conf")], log=folder / "out", ready=ready, env=env, cwd=folder
    ):
        yield log


def pids(log: Path) -> list[int]:
    return [int(pid) for pid in re.findall(r"spawned: 'flower-proxy' with pid (\d+)", log.read_text())]


def test_supervisor_restarts_a_killed_process(project: Path) -> None:
    address = Address(free_port())
    options = f"{PREFIXED} --port={address.port} --queues={shlex.quote(ODD)}"
    text = adapted(printed(f"supervisor {options}"), project, address)
    with supervisord(text, project) as log:
        wait_until(lambda: answers(address, "/healthcheck"), what="flower-proxy responds")
        assert_answers(address)
        wait_until(lambda: "entered RUNNING state" in log.read_text(), what="supervisor reports RUNNING")
        (first,) = pids(log)
        assert f"--queues={ODD}" in Path(f"/proc/{first}/cmdline").read_text().split("\0")
        subprocess.run([program("kill"), "-KILL", str(first)], check=True)
        wait_until(lambda: len(pids(log)) == 2 and answers(address, "/healthcheck"), what="flower-proxy is restarted")
    assert "stopped: flower-proxy (exit status 0)" in log.read_text(), "it exits on SIGTERM"
    assert "killing 'flower-proxy'" not in log.read_text()


def test_supervisor_gives_up_on_invalid_options(project: Path) -> None:
    text = adapted(printed(f"supervisor {PREFIXED}"), project, Address(free_port()))
    wrong = text.replace(PREFIXED, "--url_prefx=flower")
    assert wrong != text
    with supervisord(wrong, project) as log:
        # On a busy machine a start may take longer than startsecs; supervisor then expects status 2
        wait_until(
            lambda: re.search(r"entered FATAL state|exit status 2; expected", log.read_text()),
            what="supervisor gives up",
        )
        starts = len(pids(log))
        assert starts == 4 or (starts < 4 and "exit status 2; expected" in log.read_text()), "one start, three retries"


# Containers


def container_words(target: str, text: str) -> list[str]:
    """Return the arguments of flower-proxy in the container."""
    if target == "dockerfile":
        words: list[str] = json.loads(setting_of_image(text, "CMD"))
    elif target == "compose":
        # Compose rejects any other dollar sign
        words = [
            re.sub(r"\$(.?)", lambda match: {"$": "$"}[match[1]], word)
            for word in documents(text)[0]["services"]["flower-proxy"]["command"]
        ]
    else:
        # Expands like k8s.io/kubernetes/third_party/forked/golang/expansion without variables
        words = [
            re.sub(r"\$(\$|\([^)]*\))", lambda match: "$" if match[1] == "$" else "", word)
            for word in pod(text)["containers"][0]["args"]
        ]
    return words


def setting_of_image(text: str, name: str) -> str:
    (found,) = re.findall(rf"^ *{name} (\[.*\])$", text.replace("\\\n    CMD", "\n    HEALTH"), re.MULTILINE)
    return str(found)


def pod(text: str) -> dict[str, Any]:
    (deployment,) = (one for one in documents(text) if one["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("target", ["compose", "dockerfile", "kubernetes"])
def test_the_command_of_a_container_serves_flower(target: str, project: Path) -> None:
    address = Address(free_port())
    words = container_words(target, adapted(printed(f"{target} {PREFIXED}"), project, address))
    # Kubernetes sets these for a service named flower (mher/flower#738)
    injected = {"FLOWER_PORT": "tcp://10.0.0.1:5555", "FLOWER_SERVICE_HOST": "10.0.0.1"}
    with started([FLOWER_PROXY, f"--port={address.port}", *words], project, address, {**SECRETS, **injected}):
        assert "FLOWER_PORT" in (project / "flower.log").read_text()


@pytest.mark.parametrize("target", ["compose", "dockerfile", "kubernetes"])
def test_special_characters_are_preserved_in_containers(target: str) -> None:
    assert f"--queues={ODD}" in container_words(target, printed(f"{target} --queues={shlex.quote(ODD)}"))


def test_the_image_has_a_health_check(project: Path) -> None:
    address = Address(free_port())
    text = adapted(printed(f"dockerfile {PREFIXED}"), project, address)
    python, *words = json.loads(setting_of_image(text, "HEALTH"))
    assert python == "python"
    # The health check must ignore this proxy, which does not exist
    check = [sys.executable, *words]
    env = {"http_proxy": f"http://127.0.0.1:{free_port()}"}
    assert subprocess.run(check, capture_output=True, env=env).returncode == 1
    arguments = container_words("dockerfile", text)
    with started([FLOWER_PROXY, f"--port={address.port}", *arguments], project, address, SECRETS):
        assert subprocess.run(check, env=env).returncode == 0


def test_the_image_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (\d+)", printed("dockerfile"), re.MULTILINE) == ["10001"]


SERVICE_OF_COMPOSE = {
    "build": {"type": "string"},
    "command": {"type": "array", "items": {"type": "string"}},
    "environment": {"type": "object", "additionalProperties": {"type": "string"}},
    "secrets": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}, "uniqueItems": True},
    "volumes": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "read_only": {"type": "boolean"},
    "tmpfs": {"type": "array", "items": {"type": "string"}},
    "cap_drop": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "security_opt": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "ulimits": {"type": "object", "additionalProperties": {"type": "integer"}},
    "init": {"type": "boolean"},
    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
}
IPAM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"type": "string"} for name in ("subnet", "ip_range", "gateway")},
}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def named(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema}


# The used keys of the Compose Specification
COMPOSE = closed(
    services=named(closed(**SERVICE_OF_COMPOSE)),
    networks=named(closed(ipam=closed(config={"type": "array", "items": IPAM}))),
    secrets=named(closed(file={"type": "string"})),
    volumes=named({"type": "null"}),
)


@pytest.mark.parametrize("options", [PREFIXED, "--persistent --metrics_port=9808", "--basic_auth=me:secret"])
def test_compose_files_are_valid(options: str) -> None:
    file = documents(printed(f"compose {options}"))[0]
    Draft202012Validator(COMPOSE).validate(file)
    for kind in ("secrets", "volumes"):
        used = {one.partition(":")[0] for service in file["services"].values() for one in service.get(kind, [])}
        assert used == file.get(kind, {}).keys()


@pytest.mark.parametrize("options", [PREFIXED, "--persistent --metrics_port=9808", "--basic_auth=me:secret"])
def test_kubernetes_objects_are_valid(options: str) -> None:
    objects = documents(printed(f"kubernetes {options}"))
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    assert [one["kind"] for one in objects][:3] == ["Deployment", "Service", "NetworkPolicy"]


def test_kubernetes_mounts_match_the_volumes() -> None:
    for options in (PREFIXED, "--persistent", "--basic_auth=me:secret"):
        spec = pod(printed(f"kubernetes {options}"))
        mounts = {one["name"] for one in spec["containers"][0]["volumeMounts"]}
        assert mounts == {one["name"] for one in spec["volumes"]}


def test_kubernetes_probes_succeed(project: Path) -> None:
    address = Address(free_port())
    text = printed(f"kubernetes {PREFIXED}")
    words = container_words("kubernetes", adapted(text, project, address))
    (container,) = pod(text)["containers"]
    with started([FLOWER_PROXY, f"--port={address.port}", *words], project, address, SECRETS):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = partial(answers, address, container[probe]["httpGet"]["path"])
            wait_until(asked, what=f"{probe} succeeds without a password")


# Errors


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("kubernetes --unix_socket=/run/flower.sock", "--unix_socket"),
        ("compose --unix_socket=/run/flower.sock", "--unix_socket"),
        ("compose --address=127.0.0.1", "--address"),
        ("dockerfile --address=localhost", "--address"),
        ("kubernetes --certfile=/c --keyfile=/k", "--certfile"),
        ("kubernetes --auth_header=X-User", "--trusted_proxies"),
        ("compose --auth_file=/a --basic_auth_file=/b", "--basic_auth_file"),
        ("systemd --port=0", "--port"),
        ("systemd --metrics_port=0", "--metrics_port"),
        ("systemd --strip", "--strip"),
        ("systemd-socket --address=flower.internal", "--address"),
        ("systemd-socket --unix_socket=/s --socket_group='a b'", "--socket_group: 'a b' is not a group name"),
        ("systemd-socket --unix_socket=/s --socket_group=", "--socket_group: '' is not a group name"),
        ("systemd-socket --unix_socket=/s --socket_group=33", "--socket_group: '33' is not a group name"),
        ("systemd-socket --socket_group=nginx", "--socket_group: only a unix socket has a group; add"),
        ("systemd --socket_group=nginx", "--socket_group: only a unix socket has a group; add"),
        ("compose --socket_group=nginx", "--socket_group: not supported for compose; leave it out"),
        ("prometheus --metrics_auth='a\u2028b:secret'", "--metrics_auth"),
        ("prometheus --metrics_auth='a\u0085b:secret'", "--metrics_auth"),
        ("systemd --tls", "--tls"),
        ("supervisor --server_name=flower.test", "--server_name"),
        ("systemd --workdir=project", "--workdir"),
        ("systemd --basic_auth_file=users", "--basic_auth_file"),
        ("systemd --log_file_prefix=/var/log/flower.log", "--log_file_prefix"),
        ("systemd --no_auth --auth_file=/a", "--no_auth"),
        ("supervisor '--queues=a ;b'", "--queues"),
        ("prometheus --unix_socket=/run/flower.sock", "--unix_socket"),
        ("prometheus --metrics_port=0", "--port"),
        ("prometheus --metrics_open --metrics_auth=p:q", "--metrics_open"),
        ("systemctl", "systemctl"),
    ],
)
def test_a_contradiction_is_a_one_line_error(words: str, named: str) -> None:
    done = config(*shlex.split(words))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
