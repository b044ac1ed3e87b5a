"""Prometheus with the configurations in ``examples/prometheus``, scraping flower-proxy directly and through nginx."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery

from tests.cluster.test_prometheus_examples import PROMETHEUS, RULES, Query, each_query, used_metrics
from tests.support.examples import served
from tests.support.processes import Address, free_port, wait_until
from tests.support.programs import Broker, Flower, launch
from tests.support.prometheus import Prometheus, prometheus

FILES = ["prometheus.yml", "over-proxy.yml", "own-port.yml"]
SCRAPER = "prometheus:secret"


@dataclass(frozen=True)
class Scraped:
    """A Flower that a Prometheus scrapes every second."""

    flower: Flower
    broker: Broker
    prometheus: Prometheus

    def run_tasks(self) -> None:
        """Run tasks with task-sent events, and wait until Prometheus has scraped their end."""
        before = self.ended()
        with Celery(broker=self.broker.url, backend=self.broker.url) as app:
            app.conf.task_send_sent_event = True
            results = [app.send_task("server.add", (1, 1)), app.send_task("server.fail")]
            try:
                for result in results:
                    wait_until(result.ready, what="the task has ended")
            finally:
                app.backend.result_consumer.stop()
                app.backend.client.close()
        wait_until(lambda: self.ended() >= before + 2, what="Prometheus has scraped the end of the tasks")

    def ended(self) -> float:
        query = "sum(celery_task_succeeded_total) + sum(celery_task_failed_total)"
        return sum(value for _, value in self.prometheus.query(query))


def config(file: str, target: Address, folder: Path) -> Path:
    """Write the example with an interval of one second and the paths and addresses of the test."""
    text: dict[str, Any] = yaml.safe_load((PROMETHEUS / file).read_text())
    (job,) = text["scrape_configs"]
    job["static_configs"] = [{"targets": [f"localhost:{target.port}"]}]
    if "basic_auth" in job:
        (folder / "password").write_text(SCRAPER.partition(":")[2])
        job["basic_auth"]["password_file"] = str(folder / "password")
    if target.tls:
        # The certificate is self-signed
        job["tls_config"] = {"insecure_skip_verify": True}
    text["rule_files"] = [str(PROMETHEUS / "rules.yml")]
    text["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(text))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module", params=FILES)
def scraped(
    request: pytest.FixtureRequest,
    worker: Broker,
    certificate: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scraped]:
    file, folder = request.param, tmp_path_factory.mktemp("prometheus")
    text = (PROMETHEUS / file).read_text()
    (command,) = re.findall(r"#   (flower-proxy .*)", text)
    given = dict(word.lstrip("-").partition("=")[::2] for word in shlex.split(command)[3:])
    del given["address"]
    if "FLOWER_METRICS_AUTH" in text:
        given["metrics_auth"] = SCRAPER
    with contextlib.ExitStack() as stack:
        target = Address(free_port())
        if "metrics_port" in given:
            given["metrics_port"] = str(target.port)
        url_prefix = given.pop("url_prefix")
        options = [f"--{name}={value}" if value else f"--{name}" for name, value in given.items()]
        flower = stack.enter_context(launch("ours", worker, folder / "flower", url_prefix=url_prefix, options=options))
        if file == "prometheus.yml":
            target = flower.address
        if file == "over-proxy.yml":
            files = dict(zip(("fullchain.pem", "privkey.pem"), map(str, certificate), strict=True))
            files = {f"/etc/letsencrypt/live/example.com/{name}": path for name, path in files.items()}
            target, _ = stack.enter_context(served("nginx/tls.conf", flower.address, files, folder / "nginx"))
        (folder / "data").mkdir()
        running = stack.enter_context(prometheus(config(file, target, folder), folder / "data"))
        yield Scraped(flower, worker, running)


def test_the_target_is_up(scraped: Scraped) -> None:
    def targets() -> list[dict[str, Any]]:
        active: list[dict[str, Any]] = scraped.prometheus.get("targets")["activeTargets"]
        return [target for target in active if target["health"] != "unknown"]

    (target,) = wait_until(targets, what="Prometheus has scraped the target")
    assert (target["health"], target["lastError"]) == ("up", "")


def test_each_rule_is_evaluated(scraped: Scraped) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in scraped.prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), what="Prometheus has evaluated the rules")
    assert len(rules()) == len(RULES)
    assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}


def test_a_scrape_has_all_metrics_of_rules_and_panels(scraped: Scraped) -> None:
    scraped.run_tasks()
    found: dict[str, set[str]] = {}
    for family in scraped.flower.metrics():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    used = used_metrics()
    assert used.keys() <= found.keys()
    assert {name: labels - found[name] for name, labels in used.items() if labels - found[name]} == {}


@each_query
def test_panels_have_values(scraped: Scraped, query: Query) -> None:
    def values() -> list[tuple[dict[str, str], float]]:
        found = scraped.prometheus.query(query.expression)
        if not found:
            # A rate requires tasks that end between two scrapes
            scraped.run_tasks()
        return found

    found = wait_until(values, what=f"{query.panel} has values")
    assert all(math.isfinite(value) for _, value in found)
