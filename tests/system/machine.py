"""A disposable Debian with systemd as process 1, created by debootstrap and booted by systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import PROJECT, program, running, wait_until

SUITE = "bookworm"
# Empty for the default of debootstrap
MIRROR = os.environ.get("MIRROR", "")
CACHE = PROJECT / "build" / "system"
PACKAGES = (
    *("ca-certificates", "curl", "dbus", "libnss-systemd", "nginx", "openssl", "python3-venv", "redis-server", "sudo"),
    "systemd-sysv",
)
# Requirements that the host downloads, as the machine has no network but loopback
NEEDED = ["celery[redis]", "hatchling", "--requirement", "examples/django/requirements.txt"]
PIP_CONF = "[global]\nno-index = true\nfind-links = /wheels\ndisable-pip-version-check = true\n"


@dataclass(frozen=True)
class Machine:
    """A running machine.

    :ivar leader: the host's process id of the machine's process 1.
    """

    leader: int

    def run(self, script: str, *, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a bash script as root in ``/root``.

        :param text: standard input.
        :raises RuntimeError: the script fails and `check` is true.
        """
        enter = [program("nsenter"), f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]
        environment = ["env", "--ignore-environment", "--chdir=/root", "HOME=/root", "LANG=C.UTF-8"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = [*enter, *environment, path, "bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
        if check and done.returncode != 0:
            journal = self.run("journalctl --no-pager --lines=30", check=False).stdout
            raise RuntimeError(f"{script}\nexited with status {done.returncode}\n{done.stdout}{done.stderr}\n{journal}")
        return done

    def write(self, path: str, text: str) -> None:
        """Write a file, and create its folder."""
        self.run(f"install -D -m 0644 /dev/stdin {path}", text=text)

    def status(self, path: str, *options: str, user: str = "www-data") -> int:
        """Send one request as this user, without retries, and return its status, or 0 without a response."""
        words = " ".join([f"runuser -u {user} -- curl -sk -o /dev/null -w '%{{http_code}}' -u me:secret", *options])
        return int(self.run(f"{words} {path}", check=False).stdout)

    def show(self, unit: str, *names: str) -> list[str]:
        """Return properties of a unit."""
        shown = self.run(f"systemctl show --property={','.join(names)} {unit}").stdout
        found = dict(line.split("=", 1) for line in shown.splitlines())
        return [found[name] for name in names]


def _base() -> Path:
    """Return the root file system of the machine, and create it if it is missing."""
    base = CACHE / SUITE
    if not base.exists():
        partial = base.with_suffix(".partial")
        subprocess.run(["rm", "-rf", str(partial)], check=True)
        partial.mkdir(parents=True)
        include = f"--include={','.join(PACKAGES)}"
        command = [program("debootstrap"), "--variant=minbase", include, SUITE, str(partial)]
        if MIRROR:
            command.append(MIRROR)
        subprocess.run(command, check=True, stdout=sys.stderr)
        partial.rename(base)
    return base


def _wheels(base: Path) -> Path:
    """Download the wheels for the machine, and return their folder."""
    wheels = CACHE / "wheels"
    # pip selects wheels for the machine's Python, with the package index of the host's configuration
    pip = [sys.executable, "-m", "pip", "--quiet", f"--python={base}/usr/bin/python3"]
    built = [*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", str(PROJECT)]
    fetched = [*pip, "wheel", f"--find-links={wheels}", f"--wheel-dir={wheels}", "flower-proxy", *NEEDED]
    for command in (built, fetched):
        subprocess.run(command, check=True, cwd=PROJECT)
    return wheels


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Boot a machine with a copy of this repository in ``/source``.

    It has its own network namespace; pip installs without a network, and changes to files are discarded.

    :param folder: for the copy of the repository, and the console log.
    """
    base = _base()
    command = [program("systemd-nspawn"), "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
    command += [f"--directory={base}", "--machine=flower-proxy-test", "--volatile=overlay", "--link-journal=no"]
    command += [f"--bind-ro={folder}/source:/source", f"--bind-ro={_wheels(base)}:/wheels", "--console=read-only"]
    log = folder / "console.log"
    shutil.copytree(PROJECT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "__pycache__"))
    with running(command, log=log, ready=lambda: True) as process:
        leader = wait_until(lambda: _leader(process.pid), what="process 1 of the machine")
        machine = Machine(leader)
        up = lambda: machine.run("systemctl is-system-running", check=False).stdout.strip() == "running"  # noqa: E731
        wait_until(up, timeout=120, what=f"the end of the boot: {log}")
        machine.write("/etc/pip.conf", PIP_CONF)
        yield machine


def _leader(nspawn: int) -> int:
    """Return the process that has id 1 in the namespace created by nspawn, or 0 before it exists."""
    for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{child}/status").read_text().splitlines()
            numbers = next(line for line in lines if line.startswith("NSpid:")).split()
            if numbers[-1] == "1" and Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
    return 0
