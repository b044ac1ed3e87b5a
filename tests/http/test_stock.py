"""Defects of stock Flower that flower-proxy fixes.

A failure means that Flower has fixed the defect: the fix in flower-proxy may be removed.
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
from tests.http.test_access_policy import basic

BASIC: dict[str, Any] = {"auth_username": "demo", "auth_password": "secret"}
# Flower's command disables these without --debug
SILENCED = ("tornado.access",)


def parse_basic_auth(text: str) -> list[str]:
    """Return the value that stock Flower parses from ``--basic_auth``."""
    parser = OptionParser()
    parser.define("basic_auth", type=str, multiple=True)
    parser.parse_command_line(["flower", f"--basic_auth={text}"], final=False)
    return list(parser.basic_auth)


@pytest.fixture
def kind() -> str:
    return "kept"


@pytest.fixture
def app(io_loop: IOLoop, options: OptionParser) -> Iterator[Flower]:
    """Stock Flower, configured as by its command."""
    capp = Celery(broker="memory://")
    prefixed = {name: prepend_url(flower_settings[name], PREFIX) for name in ("static_url_prefix", "login_url")}
    application = Flower(capp=capp, options=options, **{**flower_settings, **prefixed})
    yield application
    application.executor.shutdown()
    capp.close()


def test_prefix_without_trailing_slash_is_404(site: Site) -> None:
    """mher/flower#1207."""
    assert site.fetch("/").code == 200
    assert site.fetch("").code == 404


def test_stripped_prefix_is_404(site: Site) -> None:
    """mher/flower#414."""
    site.kind = "stripped"
    assert site.fetch("/tasks").code == 404


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/metrics", 200), ("/logout", 200), ("/nothing", 404), ("/login", 404)],
)
def test_some_pages_do_not_require_authentication(site: Site, path: str, status: int) -> None:
    """mher/flower#1342."""
    assert site.fetch("/tasks").code == 401
    assert site.fetch(path).code == status


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_metrics_disclose_worker_names_without_authentication(site: Site, event: Callable[..., None]) -> None:
    """mher/flower#1379."""
    event("worker-online", hostname="planted@host")
    assert 'worker="planted@host"' in site.page("/metrics")


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_same_origin_post_is_refused_if_the_proxy_drops_the_port(site: Site) -> None:
    headers = {"Origin": "http://host.example:8080", "Host": "host.example"}
    assert site.fetch("/tasks/datatable", method="POST", headers=headers, **BASIC).code == 403


def test_unauthenticated_api_accepts_cross_site_requests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """mher/flower#1231."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    assert site.fetch("/api/workers").headers["Access-Control-Allow-Origin"] == "*"
    assert site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "cross-site"}).code != 403


def test_control_actions_fail_if_the_proxy_authenticates(site: Site) -> None:
    """mher/flower#1231."""
    assert site.fetch("/tasks").code == 200
    response = site.fetch("/api/task/revoke/1", method="POST", headers={"Sec-Fetch-Site": "same-origin"})
    assert response.code == 401


def test_invalid_value_of_unauthenticated_api_closes_every_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "enabled")
    with pytest.raises(HTTPStreamClosedError):
        site.fetch("/healthcheck")


@pytest.mark.parametrize("settings", [{"basic_auth": parse_basic_auth("user:p,ss")}])
def test_password_with_comma_is_split_into_two_credentials(site: Site) -> None:
    found = {text: site.fetch("/tasks", headers=basic(text)).code for text in ("user:p,ss", "user:p", "ss")}
    assert found == {"user:p,ss": 401, "user:p": 200, "ss": 200}


@pytest.mark.parametrize(
    "settings", [{"basic_auth": parse_basic_auth("user:pass,")}, {"basic_auth": parse_basic_auth("")}]
)
@pytest.mark.parametrize("credentials", ["=", "!!!", "===="])
def test_empty_entry_in_basic_auth_accepts_empty_credentials(site: Site, credentials: str) -> None:
    assert site.fetch("/tasks", headers={"Authorization": f"Basic {credentials}"}).code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_non_ascii_password_in_a_request_is_500(site: Site) -> None:
    assert site.fetch("/tasks", headers=basic("demo:s\xe9cret")).code == 500


@pytest.mark.parametrize("settings", [{"basic_auth": ["other:s\xe9cret", "demo:secret"]}])
def test_non_ascii_password_in_the_options_is_500(site: Site) -> None:
    assert site.fetch("/tasks", **BASIC).code == 500


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_authentication_scheme_is_case_sensitive(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Authorization": "basic ZGVtbzpzZWNyZXQ="}).code == 401


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_invalid_base64_is_accepted(site: Site) -> None:
    assert site.fetch("/tasks", headers={"Authorization": "Basic !ZGVtbzpzZWNyZXQ="}).code == 200


@pytest.mark.parametrize("settings", [{"url_prefix": "/"}])
def test_slash_as_url_prefix_is_404(site: Site) -> None:
    """apache/airflow#27402."""
    site.kind = "unforwarded"
    assert site.fetch("/").code == 404


def test_head_is_405(site: Site) -> None:
    """mher/flower#945."""
    assert site.fetch("/healthcheck", method="HEAD").code == 405


def test_broker_page_of_an_unsupported_transport_is_404(site: Site) -> None:
    """mher/flower#905."""
    assert site.fetch("/broker").code == 404


def test_security_headers_are_missing(site: Site) -> None:
    """mher/flower#532."""
    page, script = site.fetch("/").headers, site.fetch("/static/js/flower.js").headers
    for name in ("Content-Security-Policy", "X-Frame-Options", "Referrer-Policy", "Cache-Control"):
        assert name not in page
    assert "X-Content-Type-Options" not in script


def test_server_header_discloses_the_version(site: Site) -> None:
    assert site.fetch("/").headers["Server"].startswith("TornadoServer/")


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_api_401_has_no_challenge(site: Site) -> None:
    assert "WWW-Authenticate" in site.fetch("/tasks").headers
    refused = site.fetch("/api/workers")
    assert refused.code == 401
    assert "WWW-Authenticate" not in refused.headers


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_challenge_has_no_charset(site: Site) -> None:
    assert site.fetch("/tasks").headers["WWW-Authenticate"] == 'Basic realm="flower"'


def test_cookie_path_is_the_root_of_the_host(site: Site) -> None:
    assert "_xsrf=" in site.fetch("/").headers["Set-Cookie"]
    assert "Path=/;" in site.fetch("/").headers["Set-Cookie"] + ";"


@pytest.mark.parametrize("settings", [{}])
def test_no_authentication_by_default(site: Site) -> None:
    assert site.fetch("/tasks").code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_failed_logins_are_neither_limited_nor_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert {site.fetch("/tasks", headers=basic(f"demo:{i}")).code for i in range(15)} == {401}
    assert [record for record in caplog.records if record.name not in SILENCED] == []


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_log_of_control_actions_omits_the_user(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert site.fetch("/api/task/revoke/t1", method="POST", **BASIC).code == 200
    lines = [record.getMessage() for record in caplog.records if record.name not in SILENCED]
    assert [line for line in lines if "t1" in line] == ["Revoking task 't1'"]


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_empty_sort_by_is_500(site: Site) -> None:
    assert site.fetch("/api/tasks?sort_by=", **BASIC).code == 500


@pytest.mark.parametrize("settings", [{}])
def test_host_header_is_not_validated(site: Site) -> None:
    """DNS rebinding gives a web site access to all pages."""
    assert site.fetch("/tasks", headers={"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}).code == 200


@pytest.mark.parametrize("settings", [{"basic_auth": ["demo:secret"]}])
def test_paths_outside_the_prefix_get_tornados_404_page(site: Site) -> None:
    site.kind = "unforwarded"
    response = site.fetch("/tasks")
    assert (response.code, response.headers["Server"][:13]) == (404, "TornadoServer")


@pytest.mark.parametrize("settings", [{"basic_auth": ["alice:pw", "bob:pw"], "read_only": True}])
def test_read_only_applies_to_all_users(site: Site) -> None:
    for user in ("alice", "bob"):
        assert site.fetch("/api/task/revoke/1", method="POST", headers=basic(f"{user}:pw")).code == 403


def test_names_in_urls_of_control_actions_are_not_encoded(site: Site) -> None:
    assert "'/api/worker/pool/grow/' + workername" in site.page("/static/js/flower.js")
