"""Prometheus and promtool of Debian's package ``prometheus``."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from .processes import Address, answers, free_port, program, request, running


def promtool(*arguments: str) -> str:
    """Run promtool and return its output.

    :raises AssertionError: it fails.
    """
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Prometheus:
    address: Address

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the ``data`` of a response below ``/api/v1/``.

        :raises ValueError: the response is an error.
        """
        answer = request(self.address, f"/api/v1/{path}?{urlencode(parameters)}")
        body = json.loads(answer.content)
        if body["status"] != "success":
            raise ValueError(f"{path} {parameters}: {body['error']}")
        return body["data"]

    def query(self, expression: str, *, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression, now by default, and return the series with their values."""
        time = {} if at is None else {"time": at}
        result = self.get("query", query=expression, **time)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]


@contextlib.contextmanager
def prometheus(config: Path, folder: Path, options: Sequence[str] = ()) -> Iterator[Prometheus]:
    """Run Prometheus with this configuration, and with its data in `folder`."""
    address = Address(free_port())
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}"]
    command += [f"--web.listen-address=127.0.0.1:{address.port}", "--log.level=warn", *options]
    with running(command, log=folder / "prometheus.log", ready=lambda: answers(address, "/-/ready")):
        yield Prometheus(address)


@contextlib.contextmanager
def remembering(samples: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with `samples` as its data: OpenMetrics text, with timestamps and ``# EOF``."""
    folder.mkdir()
    (folder / "samples").write_text(samples)
    promtool("tsdb", "create-blocks-from", "openmetrics", str(folder / "samples"), str(folder))
    (folder / "prometheus.yml").write_text("{}")
    # The samples may be older than the default retention
    with prometheus(folder / "prometheus.yml", folder, ["--storage.tsdb.retention.time=100y"]) as running_prometheus:
        yield running_prometheus
