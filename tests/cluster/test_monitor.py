"""The history equals what has happened, with a real worker; a broker that is away leaves a gap."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.support.browser import chromium
from tests.support.monitor_page import MonitorPage
from tests.support.outage import network_to
from tests.support.processes import answers, request, wait_until
from tests.support.programs import Broker, Flower, launch, worker_process

SUCCEEDING, FAILING = 963, 37
STEP = 5  # seconds
OUTAGE = 75


@pytest.fixture(scope="module")
def own(broker: Broker) -> Broker:
    return Broker(broker.url.rpartition("/")[0] + "/9")


@pytest.fixture
def flower(own: Broker, tmp_path: Path) -> Iterator[Flower]:
    with worker_process(own, tmp_path / "worker"), launch("ours", own, tmp_path / "flower") as flower:
        # Earlier, it listens, but is not subscribed to events
        wait_until(lambda: answers(flower.address, "/ready"), what="Flower is connected")
        yield flower


def text(flower: Flower, query: str) -> str:
    answer = request(flower.address, f"/api/history?{query}", headers=flower.known)
    assert answer.status == 200, answer.text
    return answer.text


def history(flower: Flower, query: str = "") -> Any:
    return json.loads(text(flower, query))


def run(broker: Broker) -> dict[str, Counter[str]]:
    """Run 1,000 tasks, and return the numbers of states by task name, according to the result backend."""
    with Celery(broker=broker.url, backend=broker.url) as capp:
        ids = {
            name: [capp.send_task(name, arguments).id for _ in range(number)]
            for name, arguments, number in (("server.add", (1, 2), SUCCEEDING), ("server.fail", (), FAILING))
        }

        def states() -> dict[str, Counter[str]]:
            return {name: Counter(AsyncResult(one, app=capp).state for one in uuids) for name, uuids in ids.items()}

        wait_until(lambda: not any(found["PENDING"] for found in states().values()), timeout=90, what="the tasks end")
        found = states()
        capp.backend.result_consumer.stop()
        capp.backend.client.close()
        return found


def test_page_api_csv_metrics_and_result_backend_agree(flower: Flower, own: Broker) -> None:
    truth = run(own)
    assert truth == {"server.add": Counter(SUCCESS=SUCCEEDING), "server.fail": Counter(FAILURE=FAILING)}
    runs = {"server.add": (SUCCEEDING, 0), "server.fail": (FAILING, FAILING)}

    def rows() -> dict[str, tuple[int, int]]:
        return {row["name"]: (row["runs"], row["failed"]) for row in history(flower, "by=task")["rows"]}

    wait_until(lambda: rows() == runs, timeout=30, what="the events of all tasks")
    table = csv.DictReader(io.StringIO(text(flower, "by=task&format=csv")))
    assert {row["name"]: (int(row["runs"]), int(row["failed"])) for row in table} == runs
    samples = [sample for family in flower.metrics() for sample in family.samples]
    for name, (number, failed) in runs.items():
        columns = history(flower, f"range=1h&by=task&name={name}")["columns"]
        slots = csv.DictReader(io.StringIO(text(flower, f"range=24h&by=task&name={name}&format=csv")))
        assert sum(int(slot["failed"]) for slot in slots) == failed
        for kind in ("sent", "received", "started", "succeeded", "failed"):
            counted = [
                sample.value
                for sample in samples
                if sample.name == "flower_events_total"
                and (sample.labels["task"], sample.labels["type"]) == (name, f"task-{kind}")
            ]
            assert sum(columns[kind]) == sum(counted), (name, kind)
        assert sum(columns["timed"]) == number
        assert sum(columns["started"]) == number
    (worker,) = history(flower, "by=worker")["rows"]
    (queue,) = history(flower, "by=queue")["rows"]
    assert worker["runs"] == queue["runs"] == SUCCEEDING + FAILING


def test_a_time_without_a_broker_is_a_gap(own: Broker, tmp_path: Path) -> None:
    network = network_to(own, tmp_path)
    network.start()
    try:
        with launch("ours", network.broker, tmp_path / "flower") as flower:
            observed(flower)
            # So that the slot in which it begins is one of the gap
            wait_until(lambda: 0.5 < time.time() % STEP < 1.5, timeout=2 * STEP, what="the beginning of a slot")
            network.stop()
            begin = time.monotonic()
            wait_until(lambda: time.monotonic() > begin + OUTAGE, timeout=2 * OUTAGE, what="the end of the outage")
            network.start()
            wait_until(lambda: history(flower)["marks"][-1][1] == "restored", timeout=30, what="the connection")
            outage = time.monotonic() - begin
            observed(flower)
            found = history(flower)
            with chromium(tmp_path) as browser:
                page = MonitorPage(browser, flower)
                (before, after), gaps = page.line_parts(), page.gaps()
    finally:
        network.stop()
    assert [kind for _, kind, _ in found["marks"]] == ["started", "lost", "restored"]
    covered = found["covered"]
    first = next(index for index, seconds in enumerate(covered) if seconds >= STEP / 2)
    missing = [index for index in range(first, len(covered) - 1) if covered[index] < STEP / 2]
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert abs(len(missing) * STEP - outage) <= STEP
    # The time before the start may be a gap, too
    assert [before[1] < left < right < after[0] for left, right in gaps[-1:]] == [True]


def observed(flower: Flower) -> None:
    """Wait for an observed slot at the end."""
    wait_until(lambda: history(flower)["covered"][-2] >= STEP - 1, timeout=60, what="an observed slot")
