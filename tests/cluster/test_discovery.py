"""A worker that starts after flower-proxy, and sends no task events before it is asked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from flower_proxy.app import FlowerProxy
from flower_proxy.events.receiver import Receiver
from flower_proxy.settings.loader import make_options
from tests.support.processes import Address, request, wait_until
from tests.support.programs import Broker, Flower, redis, worker_process


def questions(client: Any) -> Callable[[], list[list[str] | None]]:
    """Return a function that returns the destinations of all requests for events so far; None for a broadcast."""
    subscription = client.pubsub()
    subscription.psubscribe("*celery.pidbox*")
    found: list[list[str] | None] = []

    def read() -> list[list[str] | None]:
        while message := subscription.get_message(timeout=0):
            if message["type"] == "pmessage":
                envelope = json.loads(message["data"])
                command = json.loads(base64.b64decode(envelope["body"]))
                if command["method"] == "enable_events":
                    found.append(command["destination"])
        return found

    return read


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with redis(tmp_path) as broker:
        yield broker


def test_a_worker_is_known_at_once_and_asked_for_task_events(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock Flower knows the workers that replied when it started, and asks all of them every five seconds."""
    # So that many periods pass
    monkeypatch.setattr(Receiver, "events_enable_interval", 50)

    async def run() -> None:
        capp = Celery(broker=broker.url)
        async with FlowerProxy(capp=capp, options=make_options(address="127.0.0.1", port=0, no_auth=True)) as flower:
            assert flower.port
            await asyncio.to_thread(use, flower, Address(flower.port))
        capp.close()

    def use(flower: FlowerProxy, address: Address) -> None:
        client, shown = Redis.from_url(broker.url), Flower(address, "")
        asked = questions(client)
        wait_until(lambda: flower.events.connected, what="flower-proxy is subscribed")

        def api(path: str, method: str = "GET") -> Any:
            return json.loads(request(address, f"/api/{path}", method=method).text)

        assert api("workers") == {}
        with worker_process(broker, tmp_path / "worker", options=["--heartbeat-interval=1", "-Q", "late"]):
            (name,) = wait_until(lambda: api("workers"), what="the worker is known")
            assert request(address, f"/api/worker/pool/grow/{name}?n=1", method="POST").status != 404
            wait_until(lambda: "late" in str(api("queues/length")), what="its queue is known")
            wait_until(lambda: api("workers")[name].get("stats"), what="the worker has been inspected")
            wait_until(lambda: [name] in asked(), what="it is asked for task events")
            assert "Growing" in api(f"worker/pool/grow/{name}?n=1", "POST")["message"]
            with Celery(broker=broker.url) as producer:
                uuid = producer.send_task("server.add", (1, 1), queue="late").id
            wait_until(lambda: shown.tasks().get(uuid, {}).get("state") == "SUCCESS", what="its task events arrive")
            periods = flower.events.state.event_count
            wait_until(lambda: flower.events.state.event_count >= periods + 3, what="further heartbeats")
            assert set(map(tuple, filter(None, asked()))) == {(name,)}
            assert asked().count(None) <= 1
        client.close()

    asyncio.run(run())
