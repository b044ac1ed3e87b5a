"""What can be set, declared once: the command line, the environment, the file, ``--help`` and the README follow it.

Flower's own options are taken from Flower, so that a new one of a later release is there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from tornado.options import OptionParser

from flower_proxy._flower import (
    definitions,
    strtobool,
    validate_broker_api,
)
from flower_proxy.auth.csrf import parse_origin
from flower_proxy.auth.hosts import parse_allowed_host
from flower_proxy.auth.user_files import parse_entries
from flower_proxy.proxy.addresses import TrustedProxies
from flower_proxy.settings import validators as checks
from flower_proxy.web.security_headers import parse_frame_ancestors

ENV_PREFIX = "FLOWER_"
WHO = "Who may enter"

_GROUPS = ("flower", "celery", "self")
# Seconds; tasks that take an hour are told from those that take longer (P28)
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0]
_LISTEN, _PROXY, _WORKERS, _LOG = "Where it listens", "Behind a proxy", "Workers, tasks and broker", "Start and log"

_OTHERS = "More of Flower's and Tornado's"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", FunctionType: "a function"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    :ivar name: with underscores, as in ``flowerconfig.py``.
    :ivar type: of a single value: ``str``, ``int``, ``float``, ``bool``, or a function.
    :ivar default: what holds if nobody sets it.
    :ivar help: one line.
    :ivar group: the heading it stands under in ``--help``.
    :ivar multiple: whether the value is a list, written with commas or by repeating the option.
    :ivar secret: whether its value must not be repeated in a message.
    :ivar is_path: whether it is a path, which the shell can complete.
    :ivar check: raises ValueError, with the reason, for a value of the right type that cannot be used.
    """

    name: str
    type: type
    default: Any
    help: str
    group: str
    multiple: bool = False
    secret: bool = False
    is_path: bool = False
    check: Callable[[Any], object] | None = None

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as people write it; empty if there is none, or if it is a secret."""
        if self.secret or self.default in (None, "", []):
            return ""
        if isinstance(self.default, (list, tuple)):
            return ",".join(map(str, self.default))
        return str(self.default).lower() if self.type is bool else str(self.default)

    def parse(self, texts: Sequence[str]) -> Any:
        """Read what was written, once or, on the command line, several times.

        :returns: a list if `multiple`, else the last value.
        :raises ValueError: with the reason.
        """
        if self.multiple:
            parts = [part for text in texts for part in text.split(",")]
            # A space may belong to a password
            return self.accept([self._parse_one(part if self.secret else part.strip()) for part in parts])
        return self.accept(self._parse_one(texts[-1]))

    def accept(self, value: Any) -> Any:
        """Check a value that is no text, as a configuration file has it.

        :raises ValueError: with the reason.
        """
        for single in value if self.multiple and isinstance(value, (list, tuple)) else [value]:
            fits = isinstance(single, (int, float) if self.type is float else self.type)
            if not fits or (isinstance(single, bool) and self.type is not bool):
                raise ValueError(f"{self._shown(single)} is not {_KINDS[self.type]}")
        if self.check is not None:
            self.check(value)
        return list(value) if self.multiple else value

    def _parse_one(self, text: str) -> Any:
        if self.type is str:
            return text
        try:
            return parse_bool(text) if self.type is bool else self.type(text)
        except (TypeError, ValueError):
            only = ", which only the configuration file can hold" if self.type is FunctionType else ""
            raise ValueError(f"{self._shown(text)} is not {_KINDS[self.type]}{only}") from None

    def _shown(self, value: Any) -> str:
        return "the value" if self.secret else repr(value)


def parse_bool(text: str) -> bool:
    """Read true or false in any of the spellings that Flower knows: 1, yes, on, ...

    :raises ValueError: it is neither.
    """
    return bool(strtobool(text))


OWN = (
    Option(
        name="trusted_proxies",
        type=str,
        default=["127.0.0.0/8", "::1", "unix"],
        multiple=True,
        help="addresses and networks of the proxies whose X-Forwarded headers count; unix for a unix socket's peer",
        group=_PROXY,
        check=TrustedProxies,
    ),
    Option(
        name="static_overrides",
        type=str,
        default=None,
        help="a folder whose files go in front of Flower's static ones: a logo, a stylesheet",
        group=_PROXY,
        is_path=True,
        check=checks.folder,
    ),
    Option(
        name="unix_socket_mode",
        type=str,
        default="0660",
        help="who may connect to the unix socket, as for chmod",
        group=_LISTEN,
        check=checks.parse_mode,
    ),
    Option(
        name="max_connections",
        type=int,
        default=None,
        help="maximum number of client connections; by default half the file descriptor limit, at most 2000",
        group=_LISTEN,
        check=checks.between(1),
    ),
    Option(
        name="metrics_port",
        type=int,
        default=None,
        help="another port, for /metrics alone; 0 takes a free one",
        group=_LISTEN,
        check=checks.between(0, 65535),
    ),
    Option(
        name="metrics_address",
        type=str,
        default=None,
        help="the address to listen on for /metrics; all interfaces if empty",
        group=_LISTEN,
    ),
    Option(
        name="basic_auth_file",
        type=str,
        default=None,
        help="a file with user:password lines, such as a mounted secret; read again when it changes",
        group=WHO,
        is_path=True,
        check=checks.given_file,
    ),
    Option(
        name="auth_file",
        type=str,
        default=None,
        help="a file with hashed passwords: htpasswd by bcrypt, or Prometheus' web.yml; read again when it changes",
        group=WHO,
        is_path=True,
        check=checks.given_file,
    ),
    Option(
        name="auth_header",
        type=str,
        default=None,
        help="the header in which a trusted proxy names the user, such as X-Forwarded-User",
        group=WHO,
        check=checks.user_header,
    ),
    Option(
        name="no_auth",
        type=bool,
        default=False,
        help="ask nobody who they are: somebody in front does",
        group=WHO,
    ),
    Option(
        name="viewers",
        type=str,
        default=[],
        multiple=True,
        help="users who may look, but not act",
        group=WHO,
    ),
    Option(
        name="metrics_auth",
        type=str,
        default=None,
        secret=True,
        help="user:password that is good for /metrics alone",
        group=WHO,
        check=lambda value: parse_entries([value]),
    ),
    Option(
        name="metrics_open",
        type=bool,
        default=False,
        help="ask nobody who wants /metrics; with --metrics_port only there",
        group=WHO,
    ),
    Option(
        name="allowed_hosts",
        type=str,
        default=[],
        multiple=True,
        help="host names that are ours, where no password is asked for; .example.com for all below it",
        group=WHO,
        check=checks.each(parse_allowed_host),
    ),
    Option(
        name="cors_origins",
        type=str,
        default=[],
        multiple=True,
        help="web sites whose pages may read, such as https://dashboard.example.com",
        group=WHO,
        check=checks.each(parse_origin),
    ),
    Option(
        name="frame_ancestors",
        type=str,
        default=["self"],
        multiple=True,
        help="web sites that may show the pages in a frame: self, none, https://portal.example.com",
        group=WHO,
        check=parse_frame_ancestors,
    ),
    Option(
        name="metrics",
        type=str,
        default=list(_GROUPS),
        multiple=True,
        help="which metrics: Flower's names, celery-exporter's names, those of flower-proxy itself",
        group=_WORKERS,
        check=checks.each(checks.one_of(*_GROUPS)),
    ),
    Option(
        name="metrics_task_names",
        type=int,
        default=1000,
        help="of so many task names there are metrics; those beyond are counted as other",
        group=_WORKERS,
        check=checks.between(1),
    ),
    Option(
        name="queues",
        type=str,
        default=[],
        multiple=True,
        help="queues to count besides those that are configured, and that workers consume",
        group=_WORKERS,
    ),
    Option(
        name="access_log",
        type=bool,
        default=False,
        help="log every request",
        group=_LOG,
    ),
)
"""The options that Flower does not have."""

# What is added to Flower's own declarations: a heading, words, a check, another default
_FLOWERS: dict[str, dict[str, dict[str, Any]]] = {
    _LISTEN: {
        "port": {"check": checks.between(0, 65535), "help": "the port to listen on; 0 takes a free one"},
        "address": {"help": "the address to listen on; all interfaces if empty"},
        "unix_socket": {"is_path": True, "help": "the path of a unix socket to listen on instead"},
        "certfile": {
            "check": checks.file,
            "is_path": True,
            "help": "the TLS certificate, with those between it and the root",
        },
        "keyfile": {"check": checks.file, "is_path": True, "help": "the key of the TLS certificate"},
        "ca_certs": {
            "check": checks.file,
            "is_path": True,
            "help": "certificates of further authorities; clients are not asked for theirs",
        },
    },
    _PROXY: {
        "url_prefix": {"check": checks.mount, "help": "the path under which the proxy shows it, such as /flower"},
        "xheaders": {"help": "read X-Real-Ip and X-Scheme too, from trusted proxies only"},
    },
    WHO: {
        "basic_auth": {
            "check": checks.credentials,
            "secret": True,
            "help": "user:password, for each user; one is made up if nothing here is given",
        },
        "auth": {"check": checks.auth, "help": "the e-mail addresses that may log in by OAuth: a|b, or .*@example.com"},
        "auth_provider": {
            "check": checks.provider,
            "help": "the login handler, such as flower.views.auth.GithubLoginHandler",
        },
        "oauth2_key": {"help": "the client id at the OAuth provider"},
        "oauth2_secret": {"secret": True, "help": "the client secret at the OAuth provider"},
        "oauth2_redirect_uri": {"help": "where the OAuth provider sends people back to: https://HOST/PREFIX/login"},
        "cookie_secret": {
            "check": checks.cookie_secret,
            "secret": True,
            "help": "what signs sessions and pages; new at each start, so set it for replicas",
        },
        "read_only": {"help": "refuse every control action and hide the buttons"},
    },
    _WORKERS: {
        "enable_events": {"help": "ask the workers every few seconds to send events"},
        "inspect_timeout": {
            "check": checks.between(1, 3_600_000),
            "help": "how long a worker may take to answer, in milliseconds",
        },
        "max_workers": {"check": checks.between(1), "help": "how many workers are kept in memory"},
        "max_tasks": {"check": checks.between(1), "help": "how many tasks are kept in memory"},
        "purge_offline_workers": {
            "check": checks.between(0),
            "help": "forget workers that are silent for so many seconds",
        },
        "persistent": {"help": "keep tasks and workers over a restart"},
        "db": {"check": checks.database, "is_path": True, "help": "the file in which they are kept"},
        "state_save_interval": {
            "check": checks.between(0),
            "help": "save them every so many milliseconds; 0 only at the end",
        },
        "broker_api": {
            "check": validate_broker_api,
            "secret": True,
            "help": "RabbitMQ's management API: http://user:password@host:15672/api/",
        },
        "task_runtime_metric_buckets": {
            "default": _BUCKETS,
            "check": checks.buckets,
            "help": "upper bounds of the runtime histogram, in seconds",
        },
    },
    "Pages": {
        "auto_refresh": {"help": "let the workers page refresh itself"},
        "natural_time": {"help": "show times as so long ago"},
        "tasks_columns": {"check": checks.columns, "help": "columns of the tasks page, in this order"},
        "format_task": {"help": "a function that changes how a task is shown; in the configuration file only"},
    },
    _LOG: {
        "conf": {"is_path": True, "help": "the configuration file, Python like flowerconfig.py"},
        "debug": {"help": "log everything, show errors on pages, restart when the code changes"},
        "logging": {
            "check": checks.one_of("debug", "info", "warning", "error", "critical", "none"),
            "help": "the least important messages that are logged",
        },
    },
}


def declare(parser: OptionParser) -> dict[str, Option]:
    """Make our options known to Tornado, once, and return all there are.

    :param parser: where Flower has defined its own; Tornado's global one in a running program.
    :returns: by name, in the order in which ``--help`` shows them.
    """
    known = definitions(parser)
    for option in OWN:
        if option.name not in known:
            parser.define(
                option.name,
                type=option.type,
                default=option.default,
                multiple=option.multiple,
                help=option.help,
            )
    options = {option.name: option for option in OWN}
    for name, defined in known.items():
        if name not in options:
            group = next((group for group, names in _FLOWERS.items() if name in names), _OTHERS)
            added = _FLOWERS.get(group, {}).get(name, {})
            if "default" in added and getattr(parser, name) == defined.default:
                setattr(parser, name, added["default"])
            options[name] = Option(
                **{
                    "name": name,
                    "type": defined.type,
                    "default": defined.default,
                    "multiple": defined.multiple,
                    "help": defined.help or "",
                    "group": group,
                    **added,
                }
            )
    headings = [*_FLOWERS, _OTHERS]
    names = [name for group in _FLOWERS.values() for name in group] + list(options)
    return dict(sorted(options.items(), key=lambda item: (headings.index(item[1].group), names.index(item[0]))))
