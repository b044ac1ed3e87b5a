"""A TCP relay from one port to another, which a test stops to interrupt the network: ``python -m`` with both ports."""

from __future__ import annotations

import asyncio
import contextlib
import sys

HOST = "127.0.0.1"


async def relay(port: int, target: int) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            further = await asyncio.open_connection(HOST, target)
        except OSError:
            writer.close()
        else:
            await asyncio.gather(pass_on(reader, further[1]), pass_on(further[0], writer))

    async with await asyncio.start_server(connect, HOST, port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(*map(int, sys.argv[1:])))
