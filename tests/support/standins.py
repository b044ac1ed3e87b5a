"""Small servers that stand in for what is not ours: an identity provider, a host application, and a mirror."""

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
    """Signs everybody in, and tells nginx who is."""

    SESSION = "session=signed-in"
    USER = "alice@host.example"

    def do_GET(self) -> None:
        # like any server, waits for as much as the request says it will send
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        if url.path == "/oauth2/auth":
            known = self.SESSION in self.headers.get("Cookie", "")
            self.answer(200 if known else 401, **(self.told() if known else {}))
        elif url.path == "/oauth2/start":
            back = parse_qs(url.query)["rd"][0]
            self.answer(302, Set_Cookie=f"{self.SESSION}; Path=/", Location=back)
        else:
            self.answer(404)

    def told(self) -> dict[str, str]:
        return {"X_Auth_Request_User": self.USER}


class NamelessProvider(IdentityProvider):
    """Lets people in, and does not say who they are."""

    def told(self) -> dict[str, str]:
        return {}


class HostApplication(Answering):
    """Has a page at the root, and an ``_xsrf`` cookie of its own for the whole host."""

    PAGE = "the host application"
    COOKIE = ("_xsrf", "the-host-applications")

    def do_GET(self) -> None:
        self.answer(200, self.PAGE, Set_Cookie="{}={}; Path=/".format(*self.COOKIE))


class Mirror(Answering):
    """Tells which headers it got, names in lower case, and the path."""

    def do_GET(self) -> None:
        told = {name.lower(): value for name, value in self.headers.items()}
        self.answer(200, json.dumps({**told, "path": self.path}))


class _UnixServer(ThreadingMixIn, UnixStreamServer):
    pass


class CutOff(Answering):
    """Announces more than comes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"{")


@contextlib.contextmanager
def serving(handler: type[Answering], socket_path: Path | None = None) -> Iterator[Address]:
    """Run such a server, on a free port or on a unix socket."""
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
