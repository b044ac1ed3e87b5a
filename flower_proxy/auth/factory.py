"""From the options to the gate: who may enter, and by which way in."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flower_proxy.auth.authenticator import Authenticator, PasswordCheck
from flower_proxy.auth.csrf import parse_origin
from flower_proxy.auth.hosts import parse_allowed_host
from flower_proxy.auth.policy import Gate, Roles, fold
from flower_proxy.auth.throttle import Throttle
from flower_proxy.auth.user_files import parse_entries
from flower_proxy.auth.users import Users
from flower_proxy.auth.verifier import Checks, Verifier

_MADE_UP_USER = "flower"
# The characters of RFC 5322, section 3.2.3: dot-atom-text
_ANY_PART = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*"


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """The ways in.

    :ivar gate: in front of everything.
    :ivar metrics_gate: in front of the metrics' own listener.
    :ivar users: who may enter by password.
    :ivar checks: the bcrypt checks of both gates.
    :ivar made_up: user and password made for this run, since nobody was named who may enter; else None.
    """

    gate: Gate
    metrics_gate: Gate
    users: Users
    checks: Checks
    made_up: tuple[str, str] | None

    def close(self) -> None:
        """Let go of the threads that check passwords."""
        self.checks.close()


def build_entrance(options: Any) -> Entrance:
    """Make the gate that the options describe.

    :param options: Flower's options and ours.
    :raises ValueError: they contradict each other, or a file cannot be used; the message is one line.
    """
    refuse_contradictions(options)
    made_up = None
    if not (options.no_auth or any(getattr(options, name) for name in _WAYS_IN)):
        made_up = (_MADE_UP_USER, secrets.token_urlsafe(12))
    entries = [":".join(made_up)] if made_up else options.basic_auth
    users = Users(entries, options.basic_auth_file, options.auth_file)
    _refuse_unknown_viewers(options, users)
    checks, throttle, browsers = Checks(), Throttle(), Throttle()
    scraper, scrapers = None, None
    if options.metrics_auth:
        passwords = parse_entries([options.metrics_auth])
        (scraper,) = passwords
        if scraper in users.names():
            raise ValueError(
                f"--metrics_auth: {scraper!r} is a user of the pages too; take another name for the metrics"
            )
        # Refused as slowly as a user of the pages: the time would tell the scraper's name
        scrapers = PasswordCheck(
            passwords=Verifier(lambda: passwords, checks, equal_to=users.current), throttle=throttle, browsers=browsers
        )
    by_password = PasswordCheck(passwords=Verifier(users.current, checks), throttle=throttle, browsers=browsers)
    gate = Gate(
        authenticator=Authenticator(
            by_password=by_password if users else None,
            may_enter=partial(matches_address, options.auth) if options.auth else None,
            user_header=options.auth_header or None,
            allowed_hosts=tuple(map(parse_allowed_host, options.allowed_hosts)),
        ),
        scrapers=scrapers,
        scraper=scraper,
        roles=Roles(viewers=frozenset(map(fold, options.viewers)), read_only=options.read_only),
        cors_origins=frozenset(map(parse_origin, options.cors_origins)),
    )
    opened = replace(gate, metrics_open=options.metrics_open)
    own_listener = options.metrics_port is not None
    return Entrance(
        gate=gate if own_listener else opened, metrics_gate=opened, users=users, checks=checks, made_up=made_up
    )


_WAYS_IN = ("basic_auth", "basic_auth_file", "auth_file", "auth", "auth_header")


def matches_address(pattern: str, address: str) -> bool:
    """Tell whether an e-mail address is one of those of ``--auth``.

    :param pattern: one address, several with ``|``, or a pattern in which ``.*`` stands for any part of an address.
    """
    if "|" in pattern:
        return address in pattern.split("|")
    return re.fullmatch(_ANY_PART.join(map(re.escape, pattern.split(".*"))), address) is not None


def refuse_contradictions(options: Any) -> None:
    """Look for options that contradict each other in who may enter.

    :raises ValueError: two of them do; the message is one line.
    """
    if options.no_auth:
        for name in (*_WAYS_IN, "viewers"):
            if getattr(options, name):
                raise ValueError(f"--no_auth: nobody is asked who they are, but --{name} is given")
    if bool(options.auth) != bool(options.auth_provider):
        given, missing = ("auth", "auth_provider") if options.auth else ("auth_provider", "auth")
        raise ValueError(f"--{given}: it needs --{missing}")
    if options.metrics_open and options.metrics_auth:
        raise ValueError("--metrics_open: nobody is asked for a password, but --metrics_auth is given")
    if options.metrics_address and options.metrics_port is None:
        raise ValueError("--metrics_address: it needs --metrics_port")


def _refuse_unknown_viewers(options: Any, users: Users) -> None:
    if options.basic_auth_file or options.auth_file or options.auth or options.auth_header:
        # Names that are not known yet may come
        return
    known = set(map(fold, users.names()))
    for name in options.viewers:
        if fold(name) not in known:
            raise ValueError(f"--viewers: {name!r} is not one of the users of --basic_auth")
