"""The corrected flower.js and the configurations are there however the package was installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

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
    assert "new URL(said, document.baseURI)" in script
    assert "function show_alert(" in script


def test_from_an_installed_wheel_and_from_an_editable_install(dist: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    for what in ([str(next(dist.glob("*.whl")))], ["--no-deps", "--editable", str(PROJECT)]):
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *what]
        subprocess.run(pip, check=True, capture_output=True)
        check([str(environment / "bin" / "flower-proxy")], tmp_path)


def test_from_an_unpacked_source_archive(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data") if sys.version_info >= (3, 12) else archive.extractall(tmp_path)
    source = next(tmp_path.glob("flower_proxy-*"))
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    check([sys.executable, "-m", "flower_proxy"], tmp_path, PYTHONPATH=path)
