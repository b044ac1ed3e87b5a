"""Findings, and the checklist that produces them in order."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from flower_proxy.check.evidence import Evidence
from flower_proxy.check.remedies import Advice, detect_proxy


class Status(enum.Enum):
    """The outcome of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    :ivar name: of the check.
    :ivar message: one line.
    :ivar remedy: lines to add or steps to take, one per line; empty if there is nothing to do.
    """

    name: str
    status: Status
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Problem:
    """The outcome of a check that does not pass."""

    message: str
    remedy: str = ""
    status: Status = Status.FAILED


Outcome = str | Problem
"""The message of a check that passes, or a problem."""

Judge = Callable[[Evidence, Advice], Outcome]


@dataclass(frozen=True)
class Check:
    """A named check of the evidence.

    :ivar needs: the checks on which this one depends.
    :ivar judge: the function that decides the outcome.
    """

    name: str
    needs: tuple[Check, ...]
    judge: Judge

    def __call__(self, evidence: Evidence, advice: Advice) -> Finding:
        """Run the check."""
        outcome = self.judge(evidence, advice)
        if isinstance(outcome, Problem):
            return Finding(self.name, outcome.status, outcome.message, outcome.remedy)
        return Finding(self.name, Status.PASSED, outcome)


class Checklist:
    """Checks in the order of their definition, each after those on which it depends."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def check(self, *needs: Check) -> Callable[[Judge], Check]:
        """Register the decorated function as a check of the same name.

        :param needs: the check is skipped if one of these failed or was skipped.
        """

        def add(judge: Judge) -> Check:
            self._checks.append(Check(judge.__name__, needs, judge))
            return self._checks[-1]

        return add

    def examine(self, evidence: Evidence, proxy: str = "") -> list[Finding]:
        """Run all checks.

        :param proxy: one of `flower_proxy.check.remedies.PROXIES`; if empty, it is detected by the ``Server`` header.
        :returns: one finding per check.
        """
        advice = Advice(proxy or detect_proxy(evidence.response.headers.get("server", "")), evidence.target.prefix)
        findings: dict[str, Finding] = {}
        for check in self._checks:
            missing = [
                need.name for need in check.needs if findings[need.name].status in (Status.FAILED, Status.SKIPPED)
            ]
            findings[check.name] = (
                Finding(check.name, Status.SKIPPED, f"depends on {missing[0]}, which did not pass")
                if missing
                else check(evidence, advice)
            )
        return list(findings.values())
