"""The table of all options: Flower's, Tornado's for the log, and those of flower-proxy.

Command line, environment, configuration file, ``--help`` and the README follow it. It is held equal to the declarations
of Flower and Tornado by `tests/unit/test_contract.py`, so that reading it loads neither.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any

from flower_proxy.auth.csrf import parse_origin
from flower_proxy.auth.hosts import parse_allowed_host
from flower_proxy.auth.user_files import parse_entries
from flower_proxy.proxy.addresses import TrustedProxies
from flower_proxy.settings import validators as checks

ENV_PREFIX = "FLOWER_"
WHO = "Who may enter"
OTHERS = "More of Flower's and Tornado's"

_METRICS = ["flower", "celery", "self"]
# Seconds; tasks that take an hour are told from those that take longer (P28)
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0]
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: """a JSON object such as '{"master_name": "mymaster"}'""",
    FunctionType: "a function",
}
_PARSERS: Mapping[type, Callable[[str], Any]] = {bool: checks.parse_bool, dict: json.loads}


@dataclass(frozen=True)
class Option:
    """One option.

    :ivar name: with underscores, as in ``flowerconfig.py``.
    :ivar type: of a single value: ``str``, ``int``, ``float``, ``bool``, ``dict``, or a function.
    :ivar default: the value if none is set.
    :ivar help: one line.
    :ivar check: raises ValueError, with the reason, for a value of the right type that cannot be used.
    :ivar group: the heading it stands under in ``--help``.
    :ivar own: whether it is an option of flower-proxy, not of Flower or Tornado.
    :ivar multiple: whether the value is a list, written with commas or by repeating the option.
    :ivar secret: whether its value must not be repeated in a message.
    :ivar is_path: whether it is a path, which the shell can complete.
    """

    name: str
    type: type
    default: Any
    help: str
    check: Callable[[Any], object] | None = None
    _: KW_ONLY
    group: str = OTHERS
    own: bool = False
    multiple: bool = False
    secret: bool = False
    is_path: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as users write it; empty if there is none, or if it is a secret."""
        if self.secret or self.default in (None, "", []):
            return ""
        if self.multiple:
            return ",".join(map(str, self.default))
        return str(self.default).lower() if self.type is bool else str(self.default)

    def parse(self, texts: Sequence[str]) -> Any:
        """Read a value from text.

        :param texts: one for each time the option was given.
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

        :returns: the value, in the type that Tornado demands.
        :raises ValueError: with the reason.
        """
        values = list(value) if self.multiple and isinstance(value, (list, tuple)) else [value]
        for single in values:
            fits = isinstance(single, (int, float) if self.type is float else self.type)
            if not fits or (isinstance(single, bool) and self.type is not bool):
                raise ValueError(f"{self._shown(single)} is not {_KINDS[self.type]}")
        if self.check is not None:
            self.check(values if self.multiple else value)
        if self.type is float:
            # Tornado refuses a whole number there
            values = list(map(float, values))
        return values if self.multiple else values[0]

    def _parse_one(self, text: str) -> Any:
        if self.type is str:
            return text
        try:
            return _PARSERS.get(self.type, self.type)(text)
        except (TypeError, ValueError, RecursionError):
            only = ", which only the configuration file can hold" if self.type is FunctionType else ""
            raise ValueError(f"{self._shown(text)} is not {_KINDS[self.type]}{only}") from None

    def _shown(self, value: Any) -> str:
        return "the value" if self.secret else repr(value)


_own = partial(Option, own=True)

# One to three lines an option
# fmt: off
_BY_GROUP = {
    "Where it listens": [
        Option("port", int, 5555, "the port to listen on; 0 takes a free one", checks.between(0, 65535)),
        Option("address", str, "", "the address to listen on; all interfaces if empty"),
        Option("unix_socket", str, "", "the path of a unix socket to listen on instead", is_path=True),
        Option("certfile", str, None, "the TLS certificate, with those between it and the root",
               checks.file, is_path=True),
        Option("keyfile", str, None, "the key of the TLS certificate", checks.file, is_path=True),
        Option("ca_certs", str, None, "certificates of further authorities; clients are not asked for theirs",
               checks.file, is_path=True),
        _own("unix_socket_mode", str, "0660", "who may connect to the unix socket, as for chmod", checks.parse_mode),
        _own("max_connections", int, None,
             "maximum number of client connections; by default half the file descriptor limit, at most 2000",
             checks.between(1)),
        _own("metrics_port", int, None, "another port, for /metrics alone; 0 takes a free one",
             checks.between(0, 65535)),
        _own("metrics_address", str, None, "the address to listen on for /metrics; all interfaces if empty"),
    ],
    "Behind a proxy": [
        Option("url_prefix", str, None, "the path under which the proxy shows it, such as /flower", checks.mount),
        Option("xheaders", bool, False, "read X-Real-Ip and X-Scheme too, from trusted proxies only"),
        _own("trusted_proxies", str, ["127.0.0.0/8", "::1", "unix"],
             "addresses and networks of the proxies whose X-Forwarded headers count; unix for a unix socket's peer",
             TrustedProxies, multiple=True),
        _own("static_overrides", str, None,
             "a folder whose files go in front of Flower's static ones: a logo, a stylesheet",
             checks.folder, is_path=True),
    ],
    WHO: [
        Option("basic_auth", str, [], "user:password, for each user; one is made up if nothing here is given",
               checks.credentials, multiple=True, secret=True),
        Option("auth", str, "", "the e-mail addresses that may log in by OAuth: a|b, or .*@example.com", checks.auth),
        Option("auth_provider", str, None, "the login handler, such as flower.views.auth.GithubLoginHandler"),
        Option("oauth2_key", str, None, "the client id at the OAuth provider"),
        Option("oauth2_secret", str, None, "the client secret at the OAuth provider", secret=True),
        Option("oauth2_redirect_uri", str, None,
               "where the OAuth provider sends people back to: https://HOST/PREFIX/login"),
        Option("cookie_secret", str, secrets.token_urlsafe(64),
               "what signs sessions and pages; new at each start, so set it for replicas",
               checks.cookie_secret, secret=True),
        Option("read_only", bool, False, "refuse every control action and hide the buttons"),
        _own("basic_auth_file", str, None,
             "a file with user:password lines, such as a mounted secret; read again when it changes",
             checks.given_file, is_path=True),
        _own("auth_file", str, None,
             "a file with hashed passwords: htpasswd by bcrypt, or Prometheus' web.yml; read again when it changes",
             checks.given_file, is_path=True),
        _own("auth_header", str, None, "the header in which a trusted proxy names the user, such as X-Forwarded-User",
             checks.user_header),
        _own("no_auth", bool, False, "ask nobody who they are: somebody in front does"),
        _own("viewers", str, [], "users who may look, but not act", multiple=True),
        _own("metrics_auth", str, None, "user:password that is good for /metrics alone",
             lambda value: parse_entries([value]), secret=True),
        _own("metrics_open", bool, False, "ask nobody who wants /metrics; with --metrics_port only there"),
        _own("allowed_hosts", str, [],
             "host names that are ours, where no password is asked for; .example.com for all below it",
             checks.each(parse_allowed_host), multiple=True),
        _own("cors_origins", str, [], "web sites whose pages may read, such as https://dashboard.example.com",
             checks.each(parse_origin), multiple=True),
        _own("frame_ancestors", str, ["self"],
             "web sites that may show the pages in a frame: self, none, https://portal.example.com",
             checks.parse_frame_ancestors, multiple=True),
    ],
    "Workers, tasks and broker": [
        Option("enable_events", bool, True, "ask the workers every few seconds to send events"),
        Option("inspect_timeout", float, 1000.0, "how long a worker may take to answer, in milliseconds",
               checks.between(1, 3_600_000)),
        Option("max_workers", int, 5000, "how many workers are kept in memory", checks.between(1)),
        Option("max_tasks", int, 100000, "how many tasks are kept in memory", checks.between(1)),
        Option("purge_offline_workers", int, None, "forget workers that are silent for so many seconds",
               checks.between(0)),
        Option("persistent", bool, False, "keep tasks and workers over a restart"),
        Option("db", str, "flower", "the file in which they are kept", checks.database, is_path=True),
        Option("state_save_interval", int, 0, "save them every so many milliseconds; 0 only at the end",
               checks.between(0)),
        Option("broker_api", str, None, "RabbitMQ's management API: http://user:password@host:15672/api/",
               checks.unless_empty(checks.broker_api), secret=True),
        _own("broker_transport_options", dict, None,
             'options of the transport as JSON: {"master_name": "mymaster"}; they override the application\'s',
             secret=True),
        Option("task_runtime_metric_buckets", float, _BUCKETS, "upper bounds of the runtime histogram, in seconds",
               checks.buckets, multiple=True),
        _own("metrics", str, _METRICS,
             "which metrics: Flower's names, celery-exporter's names, those of flower-proxy itself",
             checks.each(checks.one_of(*_METRICS)), multiple=True),
        _own("metrics_max_task_names", int, 1000,
             "maximum number of task names in metrics; the rest are aggregated as other", checks.between(1)),
        _own("queues", str, [], "queues to count besides those that are configured, and that workers consume",
             multiple=True),
    ],
    "Pages": [
        Option("auto_refresh", bool, True, "let the workers page refresh itself"),
        Option("natural_time", bool, False, "show times as so long ago"),
        Option("tasks_columns", str, "name,uuid,state,received,runtime,worker",
               "columns of the tasks page, in this order", checks.columns),
        Option("format_task", FunctionType, None,
               "a function that changes how a task is shown; in the configuration file only"),
    ],
    "Start and log": [
        Option("conf", str, "flowerconfig.py", "the configuration file, Python like flowerconfig.py", is_path=True),
        Option("debug", bool, False, "log everything, show errors on pages, restart when the code changes"),
        Option("logging", str, "info", "the least important messages that are logged",
               checks.one_of("debug", "info", "warning", "error", "critical", "none")),
        _own("access_log", bool, False, "log every request"),
    ],
    OTHERS: [
        Option("log_to_stderr", bool, None,
               "log to standard error even with --log_file_prefix; false logs to files only"),
        Option("log_file_prefix", str, None, "the path of the log file; rotated files get a suffix"),
        Option("log_file_max_size", int, 100_000_000, "rotate a log file that reaches this size, in bytes"),
        Option("log_file_num_backups", int, 10, "number of rotated log files to keep"),
        Option("log_rotate_when", str, "midnight",
               "the unit of --log_rotate_interval: S, M, H, D, W0 to W6 (weekdays, W0 is Monday), or midnight"),
        Option("log_rotate_interval", int, 1, "number of units between rotations, with --log_rotate_mode=time"),
        Option("log_rotate_mode", str, "size", "rotate log files by size or by time"),
    ],
}
# fmt: on

OPTIONS: Mapping[str, Option] = {
    option.name: replace(option, group=group) for group, options in _BY_GROUP.items() for option in options
}
"""All options by name, in the order in which ``--help`` shows them."""
