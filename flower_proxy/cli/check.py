"""``flower-proxy check``: check a deployment from a user's machine."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from flower_proxy.auth.passwords import CredentialsError, check_user
from flower_proxy.check.checks import CHECKS
from flower_proxy.check.client import CheckTimeoutError, Client, parse_target
from flower_proxy.check.evidence import ask_launcher, gather
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.remedies import PROXIES
from flower_proxy.check.unreached import not_reached, timed_out
from flower_proxy.cli.errors import InputError
from flower_proxy.cli.hash_password import ask_password, read_password

_COLOURS = {Status.PASSED: "green", Status.WARNING: "yellow", Status.FAILED: "red", Status.SKIPPED: "bright_black"}

# Characters; a server chooses the length of its names
_MAX_LINE = 2000


@click.command("check")
@click.argument("url")
@click.option("--user", metavar="NAME", help="who to enter as; the password is asked for, or read from standard input")
@click.option("--proxy", type=click.Choice(PROXIES), help="which one it is, where its answers do not say so")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), help="certificates to trust, in place of the system's"
)
@click.option("--insecure", is_flag=True, help="take any certificate")
@click.option("--json", "as_json", is_flag=True, help="print a list for machines: name, status, message, remedy")
@click.pass_context
def check(
    ctx: click.Context,
    url: str,
    user: str | None,
    proxy: str | None,
    ca: str | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Look at Flower at URL as a browser does, and say what is wrong and what to add to the proxy.

    URL is the address that people use, such as https://example.com/flower/. Nothing on the cluster is changed. The exit
    status is 0 if nothing has failed, else 1.
    """
    try:
        target = parse_target(url)
        context = _tls(Path(ca) if ca else None, insecure)
        credentials = _credentials(user) if user is not None else ""
    except ValueError as error:
        raise InputError(str(error)) from None
    findings = run_checks(Client(target, credentials, context), user=user, proxy=proxy or "")
    if as_json:
        click.echo(json.dumps([{**vars(finding), "status": finding.status.value} for finding in findings], indent=2))
    else:
        show(findings)
    ctx.exit(int(any(finding.status is Status.FAILED for finding in findings)))


def run_checks(client: Client, *, user: str | None = None, proxy: str = "") -> list[Finding]:
    """Make all requests, and examine the answers.

    :param user: whose credentials the client sends; None if it sends none.
    :param proxy: as for `Checklist.examine`.
    :returns: one finding per check, or a single one if the launcher does not answer.
    """
    try:
        answer, now = ask_launcher(client)
        if (seen := answer.seen) is not None:
            return CHECKS.examine(gather(client, answer, seen, now), proxy)
        healthcheck = f"{client.target.prefix}/healthcheck"
        health = answer if answer.problem else client.ask(healthcheck, authenticated=False)
        return [not_reached(answer, health, client.target, user)]
    except CheckTimeoutError as error:
        return [timed_out(str(error))]


def show(findings: Iterable[Finding]) -> None:
    """Print findings as text."""
    for finding in findings:
        status = click.style(f"{finding.status.value:<8}", fg=_COLOURS[finding.status])
        click.echo(f"{status}{finding.name:<15} {_printable(finding.message)}")
        for remedy in finding.remedy.splitlines():
            click.echo(f"{'':<23} {_printable(remedy)}")


def _printable(text: str) -> str:
    # Parts of it come from a server that is not trusted: they must not steer the terminal
    shown = text if len(text) <= _MAX_LINE else f"{text[:_MAX_LINE]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


def _credentials(user: str) -> str:
    try:
        check_user(user)
    except CredentialsError as error:
        raise ValueError(f"--user: {error}") from None
    if sys.stdin.isatty():
        return f"{user}:{ask_password(confirm=False)}"
    return f"{user}:{read_password()}"


def _tls(ca: Path | None, insecure: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(f"--ca: {str(ca)!r} holds no certificates in PEM form") from None
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
