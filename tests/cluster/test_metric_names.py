"""Metric names, checked by ``promtool check metrics``."""

from __future__ import annotations

import subprocess

from flower_proxy.metrics.broker_poller import QueueFigures
from tests.support.processes import program
from tests.unit.test_recorder import W1, Cluster, busy, sent

# Names that dashboards for celery-exporter use
KEPT_FOR_COMPATIBILITY = """
celery_active_consumer_count non-histogram and non-summary metrics should not have "_count" suffix
celery_active_process_count non-histogram and non-summary metrics should not have "_count" suffix
celery_active_worker_count non-histogram and non-summary metrics should not have "_count" suffix
"""


def test_promtool_warns_only_about_names_kept_for_compatibility() -> None:
    cluster = Cluster(*busy(W1, "1"), *busy('a "quoted\\" name@host', "2"), sent("9"))
    text = cluster.text(QueueFigures({"q": 1}, {"q": 1}, {"q": 1}, {"q": 1}))
    command = [program("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert sorted((checked.stdout + checked.stderr).splitlines()) == KEPT_FOR_COMPATIBILITY.strip().splitlines()
