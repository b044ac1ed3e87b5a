"""The option table: Flower's options, Tornado's logging options, and those of flower-proxy.

The command line, the environment, the configuration file, ``--help`` and the README derive from it.
`tests/unit/test_contract.py` compares it with the declarations of Flower and Tornado, so importing it loads neither.
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
AUTHENTICATION = "Authentication and access"
OTHER = "Other options of Flower and Tornado"

_METRICS = ["flower", "celery", "self"]
# Seconds; the default buckets of prometheus_client end at 10 s, which hides longer runtimes
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

    :ivar name: the name, with underscores as in ``flowerconfig.py``.
    :ivar type: the type of a single value: ``str``, ``int``, ``float``, ``bool``, ``dict``, or a function.
    :ivar default: the value if the option is not set.
    :ivar help: one line for ``--help`` and the README.
    :ivar check: raises ValueError, with the reason, for an invalid value of the right type.
    :ivar group: the heading in ``--help``.
    :ivar own: whether flower-proxy declares it, not Flower or Tornado.
    :ivar multiple: whether the value is a list, separated by commas or given by repeating the option.
    :ivar secret: whether messages must not contain its value.
    :ivar is_path: whether it is a path, for shell completion.
    """

    name: str
    type: type
    default: Any
    help: str
    check: Callable[[Any], object] | None = None
    _: KW_ONLY
    group: str = OTHER
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
        """The default, formatted as on the command line; empty if there is none or the option is secret."""
        if self.secret or self.default in (None, "", []):
            return ""
        if self.multiple:
            return ",".join(map(str, self.default))
        return str(self.default).lower() if self.type is bool else str(self.default)

    def parse(self, texts: Sequence[str]) -> Any:
        """Parse a value.

        :param texts: one text for each time the option was given.
        :returns: a list if `multiple`, else the last value.
        :raises ValueError: the value is invalid; the message is the reason.
        """
        if self.multiple:
            parts = [part for text in texts for part in text.split(",")]
            # A password may begin or end with a space
            return self.accept([self._parse_one(part if self.secret else part.strip()) for part in parts])
        return self.accept(self._parse_one(texts[-1]))

    def accept(self, value: Any) -> Any:
        """Check a Python value, as set in a configuration file.

        :returns: the value, in the type that Tornado requires.
        :raises ValueError: the value is invalid; the message is the reason.
        """
        values = list(value) if self.multiple and isinstance(value, (list, tuple)) else [value]
        for single in values:
            fits = isinstance(single, (int, float) if self.type is float else self.type)
            if not fits or (isinstance(single, bool) and self.type is not bool):
                raise ValueError(f"{self._shown(single)} is not {_KINDS[self.type]}")
        if self.check is not None:
            self.check(values if self.multiple else value)
        if self.type is float:
            # Tornado rejects an int for a float option
            values = list(map(float, values))
        return values if self.multiple else values[0]

    def _parse_one(self, text: str) -> Any:
        if self.type is str:
            return text
        try:
            return _PARSERS.get(self.type, self.type)(text)
        except (TypeError, ValueError, RecursionError):
            hint = "; set it in the configuration file" if self.type is FunctionType else ""
            raise ValueError(f"{self._shown(text)} is not {_KINDS[self.type]}{hint}") from None

    def _shown(self, value: Any) -> str:
        return "the value" if self.secret else repr(value)


_own = partial(Option, own=True)

# fmt: off
_BY_GROUP = {
    "Listening": [
        Option("port", int, 5555, "the port to listen on; 0 selects a free port", checks.between(0, 65535)),
        Option("address", str, "", "the address to listen on; all interfaces if empty"),
        Option("unix_socket", str, "", "the path of a unix socket to listen on instead of a port", is_path=True),
        Option("certfile", str, None, "the TLS certificate, followed by its intermediate certificates",
               checks.file, is_path=True),
        Option("keyfile", str, None, "the private key of the TLS certificate", checks.file, is_path=True),
        Option("ca_certs", str, None, "additional CA certificates; client certificates are not requested",
               checks.file, is_path=True),
        _own("unix_socket_mode", str, "0660", "the file mode of the unix socket, in octal", checks.parse_mode),
        _own("max_connections", int, None,
             "maximum number of client connections; by default half the file descriptor limit, at most 2000",
             checks.between(1)),
        _own("metrics_port", int, None, "a separate port for /metrics; 0 selects a free port",
             checks.between(0, 65535)),
        _own("metrics_address", str, None, "the address for --metrics_port; all interfaces if empty"),
    ],
    "Reverse proxy": [
        Option("url_prefix", str, None, "the public path prefix, such as /flower", checks.mount),
        Option("xheaders", bool, False, "also read X-Real-Ip and X-Scheme, from trusted proxies only"),
        _own("trusted_proxies", str, ["127.0.0.0/8", "::1", "unix"],
             "addresses and networks of proxies whose forwarded headers are trusted; unix for unix socket peers",
             TrustedProxies, multiple=True),
        _own("static_overrides", str, None,
             "a folder with files that replace Flower's static files: a logo, a stylesheet",
             checks.folder, is_path=True),
    ],
    AUTHENTICATION: [
        Option("basic_auth", str, [], "user:password pairs; a password is generated if no users are configured",
               checks.credentials, multiple=True, secret=True),
        Option("auth", str, "", "the e-mail addresses that may log in with OAuth: a|b, or .*@example.com", checks.auth),
        Option("auth_provider", str, None, "the OAuth login handler, such as flower.views.auth.GithubLoginHandler"),
        Option("oauth2_key", str, None, "the OAuth client ID"),
        Option("oauth2_secret", str, None, "the OAuth client secret", secret=True),
        Option("oauth2_redirect_uri", str, None, "the OAuth redirect URI: https://HOST/PREFIX/login"),
        Option("cookie_secret", str, secrets.token_urlsafe(64),
               "the key that signs sessions; generated at each start, so replicas need a common one",
               checks.cookie_secret, secret=True),
        Option("read_only", bool, False, "refuse every control action and hide the buttons"),
        _own("basic_auth_file", str, None,
             "a file with user:password lines, such as a mounted secret; reloaded when it changes",
             checks.given_file, is_path=True),
        _own("auth_file", str, None,
             "a file with bcrypt hashes: htpasswd, or Prometheus' web.yml; reloaded when it changes",
             checks.given_file, is_path=True),
        _own("auth_header", str, None, "the header in which a trusted proxy sends the user, such as X-Forwarded-User",
             checks.user_header),
        _own("no_auth", bool, False, "disable authentication; the reverse proxy must provide it"),
        _own("viewers", str, [], "users with read-only access", multiple=True),
        _own("metrics_auth", str, None, "user:password that is valid for /metrics only",
             lambda value: parse_entries([value]), secret=True),
        _own("metrics_open", bool, False,
             "serve /metrics without authentication; with --metrics_port, only on that port"),
        _own("allowed_hosts", str, [],
             "valid Host headers for requests without a password; .example.com includes subdomains",
             checks.each(parse_allowed_host), multiple=True),
        _own("cors_origins", str, [], "origins that may read through CORS, such as https://dashboard.example.com",
             checks.each(parse_origin), multiple=True),
        _own("frame_ancestors", str, ["self"],
             "origins that may frame the pages: self, none, https://portal.example.com",
             checks.parse_frame_ancestors, multiple=True),
    ],
    "Workers, tasks and broker": [
        Option("enable_events", bool, True, "periodically ask workers to send events"),
        Option("inspect_timeout", float, 1000.0, "timeout of remote control commands, in milliseconds",
               checks.between(1, 3_600_000)),
        Option("max_workers", int, 5000, "maximum number of workers in memory", checks.between(1)),
        Option("max_tasks", int, 100000, "maximum number of tasks in memory", checks.between(1)),
        Option("purge_offline_workers", int, None, "remove workers that have been offline for this many seconds",
               checks.between(0)),
        Option("persistent", bool, False, "keep tasks and workers across restarts"),
        Option("db", str, "flower", "the state file of --persistent", checks.database, is_path=True),
        Option("state_save_interval", int, 0, "interval of saves to --db, in milliseconds; 0 saves only at exit",
               checks.between(0)),
        Option("broker_api", str, None, "the URL of RabbitMQ's management API: http://user:password@host:15672/api/",
               checks.unless_empty(checks.broker_api), secret=True),
        _own("broker_transport_options", dict, None,
             'broker transport options in JSON: {"master_name": "mymaster"}; override the application\'s',
             secret=True),
        _own("events_buffer", str, "64MB",
             "maximum size of events that wait for processing; further ones are dropped and counted",
             checks.parse_size),
        Option("task_runtime_metric_buckets", float, _BUCKETS, "upper bounds of the runtime histogram, in seconds",
               checks.buckets, multiple=True),
        _own("metrics", str, _METRICS,
             "sets of metrics: flower (Flower's), celery (celery-exporter's), self (flower-proxy's)",
             checks.each(checks.one_of(*_METRICS)), multiple=True),
        _own("metrics_max_task_names", int, 1000,
             "maximum number of task names in metrics; the rest are aggregated as other", checks.between(1)),
        _own("queues", str, [], "queues to monitor in addition to configured and consumed queues",
             multiple=True),
    ],
    "Pages": [
        Option("auto_refresh", bool, True, "refresh the workers page automatically"),
        Option("natural_time", bool, False, "show relative times"),
        Option("tasks_columns", str, "name,uuid,state,received,runtime,worker",
               "columns of the tasks page, in order", checks.columns),
        Option("format_task", FunctionType, None,
               "a function that formats tasks for display; only in the configuration file"),
    ],
    "Configuration and logging": [
        Option("conf", str, "flowerconfig.py", "the configuration file, in Python", is_path=True),
        Option("debug", bool, False, "log debug messages, show errors on pages, restart when the code changes"),
        Option("logging", str, "info", "minimum level of log messages",
               checks.one_of("debug", "info", "warning", "error", "critical", "none")),
        _own("access_log", bool, False, "log every request"),
    ],
    OTHER: [
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
"""All options by name, in the order of ``--help``."""
