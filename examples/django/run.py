"""`make example`: the whole example on one machine, in a temporary folder, until Ctrl-C.

The temporary folder replaces the root of the file system. The files beside this one are used unchanged, except for that
root, the ports and the host name. This script sets up Redis, nginx and supervisor itself.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import http.client
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from flower_proxy.cli.reach import hosts_of, tunnel
from flower_proxy.proxy.addresses import host_and_port, is_loopback
from flower_proxy.web.sockets import bind

HERE = Path(__file__).resolve().parent
ROOTED = re.compile(r"(?<![\w.])(/(etc/letsencrypt|etc/server|srv/server|var/lib/server|var/log/server)\b)")
USER = "admin"
# Received signals, which long operations poll
SIGNALS: list[int] = []
LOCALHOST = ("127.0.0.1", "::1")

SUPERVISORD = """
[supervisord]
nodaemon=true
pidfile={root}/supervisord.pid
logfile={root}/var/log/server/supervisord.log

[program:redis]
command={redis} {root}/etc/redis.conf
redirect_stderr=true
stdout_logfile={root}/var/log/server/redis.log

[program:nginx]
command={nginx} -p {root} -c etc/nginx.conf -e var/log/server/nginx.log
redirect_stderr=true
stdout_logfile={root}/var/log/server/nginx.log

[include]
files={root}/etc/supervisor.conf
"""

REDIS = """
bind 127.0.0.1
port {port}
requirepass {password}
save ""
dir {root}
"""

# By default, nginx writes its temporary files below /var
NGINX = """
daemon off;
user {user};
pid nginx.pid;
error_log var/log/server/nginx.log;
events {{}}
http {{
  include /etc/nginx/mime.types;
  access_log var/log/server/access.log;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  include {root}/etc/nginx-server.conf;
}}
"""


@dataclass(frozen=True)
class Site:
    """The address and port where nginx listens for HTTPS."""

    address: str
    port: int

    @property
    def listen(self) -> str:
        """The address and port in nginx syntax."""
        return host_and_port(self.address or "*", self.port)

    @property
    def hosts(self) -> list[str]:
        """The hosts for URLs from this machine and, on all interfaces, from other machines."""
        return ["localhost" if host in LOCALHOST else host for host in hosts_of(self.address)[0]]

    @property
    def names(self) -> list[str]:
        """The subject names of the certificate, with localhost for SSH tunnels."""
        return sorted({"localhost", *LOCALHOST, *self.hosts})

    @property
    def allowed_hosts(self) -> str:
        """Django's ALLOWED_HOSTS; any host on all interfaces, as other machines may use any name for this one."""
        if hosts_of(self.address)[1]:
            return "*"
        return ",".join(f"[{name}]" if ":" in name else name for name in self.names)

    @property
    def origin(self) -> str:
        """The origin for the browser, if possible one that other machines can reach."""
        beyond = [host for host in self.hosts if not is_loopback(host)]
        return f"https://{host_and_port([*beyond, *self.hosts][0], self.port)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the example until Ctrl-C.")
    parser.add_argument(
        "--address", default="127.0.0.1", help="the address for HTTPS; 0.0.0.0 for all interfaces (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8443, help="the port for HTTPS (default: 8443)")
    arguments = parser.parse_args()
    if not 0 < arguments.port < 65536:
        parser.error(f"--port: {arguments.port} is not between 1 and 65535")
    site = Site(arguments.address, arguments.port)
    try:
        for probe in bind(site.address, site.port):
            probe.close()
    except OSError as error:
        sys.exit(str(error))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: SIGNALS.append(number))
    with tempfile.TemporaryDirectory(prefix="flower-proxy-example-") as name, contextlib.suppress(KeyboardInterrupt):
        root = Path(name).resolve()
        print("Setting up", flush=True)
        _run_site(root, site)
    print("Stopping", flush=True)


def _run_site(root: Path, site: Site) -> None:
    """Run the example until a signal.

    :raises KeyboardInterrupt: a signal arrived during the set-up.
    """
    environ, password = _set_up(root, site)
    with _supervised(root, environ) as supervisord:

        def is_running() -> bool:
            time.sleep(0.1)
            return not SIGNALS and supervisord.poll() is None

        while is_running() and not _is_up(root, site):
            pass
        if is_running():
            _announce(root, site, password)
        elif SIGNALS:
            # supervisord's SIGTERM to a starting program can get lost, after which it waits a minute for the worker
            supervisord.kill()
        while is_running():
            pass
        if not SIGNALS:
            print((root / "var/log/server/supervisord.log").read_text(), file=sys.stderr)
            sys.exit("supervisor exited; see its log above")


def _set_up(root: Path, site: Site) -> tuple[dict[str, str], str]:
    """Fill the folder that replaces the root of the file system.

    :returns: the environment for the programs, and the password of `USER`.
    :raises KeyboardInterrupt: a signal arrived.
    """
    for folder in ("etc/server", "tmp", "var/lib/server/media", "var/log/server"):
        (root / folder).mkdir(parents=True)
    shutil.copytree(HERE, root / "srv/server", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "srv/server/.venv").symlink_to(sys.prefix)

    django, flower, redis, plain = _free_ports(4)
    passwords = {name: secrets.token_urlsafe(12) for name in ("redis", "metrics", USER)}
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "DJANGO_", "FLOWER_"))},
        # Temporary files of a killed worker are deleted with the folder
        "TMPDIR": f"{root}/tmp",
        "DJANGO_ALLOWED_HOSTS": site.allowed_hosts,
        "DJANGO_SECRET_KEY": secrets.token_urlsafe(48),
        "SERVER_DATA": f"{root}/var/lib/server",
        "CELERY_BROKER_URL": f"redis://:{passwords['redis']}@127.0.0.1:{redis}/0",
        "FLOWER_METRICS_AUTH": f"prometheus:{passwords['metrics']}",
    }
    here = {
        "127.0.0.1:8000": f"127.0.0.1:{django}",
        "127.0.0.1:5555": f"127.0.0.1:{flower}",
        "--port=5555": f"--port={flower}",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl;": f"listen {site.listen} ssl;",
        "https://example.com$": f"{site.origin}$",
        "user=server\n": "",
    }
    for source, target in (("nginx.conf", "nginx-server.conf"), ("supervisor.conf", "supervisor.conf")):
        _write(root / "etc" / target, as_run(root, (HERE / source).read_text(), here))
    programs = {name: _program(name) for name in ("nginx", "redis-server", "openssl")}
    _write(root / "etc/nginx.conf", NGINX.format(root=root, user=getpass.getuser()))
    _write(root / "etc/redis.conf", REDIS.format(root=root, port=redis, password=passwords["redis"]))
    _write(
        root / "etc/supervisord.conf",
        SUPERVISORD.format(root=root, redis=programs["redis-server"], nginx=programs["nginx"]),
    )
    _make_certificate(root / "etc/letsencrypt/live/example.com", site.names, programs["openssl"])
    _write(root / "etc/prometheus.password", passwords["metrics"] + "\n")
    hashed = _run([sys.executable, "-m", "flower_proxy", "hash-password", USER], text=passwords[USER])
    _write(root / "etc/server/htpasswd", hashed)
    superuser = {"DJANGO_SUPERUSER_PASSWORD": passwords[USER]}
    for command in (
        ["migrate"],
        ["collectstatic", "--noinput"],
        ["createsuperuser", "--noinput", f"--username={USER}", f"--email={USER}@example.com"],
    ):
        _run([sys.executable, "manage.py", *command], {**environ, **superuser}, root / "srv/server")
    return environ, passwords[USER]


def as_run(root: Path, text: str, changes: Mapping[str, str]) -> str:
    """Return the text of a file for this root, with these replacements."""
    if changes:
        text = re.sub("|".join(map(re.escape, changes)), lambda match: changes[match[0]], text)
    return ROOTED.sub(rf"{root}\1", text)


def _write(path: Path, text: str) -> None:
    # Created with a private mode, as files contain passwords
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _free_ports(count: int) -> list[int]:
    """Return free ports below the ephemeral range of Linux."""
    found: list[int] = []
    for port in random.sample(range(16_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    sys.exit("No ports are free")


def _program(name: str) -> str:
    # Debian installs nginx to /usr/sbin, which is only on root's PATH
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        sys.exit(f"{name} is not installed: sudo apt-get install {name}")
    return path


def _make_certificate(folder: Path, names: Sequence[str], openssl: str) -> None:
    folder.mkdir(parents=True)
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "30", "-subj", "/CN=localhost", "-addext", f"subjectAltName={','.join(map(_subject, names))}"]
    command += ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    _run(command)


def _subject(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _run(
    command: Sequence[str], environ: Mapping[str, str] | None = None, cwd: Path | None = None, text: str = ""
) -> str:
    if SIGNALS:
        raise KeyboardInterrupt
    # A separate session keeps Ctrl-C from the process
    ended = subprocess.run(
        command, input=text, env=environ, cwd=cwd, capture_output=True, text=True, start_new_session=True
    )
    if SIGNALS:
        # It may have reached the process before that had entered its session
        raise KeyboardInterrupt
    if ended.returncode:
        sys.exit(f"{ended.stderr}\nCommand failed: {shlex.join(command)}")
    return ended.stdout


@contextlib.contextmanager
def _supervised(root: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run supervisor and its programs; stop them at the end of the block, immediately after a second signal."""
    supervisord = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(root / "etc/supervisord.conf")],
        env=environ,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # A separate session keeps Ctrl-C from the processes, and identifies them
        start_new_session=True,
    )
    try:
        yield supervisord
    finally:
        supervisord.terminate()
        while supervisord.poll() is None and len(SIGNALS) < 2:
            time.sleep(0.1)
        # Remaining child processes of a killed worker
        for pid in _session(supervisord.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        supervisord.wait()


def _session(leader: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(path.name)) == leader:
                yield int(path.name)


def _is_up(root: Path, site: Site) -> bool:
    # A signal to a worker that is still starting can get lost, too
    log = root / "var/log/server/celery-worker.log"
    is_ready = log.is_file() and " ready." in log.read_text()
    return is_ready and all(_answers(root, site, path) for path in ("/", "/flower/ready"))


def _answers(root: Path, site: Site, path: str) -> bool:
    context = ssl.create_default_context(cafile=root / "etc/letsencrypt/live/example.com/fullchain.pem")
    connection = http.client.HTTPSConnection(site.hosts[0], site.port, timeout=5, context=context)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def _announce(root: Path, site: Site, password: str) -> None:
    login = f"user {USER}, password {password}"
    for what, path, users in (("Django", "/", "public"), ("Admin", "/admin/", login), ("Flower", "/flower/", login)):
        print(f"{what:7} {site.origin}{path:9} {users}")
    print("The browser warns: the certificate is self-signed")
    print(f"Logs    {root}/var/log/server")
    if command := tunnel(site.address, site.port):
        print(f"From another machine, open a tunnel to this one (HOST): {command}")
    print("Press Ctrl-C to stop", flush=True)


if __name__ == "__main__":
    main()
