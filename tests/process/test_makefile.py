"""The prerequisites of the Makefile: checks before any file is created, and installation with ``INSTALL=1``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import PROJECT, program, wait_until

# The programs that make and the script use
TOOLS = "make sh bash env echo dirname find rm mv ln chmod touch sleep systemctl"
EXAMPLE = ("nginx", "redis-server", "openssl")
POLICY = "usr/sbin/policy-rc.d"
UNIT = "[Unit]\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"

# Records its arguments and the policy; `install` creates the programs and enables a service, as on Debian
APT_GET = """#!/bin/sh
echo "$@" >> {folder}/apt-get
case $1 in install) ;; *) exit 0 ;; esac
{root}/usr/sbin/policy-rc.d nginx start
echo $? >> {folder}/policy
{meanwhile}
rm -f {folder}/absent/ensurepip.py
for name in nginx redis-server openssl; do touch {bin}/$name; chmod +x {bin}/$name; done
ln -s /lib/systemd/system/nginx.service {wants}/nginx.service
"""


class Machine:
    """A copy of the Makefile with only `bin` on the PATH; `root` replaces the root of the file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.root, self.clone = folder, folder / "bin", folder / "root", folder / "clone"
        self.absent = folder / "absent"
        self.wants = self.root / "etc/systemd/system/multi-user.target.wants"
        units = self.root / "lib/systemd/system"
        for path in (self.bin, self.clone, self.absent, self.wants, units, self.root / "usr/sbin"):
            path.mkdir(parents=True)
        (units / "nginx.service").write_text(UNIT)
        for name in TOOLS.split():
            (self.bin / name).symlink_to(program(name))
        shutil.copytree(PROJECT / ".ci", self.clone / ".ci")
        (self.clone / "examples/django").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "examples/django/requirements.txt"):
            shutil.copy(PROJECT / name, self.clone / name)
        # Simulates Debian without python3-venv; byte code would be a new file
        (self.absent / "ensurepip.py").write_text("raise ModuleNotFoundError(\"No module named 'ensurepip'\")\n")
        self.script("python3", f'PYTHONPATH={self.absent} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} "$@"\n')
        self.user(0)

    def script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def user(self, number: int) -> None:
        self.script("id", f"echo {number}\n")

    def apt_get(self, meanwhile: str = "") -> None:
        text = APT_GET.format(folder=self.folder, bin=self.bin, root=self.root, wants=self.wants, meanwhile=meanwhile)
        self.script("apt-get", text.partition("\n")[2])

    def command(self, *arguments: str, program: str = "make", **env: str) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        environ.pop("INSTALL", None)
        return subprocess.Popen(
            [program, *arguments],
            cwd=self.clone,
            env={**environ, "PATH": str(self.bin), "SYSTEM_ROOT": str(self.root), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def refusal(self, *arguments: str) -> str:
        """Return the error of a failing make, without the last line, and assert that no file is created."""
        before = sorted(self.folder.rglob("*"))
        with self.command(*arguments) as process:
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (2, "")
        assert sorted(self.folder.rglob("*")) == before
        lines = [line for line in errors.splitlines() if not line.startswith("make: ***")]
        assert len(lines) == 1, errors
        return lines[0]

    def venv(self) -> str:
        """Create a virtual environment that records its commands, and return the argument for make."""
        (self.clone / "ready/bin").mkdir(parents=True)
        for name in ("python", "pip", "flower-proxy"):
            path = self.clone / "ready/bin" / name
            path.write_text(f'#!/bin/sh\necho {name} "$@" >> {self.folder}/started\n')
            path.chmod(0o755)
        for name in ("", "-for-example"):
            (self.clone / f"ready/.installed{name}").touch()
        for old in ("pyproject.toml", "examples/django/requirements.txt"):
            os.utime(self.clone / old, (0, 0))
        return "VENV=ready"

    def recorded(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.apt_get()
    yield machine
    assert not list(machine.root.rglob("policy-rc.d.*"))


# Without INSTALL=1


@pytest.mark.parametrize("target", ["demo", "lint"])
def test_a_python_without_venv_is_an_error_before_files_are_created(machine: Machine, target: str) -> None:
    machine.user(1000)
    error = machine.refusal(target)
    assert error.startswith("Missing: venv of python3. Install: sudo apt-get install python3-venv;")


def test_one_line_lists_everything_missing_with_its_packages(machine: Machine) -> None:
    machine.user(1000)
    error = machine.refusal("example")
    assert error.startswith("Missing: venv of python3, nginx, openssl, redis-server. Install: sudo apt-get install ")
    assert " install python3-venv nginx openssl redis-server;" in error
    assert "INSTALL=1" in error


def test_packages_for_the_tests_are_listed(machine: Machine) -> None:
    error = machine.refusal("test")
    _, _, packages = error.partition(" install ")
    assert {"apache2-bin", "apache2-utils", "prometheus", "chromium-driver"} <= set(packages.partition(";")[0].split())
    assert packages.count("prometheus") == 1


def test_several_goals_are_checked_together(machine: Machine) -> None:
    error = machine.refusal("lint", "example")
    assert "nginx" in error


def test_root_needs_no_sudo(machine: Machine) -> None:
    assert "Install: apt-get install python3-venv;" in machine.refusal("demo")


def test_without_apt_get_no_packages_are_listed(machine: Machine) -> None:
    (machine.bin / "apt-get").unlink()
    assert machine.refusal("demo") == "Missing: venv of python3. Install them with your package manager."


def test_a_missing_python_is_an_error(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    assert machine.refusal("demo").startswith("Missing: python3. Install: apt-get install python3-venv;")


def test_an_old_python_is_an_error(machine: Machine) -> None:
    (machine.absent / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 0)")
    error = machine.refusal("example")
    assert error.startswith(
        "Missing: Python 3.10 or newer (python3 is 3.9; choose another one with PYTHON=python3.13), "
    )
    assert "python3-venv" not in error


def test_a_python_given_by_path_has_no_package(machine: Machine) -> None:
    error = machine.refusal("demo", f"PYTHON={machine.bin}/python3")
    assert error == f"Missing: venv of {machine.bin}/python3 (choose another one with PYTHON=python3.13)."


def test_an_existing_virtual_environment_needs_no_python(machine: Machine) -> None:
    with machine.command("demo", machine.venv(), "PYTHON=python3.99", "ARGS=--port 8000") as process:
        assert process.communicate(timeout=60) == ("", "")
    assert machine.recorded("started") == ["flower-proxy demo --port 8000"]


def test_dry_runs_and_help_do_not_check_prerequisites(machine: Machine) -> None:
    for arguments in (["-n", "example"], ["help"], ["clean"]):
        with machine.command(*arguments) as process:
            assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0


# With INSTALL=1


def test_install_needs_root(machine: Machine) -> None:
    machine.user(1000)
    error = machine.refusal("demo", "INSTALL=1")
    assert error.startswith("Missing: venv of python3. INSTALL=1 needs root. Install: sudo apt-get install python3-")


def test_install_needs_apt_get(machine: Machine) -> None:
    (machine.bin / "apt-get").unlink()
    error = machine.refusal("demo", "INSTALL=1")
    assert error.startswith("Missing: venv of python3. INSTALL=1 needs apt-get. Install them ")


def test_an_old_python_is_an_error_before_packages_are_installed(machine: Machine) -> None:
    (machine.absent / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 0)")
    assert machine.refusal("example", "INSTALL=1").startswith("Missing: Python 3.10 or newer ")


def test_installed_services_are_neither_started_nor_enabled(machine: Machine) -> None:
    enabled = machine.wants / "mine.service"
    enabled.symlink_to("/lib/systemd/system/mine.service")
    with machine.command("example", "INSTALL=1", machine.venv()) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    update, install = machine.recorded("apt-get")
    assert update.startswith("update")
    assert install.endswith(" --no-install-recommends nginx openssl redis-server")
    assert machine.recorded("policy") == ["101"]
    assert not (machine.root / POLICY).exists()
    assert list(machine.wants.iterdir()) == [enabled]
    assert machine.recorded("started") == ["python examples/django/run.py"]


def test_without_missing_programs_nothing_is_installed(machine: Machine) -> None:
    machine.user(1000)
    for name in EXAMPLE:
        machine.script(name, "")
    with machine.command("example", "INSTALL=1", machine.venv()) as process:
        assert process.communicate(timeout=60) == ("", "")
    assert machine.recorded("apt-get") == []


@pytest.mark.parametrize("meanwhile", ["exit 100", ""], ids=["fails", "succeeds"])
def test_an_existing_policy_is_restored(machine: Machine, meanwhile: str) -> None:
    policy = machine.root / POLICY
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o750)
    machine.apt_get(meanwhile)
    with machine.command("example", "INSTALL=1", machine.venv()) as process:
        process.communicate(timeout=60)
    assert process.returncode == (2 if meanwhile else 0)
    assert machine.recorded("policy") == ["101"]
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_policy_is_removed_after_a_signal(machine: Machine, number: signal.Signals) -> None:
    machine.apt_get(f"touch {machine.folder}/installing; exec sleep 600")
    with machine.command("example", "INSTALL=1", machine.venv()) as process:
        wait_until((machine.folder / "installing").exists, what="apt-get runs")
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert machine.recorded("policy") == ["101"]
    assert not (machine.root / POLICY).exists()
    assert machine.recorded("started") == []


def test_a_failed_installation_stops_make(machine: Machine) -> None:
    machine.apt_get("exit 100")
    with machine.command("example", "INSTALL=1", machine.venv()) as process:
        process.communicate(timeout=60)
    assert process.returncode == 2
    assert not (machine.root / POLICY).exists()
    assert machine.recorded("started") == []


def test_install_can_be_set_in_the_environment(machine: Machine) -> None:
    with machine.command("example", machine.venv(), INSTALL="1") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(machine.recorded("apt-get")) == 2


def test_ci_installs_missing_packages(machine: Machine) -> None:
    machine.apt_get("exit 100")
    with machine.command(program=str(machine.clone / ".ci/run")) as process:
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert "python3-venv" in machine.recorded("apt-get")[-1]
