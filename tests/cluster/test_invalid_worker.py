"""A worker with invalid replies affects neither Flower nor the data of other workers."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support import programs
from tests.support.invalid_replies import INSPECTIONS, Answer, answering_worker
from tests.support.processes import request, wait_until

# The oldest supported kombu calls a deprecated method of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning")

BAD = "bad@test"
# Changes of a reply that is a mapping, or of the first item of a reply that is a list
FIELDS: dict[str, list[dict[str, Any]]] = {
    "stats": [{"pool": "x"}, {"pool": {"processes": "x"}}, {"total": None}, {"broker": 5}, {"total": {"t": "\ud800"}}],
    "active_queues": [{"name": None}, {"name": "\ud800"}, {"name": ["x"]}],
    "scheduled": [{"request": "x"}, {"request": {}}],
    "active": [{"id": {}}, {"name": float("nan")}],
    "reserved": [{"id": None}],
}
WHOLE: list[Any] = [None, "x", 5, [], {}, [None], {"error": "busy"}, float("nan"), "\ud800"]
BODIES: list[Any] = [None, 5, "x", [], [{BAD: {}}], {BAD: None}, {"unknown@test": {}}, b"{", b"\xff", b"[" * 100_000]


def invalid(command: str) -> Iterator[Answer]:
    """Return all invalid replies to a command, in an endless cycle."""
    valid = INSPECTIONS.get(command, {"ok": "done"})
    changed = (
        {**valid, **fields} if isinstance(valid, dict) else [{**valid[0], **fields}]
        for fields in FIELDS.get(command, [])
    )
    return itertools.cycle([*map(Answer, BODIES), *(Answer({BAD: reply}) for reply in (*WHOLE, *changed))])


class Invalid:
    """Answers each command with the next five invalid replies, and counts the commands."""

    def __init__(self) -> None:
        self._replies: dict[str, Iterator[Answer]] = {}
        self.asked: dict[str, int] = {}

    def __call__(self, command: str) -> list[Answer]:
        self.asked[command] = self.asked.get(command, 0) + 1
        replies = self._replies.setdefault(command, invalid(command))
        return list(itertools.islice(replies, 5))


@contextmanager
def heartbeats(url: str) -> Iterator[None]:
    """Keep the invalid worker online."""
    ended = threading.Event()

    def beat() -> None:
        with (
            Celery(broker=url) as capp,
            capp.connection_for_write() as connection,
            capp.events.Dispatcher(connection, hostname=BAD) as dispatcher,
        ):
            while not ended.wait(0.5):
                dispatcher.send("worker-heartbeat", freq=2.0, active=0, processed=0)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def worker_name(worker: programs.Broker) -> str:
    with Celery(broker=worker.url) as capp:
        (name,) = capp.control.inspect(timeout=5).ping()
        return str(name)


def test_invalid_replies_do_not_affect_another_worker(
    worker: programs.Broker, worker_name: str, tmp_path: Path
) -> None:
    bad = Invalid()
    with (
        answering_worker(worker.url, BAD, bad),
        heartbeats(worker.url),
        programs.launch("ours", worker, tmp_path, options=["--inspect_timeout=300"]) as flower,
        ThreadPoolExecutor(1) as pool,
    ):

        def get(path: str, method: str = "GET") -> tuple[int, str]:
            answer = request(flower.address, path, method=method, headers=programs.KNOWN)
            return answer.status, answer.text

        wait_until(lambda: len(flower.workers()) == 2, what="both are online")
        known = {"stats", "active_queues", "registered", "conf"}
        wait_until(
            lambda: known < json.loads(get("/api/workers?refresh=1")[1]).get(worker_name, {}).keys(),
            what="the worker has replied to each inspection",
        )
        for _ in range(5):
            status, text = get("/api/workers?refresh=1")
            assert status == 200
            valid = json.loads(text)[worker_name]
            assert known < valid.keys()
            assert len(valid["stats"]["pool"]["processes"]) == 1
            grown = pool.submit(get, f"/api/worker/pool/grow/{BAD}?n=0", "POST")
            assert get(f"/worker/{worker_name}")[0] == 200
            # The page requires a valid reply to each inspection
            assert get(f"/worker/{BAD}")[0] in (200, 404)
            for path in ("/workers", "/broker", "/api/queues/length", "/metrics"):
                assert get(path)[0] == 200, path
            # On a busy machine a reply may take longer than the second that Flower waits
            wait_until(
                lambda: get(f"/api/worker/pool/grow/{worker_name}?n=0", "POST")[0] == 200, what="the worker replies"
            )
            assert grown.result()[0] in (200, 403, 404)
        assert bad.asked["stats"] > len(BODIES)
        assert get("/ready")[0] == 200
        assert 'celery_active_process_count{queue_name="celery"} 1' in get("/metrics")[1].splitlines()
        rejected = dict.fromkeys(("malformed", "unknown_worker", "error", "invalid"), 0.0)
        for metric in flower.metrics():
            if metric.name == "flower_proxy_replies_rejected":
                rejected |= {sample.labels["reason"]: sample.value for sample in metric.samples}
        assert all(rejected[reason] for reason in ("malformed", "unknown_worker", "error", "invalid"))
        log = (tmp_path / "flower.log").read_text()
        assert "Traceback" not in log
        assert "Rejected a reply (invalid)" in log
