"""The report that the launcher serves to ``flower-proxy check``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flower_proxy.check.report import PATH, Report, validate_report
from tests.http.conftest import PREFIX, Site

SECRETS = {
    "basic_auth": ["demo:secret", "viewer:secret"],
    "metrics_auth": "prometheus:secret",
    "viewers": ["viewer"],
    "cookie_secret": "secret",
    "broker_api": "http://user:secret@127.0.0.1:1/api/",
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return SECRETS


def fetch_report(site: Site, *, method: str = "GET", user: str = "demo", **headers: str) -> Report:
    response = site.fetch(PATH, method=method, headers=headers, auth_username=user, auth_password="secret")
    assert response.code == 200
    assert "secret" not in response.body.decode()
    assert response.headers["Cache-Control"] == "no-store"
    return validate_report(json.loads(response.body))


@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_report_describes_request_without_secrets(site: Site, method: str) -> None:
    report = fetch_report(site, method=method, **{"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"})
    assert (report.peer, report.trusted, report.client, report.scheme) == ("127.0.0.1", True, "198.51.100.7", "https")
    assert (report.prefix, report.path) == (None if site.kind == "unforwarded" else PREFIX, PATH)
    assert report.headers["X-Forwarded-Proto"] == "https"
    assert ("X-Forwarded-Prefix" in report.headers) is (site.kind == "stripped")


def test_viewers_are_allowed_and_cross_site_requests_denied(site: Site) -> None:
    assert fetch_report(site, method="POST", user="viewer").asks
    responses = [
        site.fetch(PATH, method="POST", headers=headers, auth_username="viewer", auth_password="secret")
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"})
    ]
    assert [response.code for response in responses] == [403, 403]
    assert site.fetch(PATH).code == 401


def test_report_describes_workers(site: Site, event: Callable[..., None]) -> None:
    event("worker-heartbeat", timestamp=100.0, local_received=40.0, sw_ver="5.7.0")
    (worker,) = fetch_report(site).workers
    assert (worker.name, worker.ahead, worker.alive, worker.task_events) == ("w1@host", 60.0, False, None)


@pytest.mark.parametrize("document", [None, [], {}, {"flower_proxy": "9"}, {"ready": True, "reasons": []}])
def test_other_documents_are_rejected(document: object) -> None:
    with pytest.raises(TypeError):
        validate_report(document)
