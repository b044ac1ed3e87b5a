"""Flower embedded in an asyncio program, which Ctrl-C stops; CELERY_BROKER_URL overrides the broker."""

import asyncio
import contextlib

from celery import Celery

from flower_proxy import FlowerProxy, make_options


async def main() -> None:
    app = Celery("server", broker="redis://localhost")
    options = make_options(address="127.0.0.1", port=0, url_prefix="flower", basic_auth="me:secret")
    async with FlowerProxy(capp=app, options=options) as flower:
        print(f"http://127.0.0.1:{flower.port}/flower/", flush=True)
        await asyncio.Event().wait()  # your program's own work


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
