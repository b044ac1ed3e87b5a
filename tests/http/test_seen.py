"""What the launcher tells ``flower-proxy check``, whom, and what not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flower_proxy.check.report import PATH, Seen, read_seen
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


def look(site: Site, *, method: str = "GET", user: str = "demo", **headers: str) -> Seen:
    response = site.fetch(PATH, method=method, headers=headers, auth_username=user, auth_password="secret")
    assert response.code == 200
    assert "secret" not in response.body.decode()
    assert response.headers["Cache-Control"] == "no-store"
    return read_seen(json.loads(response.body))


@pytest.mark.parametrize("kind", ["kept", "stripped", "unforwarded"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_it_tells_what_it_saw_of_the_request_and_no_secret(site: Site, method: str) -> None:
    seen = look(site, method=method, **{"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"})
    assert (seen.peer, seen.trusted, seen.client, seen.scheme) == ("127.0.0.1", True, "198.51.100.7", "https")
    assert (seen.prefix, seen.path) == (None if site.kind == "unforwarded" else PREFIX, PATH)
    assert seen.headers["X-Forwarded-Proto"] == "https"
    assert ("X-Forwarded-Prefix" in seen.headers) is (site.kind == "stripped")


def test_viewers_may_ask_and_other_sites_may_not(site: Site) -> None:
    assert look(site, method="POST", user="viewer").asks
    answers = [
        site.fetch(PATH, method="POST", headers=headers, auth_username="viewer", auth_password="secret")
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"})
    ]
    assert [answer.code for answer in answers] == [403, 403]
    assert site.fetch(PATH).code == 401


def test_it_tells_of_workers(site: Site, event: Callable[..., None]) -> None:
    event("worker-heartbeat", timestamp=100.0, local_received=40.0, sw_ver="5.7.0")
    (worker,) = look(site).workers
    assert (worker.name, worker.ahead, worker.alive, worker.task_events) == ("w1@host", 60.0, False, None)


@pytest.mark.parametrize("document", [None, [], {}, {"flower_proxy": "9"}, {"ready": True, "reasons": []}])
def test_what_somebody_else_says_is_not_taken_for_it(document: object) -> None:
    with pytest.raises(TypeError):
        read_seen(document)
