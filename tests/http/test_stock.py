"""The defects of Flower that are cured here, seen in stock Flower.

A test that fails tells that Flower has cured the defect itself: our cure may go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from flower.utils import prepend_url
from tornado.ioloop import IOLoop
from tornado.options import OptionParser
from tornado.simple_httpclient import HTTPStreamClosedError

from flower_proxy._flower import Flower, flower_settings
from tests.http.conftest import PREFIX, Site
from tests.http.test_gate import basic

BASIC: dict[str, Any] = {"auth_username": "demo", "auth_password": "secret"}
# By Flower's command, unless it is told --debug
SILENCED = ("tornado.access",)


def as_given(text: str) -> list[str]:
    """What stock Flower makes of ``--basic_auth``."""
    parser = OptionParser()
    parser.define("basic_auth", type=str, multiple=True)
    parser.parse_command_line(["flower", f"--basic_auth={text}"], final=False)
    return list(parser.basic_auth)


@pytest.fixture
def kind() -> str:
    return "kept"


@pytest.fixture
def app(io_loop: IOLoop, options: OptionParser) -> Iterator[Flower]:
    """Stock Flower, set up as its own command does it."""
    capp = Celery(broker="memory://")
    prefixed = {name: prepend_url(flower_settings[name], PREFIX) for name in ("static_url_prefix", "login_url")}
    application = Flower(capp=capp, options=options, **{**flower_settings, **prefixed})
    yield application
    application.executor.shutdown()
    capp.close()


def test_p1_prefix_without_a_slash(site: Site) -> None:
    assert site.fetch("/").code == 200
    assert site.fetch("").code == 404


def test_p2_stripped_prefix(site: Site) -> None:
    site.kind = "stripped"
    assert site.fetch("/tasks").code == 404


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/metrics", 200), ("/logout", 200), ("/nothing", 404), ("/login", 404)],
)
def test_p6_open_although_there_is_a_password(site: Site, path: str, status: int) -> None:
    assert site.fetch("/tasks").code == 401
    assert site.fetch(path).code == status


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p6_metrics_name_workers_to_strangers(site: Site, event: Callable[..., None]) -> None:
    event("worker-online", hostname="planted@host")
    assert 'worker="planted@host"' in site.page("/metrics")


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p7_host_that_lost_its_port(site: Site) -> None:
    headers = {"Origin": "http://host.example:8080", "Host": "host.example"}
    assert site.fetch("/tasks/datatable", method="POST", headers=headers, **BASIC).code == 403


def test_p8_open_api_is_open_to_every_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    assert site.fetch("/api/workers").headers["Access-Control-Allow-Origin"] == "*"
    assert site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "cross-site"}).code != 403


def test_p8_buttons_do_not_work_where_the_proxy_asks(site: Site) -> None:
    assert site.fetch("/tasks").code == 200
    response = site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "same-origin"})
    assert response.code == 401


def test_p8_every_connection_drops_at_a_word_it_does_not_know(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "enabled")
    with pytest.raises(HTTPStreamClosedError):
        site.fetch("/healthcheck")


@pytest.mark.parametrize("settings", [{"basic_auth": as_given("user:p,ss")}])
def test_p11_half_of_a_password_with_a_comma_is_let_in(site: Site) -> None:
    found = {text: site.fetch("/tasks", headers=basic(text)).code for text in ("user:p,ss", "user:p", "ss")}
    assert found == {"user:p,ss": 401, "user:p": 200, "ss": 200}


@pytest.mark.parametrize("settings", [{"basic_auth": as_given("user:pass,")}, {"basic_auth": as_given("")}])
@pytest.mark.parametrize("nothing", ["=", "!!!", "===="])
def test_p11_nothing_is_let_in_by_an_empty_entry(site: Site, nothing: str) -> None:
    assert site.fetch("/tasks", headers={"Authorization": f"Basic {nothing}"}).code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p11_a_password_other_than_ascii_that_is_typed(site: Site) -> None:
    assert site.fetch("/tasks", headers=basic("demo:s\xe9cret")).code == 500


@pytest.mark.parametrize("settings", [{"basic_auth": ["other:s\xe9cret", "demo:secret"]}])
def test_p11_a_password_other_than_ascii_that_is_stored(site: Site) -> None:
    assert site.fetch("/tasks", **BASIC).code == 500


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p11_scheme_in_lower_case(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Authorization": "basic ZGVtbzpzZWNyZXQ="}).code == 401


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p11_base64_that_is_none(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Authorization": "Basic !ZGVtbzpzZWNyZXQ="}).code == 200


@pytest.mark.parametrize("settings", [{"url_prefix": "/"}])
def test_p18_prefix_of_a_slash(site: Site) -> None:
    site.kind = "untold"
    assert site.fetch("/").code == 404


def test_p20_head(site: Site) -> None:
    assert site.fetch("/healthcheck", method="HEAD").code == 405


def test_p22_broker_page_of_a_transport_it_does_not_know(site: Site) -> None:
    assert site.fetch("/broker").code == 404


def test_p23_browsers_are_told_next_to_nothing(site: Site) -> None:
    page, script = site.fetch("/").headers, site.fetch("/static/js/flower.js").headers
    for name in ("Content-Security-Policy", "X-Frame-Options", "Referrer-Policy", "Cache-Control"):
        assert name not in page
    assert "X-Content-Type-Options" not in script


def test_p23_the_version_of_the_server_is_told(site: Site) -> None:
    assert site.fetch("/").headers["Server"].startswith("TornadoServer/")


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p37_api_has_no_challenge(site: Site) -> None:
    assert "WWW-Authenticate" in site.fetch("/tasks").headers
    refused = site.fetch("/api/workers")
    assert refused.code == 401
    assert "WWW-Authenticate" not in refused.headers


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p37_the_challenge_does_not_tell_the_encoding(site: Site) -> None:
    assert site.fetch("/tasks").headers["WWW-Authenticate"] == 'Basic realm="flower"'


def test_p38_cookie_at_the_root_of_the_host(site: Site) -> None:
    assert "_xsrf=" in site.fetch("/").headers["Set-Cookie"]
    assert "Path=/;" in site.fetch("/").headers["Set-Cookie"] + ";"


@pytest.mark.parametrize("settings", [{}])
def test_p39_without_credentials_everybody_may_look(site: Site) -> None:
    assert site.fetch("/tasks").code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p40_guessing_is_not_slowed_and_leaves_no_trace(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert {site.fetch("/tasks", headers=basic(f"demo:{i}")).code for i in range(15)} == {401}
    assert [record for record in caplog.records if record.name not in SILENCED] == []


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p40_who_acts_is_not_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert site.fetch("/api/task/revoke/t1", method="POST", **BASIC).code == 200
    lines = [record.getMessage() for record in caplog.records if record.name not in SILENCED]
    assert [line for line in lines if "t1" in line] == ["Revoking task 't1'"]


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_tasks_sorted_by_nothing(site: Site) -> None:
    assert site.fetch("/api/tasks?sort_by=", **BASIC).code == 500


@pytest.mark.parametrize("settings", [{}])
def test_a_page_whose_name_leads_here_reads_everything(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}).code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_p43_outside_the_prefix(site: Site) -> None:
    site.kind = "untold"
    response = site.fetch("/tasks")
    assert (response.code, response.headers["Server"][:13]) == (404, "TornadoServer")


@pytest.mark.parametrize("settings", [{"basic_auth": ["alice:pw", "bob:pw"], "read_only": True}])
def test_p44_looking_only_is_for_all_or_nobody(site: Site) -> None:
    for user in ("alice", "bob"):
        assert site.fetch("/api/task/revoke/1", method="POST", headers=basic(f"{user}:pw")).code == 403


def test_p48_names_in_control_addresses(site: Site) -> None:
    assert "'/api/worker/pool/grow/' + workername" in site.page("/static/js/flower.js")
