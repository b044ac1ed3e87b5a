"""A Prometheus with the shipped rules and dashboard that scrapes two flower-proxies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from celery import Celery

from tests.cluster.test_prometheus_examples import PROMETHEUS, queries
from tests.support.processes import wait_until
from tests.support.programs import Broker, Flower, launch
from tests.support.prometheus import Prometheus, prometheus

SUCCEEDED, FAILED = 30, 7


@dataclass(frozen=True)
class Monitored:
    """A broker of its own, whose tasks two flower-proxies count, and the Prometheus that scrapes both."""

    flowers: list[Flower]
    prometheus: Prometheus

    def value(self, expression: str) -> float:
        """Return the only value of a query; -1 without one."""
        found = [value for _, value in self.prometheus.query(expression)]
        assert len(found) <= 1
        return found[0] if found else -1

    def panel(self, title: str, letter: str = "A") -> float:
        (expression,) = [query.expression for query in queries() if query.panel == title and query.letter == letter]
        return self.value(f"sum({expression})")


@pytest.fixture(scope="module")
def monitored(worker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    folder = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as stack:
        flowers = [
            stack.enter_context(launch("ours", worker, folder / name, authenticates=False, options=["--no_auth"]))
            for name in ("one", "other")
        ]
        for flower in flowers:
            wait_until(lambda: len(flower.workers()) == 1, what="the worker is known")  # noqa: B023  called at once
        text: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(PROMETHEUS / "rules.yml")],
            "scrape_configs": [
                {
                    "job_name": "celery",
                    "static_configs": [{"targets": [str(flower.address) for flower in flowers]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(text))
        (folder / "data").mkdir()
        running = stack.enter_context(prometheus(folder / "prometheus.yml", folder / "data"))
        wait_until(lambda: len(running.query("up == 1")) == 2, what="both are scraped")
        with Celery(broker=worker.url, backend=worker.url) as app:
            results = [app.send_task("server.add", (1, n)) for n in range(SUCCEEDED)]
            results += [app.send_task("server.fail") for _ in range(FAILED)]
            for result in results:
                wait_until(result.ready, what="the tasks to end")
            app.backend.result_consumer.stop()
            app.backend.client.close()
            for result in results:
                result.backend = None
        for flower in flowers:
            wait_until(lambda: len(flower.tasks()) >= SUCCEEDED + FAILED, what="all tasks")  # noqa: B023  called at once
        yield Monitored(flowers, running)


def test_each_replica_counts_every_task(monitored: Monitored) -> None:
    count = "sum(celery_task_failed_total)"
    wait_until(lambda: monitored.value(count) == 2 * FAILED, what="both have counted the failures")
    wait_until(lambda: monitored.value("sum(celery_task_succeeded_total)") == 2 * SUCCEEDED, what="and the successes")


def test_the_dashboard_equals_the_truth(monitored: Monitored) -> None:
    expected = {"Workers online": 1, "Failures": FAILED, "Waiting in queues": 0, "Broker": 1}
    wait_until(lambda: {title: monitored.panel(title) for title in expected} == expected, what=f"{expected}")
    assert monitored.panel("Queues", "B") == 1


def test_the_rules_record_one_series_for_both(monitored: Monitored) -> None:
    expression = 'job_name:celery_task_failed:increase10m{name="server.fail"}'
    ((labels, _),) = wait_until(lambda: monitored.prometheus.query(expression), what="a recorded series")
    assert labels.keys() == {"__name__", "job", "name"}
