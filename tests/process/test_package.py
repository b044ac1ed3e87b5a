"""The package contains the corrected flower.js and the templates in each kind of installation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from flower_proxy.deploy.targets import REQUIREMENT
from tests.support.configurations import printed
from tests.support.processes import PROJECT, Address, answers, free_port, request, running


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    return folder


def check(command: list[str], folder: Path, **env: str) -> None:
    config = [*command, "config", "nginx"]
    subprocess.run(config, check=True, capture_output=True, cwd=folder, env={**os.environ, **env})
    address = Address(free_port())
    with running(
        [*command, "-b", "memory://", f"--port={address.port}"],
        log=folder / "log",
        ready=lambda: answers(address, "/healthcheck"),
        cwd=folder,
        env=env,
    ):
        script = request(address, "/static/js/flower.js").text
    assert "new URL(prefix, document.baseURI)" in script
    assert "function show_alert(" in script


def test_wheel_and_editable_install_are_complete(dist: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    for requirement in ([str(next(dist.glob("*.whl")))], ["--no-deps", "--editable", str(PROJECT)]):
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirement]
        subprocess.run(pip, check=True, capture_output=True)
        check([str(environment / "bin" / "flower-proxy")], tmp_path)


def test_the_source_archive_is_complete(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data") if sys.version_info >= (3, 12) else archive.extractall(tmp_path)
    source = next(tmp_path.glob("flower_proxy-*"))
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    check([sys.executable, "-m", "flower_proxy"], tmp_path, PYTHONPATH=path)


def sh(command: str, environment: Path, folder: Path) -> str:
    """Run a shell command with an active virtual environment, and return its output."""
    env = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    here = command.replace(REQUIREMENT, str(PROJECT)).replace("/srv/app/.venv", str(environment))
    return subprocess.run(["sh", "-ec", here], check=True, capture_output=True, text=True, cwd=folder, env=env).stdout


def test_the_commands_of_readme_and_dockerfile_install_the_package(tmp_path: Path) -> None:
    """A virtual environment replaces the image."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    (install,) = re.findall(r"^    (pip install .*)$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    sh(install, environment, tmp_path)
    assert "flower-proxy" in sh("flower-proxy --version", environment, tmp_path)
    sh("pip uninstall --quiet --yes flower-proxy", environment, tmp_path)

    text = printed("dockerfile")
    (tmp_path / "requirements.txt").touch()
    (wheel,) = re.findall(r"^#   (.* pip wheel .*)$", text, re.MULTILINE)
    sh(wheel, environment, tmp_path)
    image = tmp_path / "image"
    image.mkdir()
    (copied,) = re.findall(r"^COPY (.*) \./$", text, re.MULTILINE)
    sh(f"cp {copied} {image}", environment, tmp_path)
    (run,) = re.findall(r"^RUN (pip .*)$", text, re.MULTILINE)
    sh(run, environment, image)
    assert "flower-proxy" in sh("flower-proxy --version", environment, image)


def test_all_files_install_the_same_requirement() -> None:
    files = [
        file for file in (PROJECT / "examples").rglob("*") if file.is_file() and file.suffix not in (".png", ".pyc")
    ]
    named = {}
    for file in [PROJECT / "README.md", *files]:
        words = [word for line in re.findall(r"\bpip (?:install|wheel) .*", file.read_text()) for word in line.split()]
        named[str(file.relative_to(PROJECT))] = {word for word in words if word.rpartition("/")[2] == "flower-proxy"}
    assert {file for file, found in named.items() if found} == {
        "README.md",
        "examples/compose/Dockerfile",
        "examples/django/requirements.txt",
    }
    assert set().union(*named.values()) == {REQUIREMENT}
    is_published = REQUIREMENT == "flower-proxy"
    requirements = (PROJECT / "examples" / "django" / "requirements.txt").read_text()
    assert bool(re.search(r"^flower-proxy\b", requirements, re.MULTILINE)) is is_published
    assert ("not on PyPI yet" in (PROJECT / "README.md").read_text()) is not is_published
