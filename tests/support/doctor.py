"""Invocation of ``flower-proxy check`` and its findings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from click.testing import CliRunner

from flower_proxy.cli.check import check
from tests.support.programs import CREDENTIALS, USER

PASSWORD = CREDENTIALS.partition(":")[2]


@dataclass(frozen=True)
class Found:
    """The findings and the exit status of ``flower-proxy check``."""

    exit_code: int
    findings: Sequence[Mapping[str, str]]

    def named(self, status: str) -> list[str]:
        """Return the names of the findings with this status."""
        return [finding["name"] for finding in self.findings if finding["status"] == status]

    @property
    def wrong(self) -> list[str]:
        """Return status and name of each warning and failure."""
        return [f"{f['status']} {f['name']}" for f in self.findings if f["status"] in ("warning", "failed")]

    def __getitem__(self, name: str) -> Mapping[str, str]:
        return next(finding for finding in self.findings if finding["name"] == name)


def ask(url: str, *options: str, user: str = USER, password: str = PASSWORD) -> Found:
    """Run ``flower-proxy check`` in this process."""
    arguments = ["--json", *(["--user", user] if user else []), *options, url]
    result = CliRunner().invoke(check, arguments, input=f"{password}\n")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Found(result.exit_code, json.loads(result.stdout))
