"""Findings, and the checklist that makes them in order."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from flower_proxy.check.evidence import Evidence
from flower_proxy.check.remedies import Advice, recognise


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
    :ivar remedy: the lines to add or the steps to take, one per line; empty if nothing is to be done.
    """

    name: str
    status: Status
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Problem:
    """What a check returns if it does not pass."""

    message: str
    remedy: str = ""
    status: Status = Status.FAILED


Outcome = str | Problem
"""Of a check: the message if it passed, else the problem."""

Judge = Callable[[Evidence, Advice], Outcome]


@dataclass(frozen=True)
class Check:
    """A named check of the evidence.

    :ivar needs: the checks without which this one has no meaning.
    :ivar judge: decides the outcome.
    """

    name: str
    needs: tuple[Check, ...]
    judge: Judge

    def __call__(self, evidence: Evidence, advice: Advice) -> Finding:
        outcome = self.judge(evidence, advice)
        if isinstance(outcome, Problem):
            return Finding(self.name, outcome.status, outcome.message, outcome.remedy)
        return Finding(self.name, Status.PASSED, outcome)


class Checklist:
    """Checks in the order of their definition, each after those that it needs."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def check(self, *needs: Check) -> Callable[[Judge], Check]:
        """Decorate a function as a check of the same name.

        :param needs: the check is skipped unless these passed, perhaps with a warning.
        """

        def add(judge: Judge) -> Check:
            self._checks.append(Check(judge.__name__, needs, judge))
            return self._checks[-1]

        return add

    def examine(self, evidence: Evidence, proxy: str = "") -> list[Finding]:
        """Run all checks.

        :param proxy: one of `flower_proxy.check.remedies.PROXIES`; if empty, the answers' ``Server`` header decides.
        :returns: one finding per check.
        """
        advice = Advice(proxy or recognise(evidence.answer.headers.get("server", "")), evidence.target.prefix)
        findings: dict[str, Finding] = {}
        for check in self._checks:
            missing = [
                need.name for need in check.needs if findings[need.name].status in (Status.FAILED, Status.SKIPPED)
            ]
            findings[check.name] = (
                Finding(check.name, Status.SKIPPED, f"not looked at, because of {missing[0]}")
                if missing
                else check(evidence, advice)
            )
        return list(findings.values())
