"""A Redis server that listens with every transport of a broker's URL, and its Sentinel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .processes import Address, free_port, program, running

MASTER = "mymaster"


@dataclass(frozen=True)
class RedisServers:
    """A Redis server and its Sentinel, which monitors it as `MASTER` and requires a password.

    :ivar tls_port: the port for TLS, with a certificate for ``localhost``.
    :ivar authority: the file of the certificate authority.
    """

    port: int
    tls_port: int
    sentinel_port: int
    sentinel_password: str
    socket: Path
    authority: Path


@contextlib.contextmanager
def redis_servers(folder: Path, certificate: tuple[Path, Path]) -> Iterator[RedisServers]:
    """Run a Redis server without persistence, and its Sentinel.

    :param certificate: the server's self-signed certificate and its key.
    """
    certfile, keyfile = certificate
    servers = RedisServers(free_port(), free_port(), free_port(), "of-sentinel", folder / "redis.sock", certfile)
    command = [program("redis-server"), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--port", str(servers.port), "--unixsocket", str(servers.socket), "--tls-port", str(servers.tls_port)]
    command += ["--tls-cert-file", str(certfile), "--tls-key-file", str(keyfile), "--tls-auth-clients", "no"]
    # Debian's build requires an authority even without client certificates
    command += ["--tls-ca-cert-file", str(certfile)]
    config = [f"port {servers.sentinel_port}", "bind 127.0.0.1", f"requirepass {servers.sentinel_password}"]
    config += [f"dir {folder}", f"sentinel monitor {MASTER} 127.0.0.1 {servers.port} 1"]
    # The Sentinel saves its state in this file
    (folder / "sentinel.conf").write_text("\n".join(config))
    with (
        running(command, log=folder / "redis.log", ready=Address(servers.port).accepts),
        running(
            [program("redis-server"), str(folder / "sentinel.conf"), "--sentinel"],
            log=folder / "sentinel.log",
            ready=Address(servers.sentinel_port).accepts,
        ),
    ):
        yield servers
