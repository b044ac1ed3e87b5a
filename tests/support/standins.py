"""Small servers that replace others: an identity provider, a host application, and a mirror of request headers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn, UnixStreamServer
from urllib.parse import parse_qs, urlsplit

from .processes import Address


class Answering(BaseHTTPRequestHandler):
    def answer(self, status: int, text: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class IdentityProvider(Answering):
    """Authenticates every user for the proxy, like oauth2-proxy."""

    SESSION = "session=signed-in"
    USER = "alice@host.example"

    def do_GET(self) -> None:
        # A server reads the whole announced body
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        if url.path == "/oauth2/auth":
            known = self.SESSION in self.headers.get("Cookie", "")
            self.answer(200 if known else 401, **(self.user_headers() if known else {}))
        elif url.path == "/oauth2/start":
            original = parse_qs(url.query)["rd"][0]
            self.answer(302, Set_Cookie=f"{self.SESSION}; Path=/", Location=original)
        else:
            self.answer(404)

    def user_headers(self) -> dict[str, str]:
        return {"X_Auth_Request_User": self.USER}


class NamelessProvider(IdentityProvider):
    """Authenticates users without naming them."""

    def user_headers(self) -> dict[str, str]:
        return {}


class HostApplication(Answering):
    """Serves a page, and sets its own ``_xsrf`` cookie for the whole host."""

    PAGE = "the host application"
    COOKIE = ("_xsrf", "the-host-applications")

    def do_GET(self) -> None:
        self.answer(200, self.PAGE, Set_Cookie="{}={}; Path=/".format(*self.COOKIE))


class Mirror(Answering):
    """Returns the headers of the request as JSON, names in lower case, and the path."""

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.answer(200, json.dumps({**headers, "path": self.path}))


class _UnixServer(ThreadingMixIn, UnixStreamServer):
    pass


class CutOff(Answering):
    """Closes the connection within the body."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"{")


@contextlib.contextmanager
def serving(handler: type[Answering], socket_path: Path | None = None) -> Iterator[Address]:
    """Run a server on a free port or a unix socket."""
    server: BaseServer
    if socket_path is None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        address = Address(server.server_port)
    else:
        server = _UnixServer(str(socket_path), handler)
        address = Address(socket_path=socket_path)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()
