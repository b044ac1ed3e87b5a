"""Remedies: configuration lines for the known reverse proxies, and words for the others."""

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
        "": "let the proxy answer {prefix} with a redirect to {prefix}/, without a host",
    },
    "static": {
        "nginx": "location ^~ {prefix}/ {{",
        "": "let the proxy pass on everything below {prefix}/, without looking for files of its own",
    },
    "compression": {
        "nginx": "gzip on; gzip_vary on; gzip_types text/css text/javascript application/javascript application/json;",
        "apache": "AddOutputFilterByType DEFLATE text/css text/javascript application/javascript application/json",
        "caddy": "encode gzip",
        "": "let the proxy compress text/css, text/javascript and application/json",
    },
    "cache": {"": "let the proxy leave the header Cache-Control as it comes"},
    "origin": {
        "nginx": 'remove the lines that change Origin and Sec-Fetch-Site, such as proxy_set_header Origin "";',
        "": "let the proxy pass on Origin and Sec-Fetch-Site as they come",
    },
    "encoding": {
        "nginx": "let proxy_pass name the address and nothing behind it, not even a slash",
        "apache": "AllowEncodedSlashes NoDecode",
        "": "let the proxy pass on the path as it comes, without decoding it",
    },
    "post": {"": "let the proxy pass on POST requests"},
    "body": {
        "nginx": "client_max_body_size 1m;",
        "apache": "LimitRequestBody 1048576",
        "caddy": "request_body {{\n    max_size 1MB\n}}",
        "": "let the proxy accept requests of a megabyte",
    },
    "large": {"": "look into the proxy's error log; nginx must be able to write below its proxy_temp_path"},
    "authentication": {
        "nginx": "remove the line that sets Authorization, such as proxy_set_header Authorization ...;",
        "": "let the proxy pass on Authorization as it comes",
    },
    "metrics": {
        "nginx": "location = {prefix}/metrics {{ deny all; }}",
        "apache": '<Location "{prefix}/metrics">\n    Require all denied\n</Location>',
        "caddy": "respond {prefix}/metrics 403",
        "": "let the proxy refuse {prefix}/metrics",
    },
}
"""By the kind of problem, then by proxy; the empty name stands for any other proxy."""

# A proxy sets these headers; it must remove every other forwarded one
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
        "X-Forwarded-For": "the client's address",
        "X-Forwarded-Proto": "http or https, as the browser asked",
        "X-Forwarded-Host": "host and port as the browser sent them",
        "X-Forwarded-Prefix": "{prefix}",
    },
}


def recognise(server: str) -> str:
    """Return which of `PROXIES` sends this ``Server`` header; empty if it is none of them."""
    return _SOFTWARE.get(server.partition("/")[0].strip().lower(), "")


@dataclass(frozen=True)
class Advice:
    """Remedies for one deployment.

    :ivar proxy: one of `PROXIES`, or empty.
    :ivar prefix: the public prefix, without a final slash.
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
        """Return the lines that set these headers, or remove those that no proxy needs to send."""
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
        return (
            f"let the proxy set {name} to {value}" if value else f"let the proxy take {name} out of what clients send"
        )
