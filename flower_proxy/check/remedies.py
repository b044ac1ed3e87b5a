"""Remedies: configuration lines for supported reverse proxies, and instructions for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROXIES = ("nginx", "apache", "caddy")
"""The reverse proxies for which there are configuration lines."""

_SOFTWARE = {"nginx": "nginx", "openresty": "nginx", "apache": "apache", "caddy": "caddy"}

LINES: Mapping[str, Mapping[str, str]] = {
    "slash": {
        "nginx": "location = {prefix} {{ absolute_redirect off; return 308 {prefix}/$is_args$args; }}",
        "apache": "RedirectMatch 308 ^{prefix}$ {prefix}/",
        "caddy": "redir {prefix} {prefix}/ 308",
        "": "configure the proxy to redirect {prefix} to {prefix}/, without a host in Location",
    },
    "static": {
        "nginx": "location ^~ {prefix}/ {{",
        "": "configure the proxy to pass on all requests below {prefix}/, including those for static files",
    },
    "compression": {
        "nginx": 'remove the lines that set Accept-Encoding, such as proxy_set_header Accept-Encoding "";',
        "": "configure the proxy to pass on Accept-Encoding unchanged",
    },
    "cache": {"": "configure the proxy to leave Cache-Control unchanged"},
    "origin": {
        "nginx": 'remove the lines that set Origin or Sec-Fetch-Site, such as proxy_set_header Origin "";',
        "": "configure the proxy to pass on Origin and Sec-Fetch-Site unchanged",
    },
    "encoding": {
        "nginx": "remove the path after the address in proxy_pass, including a lone slash",
        "apache": "AllowEncodedSlashes NoDecode",
        "": "configure the proxy to pass on the path without decoding it",
    },
    "post": {"": "configure the proxy to pass on POST requests"},
    "body": {
        "nginx": "client_max_body_size 1m;",
        "apache": "LimitRequestBody 1048576",
        "caddy": "request_body {{\n    max_size 1MB\n}}",
        "": "configure the proxy to accept request bodies of 1 MB",
    },
    "large": {"": "see the proxy's error log; nginx needs write access to its proxy_temp_path"},
    "authentication": {
        "nginx": "remove the line that sets Authorization, such as proxy_set_header Authorization ...;",
        "": "configure the proxy to pass on Authorization unchanged",
    },
    "metrics": {
        "nginx": "location = {prefix}/metrics {{ deny all; }}",
        "apache": '<Location "{prefix}/metrics">\n    Require all denied\n</Location>',
        "caddy": "respond {prefix}/metrics 403",
        "": "configure the proxy to deny {prefix}/metrics",
    },
}
"""By kind of problem, then by proxy; the empty name is for all other proxies."""

# A proxy sets these headers and must remove all other forwarded ones
_VALUES: dict[str, Mapping[str, str]] = {
    "nginx": {
        "X-Forwarded-For": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
        "X-Forwarded-Host": "$http_host",
        "X-Forwarded-Prefix": "{prefix}",
    },
    "apache": {
        "X-Forwarded-For": "expr=%{{REMOTE_ADDR}}",
        "X-Forwarded-Proto": "expr=%{{REQUEST_SCHEME}}",
        "X-Forwarded-Host": "expr=%{{HTTP_HOST}}",
        "X-Forwarded-Prefix": "{prefix}",
    },
    "caddy": {
        "X-Forwarded-For": "{{http.request.remote.host}}",
        "X-Forwarded-Proto": "{{http.request.scheme}}",
        "X-Forwarded-Host": "{{http.request.hostport}}",
        "X-Forwarded-Prefix": "{prefix}",
    },
    "": {
        "X-Forwarded-For": "the address of the client",
        "X-Forwarded-Proto": "the scheme of the request, http or https",
        "X-Forwarded-Host": "the Host header of the request, including the port",
        "X-Forwarded-Prefix": "{prefix}",
    },
}


def detect_proxy(server: str) -> str:
    """Return which of `PROXIES` sends this ``Server`` header; empty if none does."""
    return _SOFTWARE.get(server.partition("/")[0].strip().lower(), "")


@dataclass(frozen=True)
class Advice:
    """Remedies for one deployment.

    :ivar proxy: one of `PROXIES`, or empty.
    :ivar prefix: the public prefix, without a trailing slash.
    """

    proxy: str
    prefix: str

    def line(self, key: str) -> str:
        """Return the line to add, or the step to take.

        :param key: one of `LINES`.
        """
        lines = LINES[key]
        return lines.get(self.proxy, lines[""]).format(prefix=self.prefix)

    def set_headers(self, *names: str) -> str:
        """Return the lines that set these headers, or remove those that a proxy need not send."""
        return "\n".join(map(self._set_header, names))

    def _set_header(self, name: str) -> str:
        value = _VALUES[self.proxy].get(name, "").format(prefix=self.prefix or "/")
        match self.proxy:
            case "nginx":
                return f"proxy_set_header {name} {value or chr(34) * 2};"
            case "apache":
                return f'RequestHeader set {name} "{value}"' if value else f"RequestHeader unset {name}"
            case "caddy":
                return f"header_up {name} {value}" if value else f"header_up -{name}"
        return f"configure the proxy to set {name} to {value}" if value else f"configure the proxy to remove {name}"
