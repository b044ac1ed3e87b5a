"""The ``flower-proxy check`` command."""

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
from flower_proxy.check.evidence import gather, request_report
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.remedies import PROXIES
from flower_proxy.check.unreached import not_reached, timed_out
from flower_proxy.cli.errors import InputError
from flower_proxy.cli.hash_password import ask_password, read_password

_COLOURS = {Status.PASSED: "green", Status.WARNING: "yellow", Status.FAILED: "red", Status.SKIPPED: "bright_black"}

# Characters; names in a report can have any length
_MAX_LINE_LENGTH = 2000


@click.command("check")
@click.argument("url")
@click.option("--user", metavar="NAME", help="username; the password is prompted for, or read from standard input")
@click.option("--proxy", type=click.Choice(PROXIES), help="reverse proxy software; default: from its Server header")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), help="CA certificates to trust (PEM), instead of the system's"
)
@click.option("--insecure", is_flag=True, help="do not verify the certificate")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON: name, status, message, remedy")
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
    """Check a deployment through its public URL, and print what to change in the proxy.

    URL is the address that browsers use, such as https://example.com/flower/. The check changes nothing on the cluster.
    The exit status is 1 if a check failed, else 0.
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
    """Send all requests, and examine the responses.

    :param user: the user whose credentials the client sends; None without credentials.
    :param proxy: as for `Checklist.examine`.
    :returns: one finding per check, or a single one if the launcher does not answer.
    """
    try:
        response, now = request_report(client)
        if (report := response.report) is not None:
            return CHECKS.examine(gather(client, response, report, now), proxy)
        healthcheck = f"{client.target.prefix}/healthcheck"
        health = response if response.problem else client.request(healthcheck, authenticated=False)
        return [not_reached(response, health, client.target, user)]
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
    # Text from an untrusted server must not contain terminal control sequences
    shown = text if len(text) <= _MAX_LINE_LENGTH else f"{text[:_MAX_LINE_LENGTH]}..."
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
        raise ValueError(f"--ca: {str(ca)!r} contains no certificates in PEM format") from None
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
