"""The time of a denial does not disclose which users exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bcrypt
import pytest

from flower_proxy.auth.passwords import hash_password
from tests.http.conftest import Site
from tests.http.test_access_policy import basic

SCRAPER = basic("prometheus:scrape")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cost of each bcrypt check."""
    costs, check = [], bcrypt.checkpw

    def observe(password: bytes, hashed: bytes) -> bool:
        costs.append(int(hashed[4:6]))
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", observe)
    return costs


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """One user with a hash, and one with a plain password."""
    file = tmp_path / "htpasswd"
    file.write_text(f"slow:{hash_password('secret', 5)}\n")
    file.chmod(0o600)
    return {"basic_auth": ["demo:secret"], "metrics_auth": "prometheus:scrape", "auth_file": str(file)}


@pytest.mark.parametrize("path", ["/metrics", "/tasks"])
@pytest.mark.parametrize("user", ["prometheus", "demo", "slow", "unknown"])
def test_every_denied_login_takes_one_bcrypt_check(checked: list[int], site: Site, path: str, user: str) -> None:
    response = site.fetch(path, headers=basic(f"{user}:wrong"))
    assert (response.code, response.body) == (401, b"wrong user or password\n")
    assert checked == [5]


def test_the_scraper_is_denied_on_pages_like_any_user(checked: list[int], site: Site) -> None:
    assert site.fetch("/tasks", headers=SCRAPER).code == 401
    assert checked == [5]
    assert site.fetch("/metrics", headers=SCRAPER).code == 200
    assert checked == [5]
