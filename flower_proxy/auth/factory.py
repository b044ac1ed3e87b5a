"""Construction of the access policy from the options."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flower_proxy.auth.authenticator import Authenticator, PasswordCheck
from flower_proxy.auth.csrf import parse_origin
from flower_proxy.auth.hosts import parse_allowed_host
from flower_proxy.auth.policy import AccessPolicy, Roles, fold
from flower_proxy.auth.throttle import Throttle
from flower_proxy.auth.user_files import parse_entries
from flower_proxy.auth.users import Users
from flower_proxy.auth.verifier import Checks, Verifier

_GENERATED_USER = "flower"
# The characters of dot-atom-text (RFC 5322, section 3.2.3)
_ANY_PART = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*"
_AUTH_OPTIONS = ("basic_auth", "basic_auth_file", "auth_file", "auth", "auth_header")


@dataclass(frozen=True, kw_only=True)
class Access:
    """The access policies and their users.

    :ivar policy: the policy of the web interface.
    :ivar metrics_policy: the policy of the metrics listener.
    :ivar users: the users with a password.
    :ivar checks: the bcrypt checks of both policies.
    :ivar generated: the generated user and password, if no authentication is configured; else None.
    """

    policy: AccessPolicy
    metrics_policy: AccessPolicy
    users: Users
    checks: Checks
    generated: tuple[str, str] | None

    def close(self) -> None:
        """Shut down the threads that check passwords."""
        self.checks.close()


def build_access(options: Any) -> Access:
    """Build the access policies for these options.

    :param options: the options of Flower and flower-proxy.
    :raises ValueError: options contradict each other, or a file is invalid; the message is one line.
    """
    refuse_contradictions(options)
    generated = None
    if not (options.no_auth or any(getattr(options, name) for name in _AUTH_OPTIONS)):
        generated = (_GENERATED_USER, secrets.token_urlsafe(12))
    entries = [":".join(generated)] if generated else options.basic_auth
    users = Users(entries, options.basic_auth_file, options.auth_file)
    _refuse_unknown_viewers(options, users)
    checks, throttle, browsers = Checks(), Throttle(), Throttle()
    scraper, scrapers = None, None
    if options.metrics_auth:
        passwords = parse_entries([options.metrics_auth])
        (scraper,) = passwords
        if scraper in users.names():
            raise ValueError(
                f"--metrics_auth: {scraper!r} is also a user of the web interface; choose another name for the scraper"
            )
        # The time of a denial must not disclose the scraper's name
        scrapers = PasswordCheck(
            passwords=Verifier(lambda: passwords, checks, timing_reference=users.current),
            throttle=throttle,
            browsers=browsers,
        )
    password_check = PasswordCheck(passwords=Verifier(users.current, checks), throttle=throttle, browsers=browsers)
    policy = AccessPolicy(
        authenticator=Authenticator(
            password_check=password_check if users else None,
            is_allowed=partial(matches_address, options.auth) if options.auth else None,
            user_header=options.auth_header or None,
            allowed_hosts=tuple(map(parse_allowed_host, options.allowed_hosts)),
        ),
        scrapers=scrapers,
        scraper=scraper,
        roles=Roles(viewers=frozenset(map(fold, options.viewers)), read_only=options.read_only),
        cors_origins=frozenset(map(parse_origin, options.cors_origins)),
    )
    opened = replace(policy, metrics_open=options.metrics_open)
    own_listener = options.metrics_port is not None
    return Access(
        policy=policy if own_listener else opened,
        metrics_policy=opened,
        users=users,
        checks=checks,
        generated=generated,
    )


def matches_address(pattern: str, address: str) -> bool:
    """Return whether an e-mail address matches ``--auth``.

    :param pattern: one address, several separated by ``|``, or a pattern in which ``.*`` matches any part of an
        address.
    """
    if "|" in pattern:
        return address in pattern.split("|")
    return re.fullmatch(_ANY_PART.join(map(re.escape, pattern.split(".*"))), address) is not None


def refuse_contradictions(options: Any) -> None:
    """Check the authentication options for contradictions.

    :raises ValueError: two options contradict each other; the message is one line.
    """
    if options.no_auth:
        for name in (*_AUTH_OPTIONS, "viewers"):
            if getattr(options, name):
                raise ValueError(f"--no_auth: disables authentication, but --{name} is given; remove one of them")
    if bool(options.auth) != bool(options.auth_provider):
        given, missing = ("auth", "auth_provider") if options.auth else ("auth_provider", "auth")
        raise ValueError(f"--{given}: requires --{missing}")
    if options.metrics_open and options.metrics_auth:
        raise ValueError("--metrics_open: makes the metrics public, but --metrics_auth is given; remove one of them")
    if options.metrics_address and options.metrics_port is None:
        raise ValueError("--metrics_address: requires --metrics_port")


def _refuse_unknown_viewers(options: Any, users: Users) -> None:
    if options.basic_auth_file or options.auth_file or options.auth or options.auth_header:
        # Files may change, and providers and proxies may send any user
        return
    known = set(map(fold, users.names()))
    for name in options.viewers:
        if fold(name) not in known:
            raise ValueError(f"--viewers: {name!r} is not a user of --basic_auth")
