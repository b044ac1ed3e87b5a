"""The time of a refusal tells nobody which users there are."""

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
    """The cost of each check by bcrypt."""
    costs, check = [], bcrypt.checkpw

    def observe(password: bytes, hashed: bytes) -> bool:
        costs.append(int(hashed[4:6]))
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", observe)
    return costs


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of the users of the pages one has a hash, and one has none."""
    file = tmp_path / "htpasswd"
    file.write_text(f"slow:{hash_password('secret', 5)}\n")
    file.chmod(0o600)
    return {"basic_auth": ["demo:secret"], "metrics_auth": "prometheus:scrape", "auth_file": str(file)}


@pytest.mark.parametrize("path", ["/metrics", "/tasks"])
@pytest.mark.parametrize("user", ["prometheus", "demo", "slow", "nobody"])
def test_every_user_is_refused_in_the_time_of_a_check_by_bcrypt(
    checked: list[int], site: Site, path: str, user: str
) -> None:
    """The time would tell which users there are."""
    response = site.fetch(path, headers=basic(f"{user}:wrong"))
    assert (response.code, response.body) == (401, b"wrong user or password\n")
    assert checked == [5]


def test_the_scraper_is_not_told_from_others_at_the_pages(checked: list[int], site: Site) -> None:
    assert site.fetch("/tasks", headers=SCRAPER).code == 401
    assert checked == [5]
    assert site.fetch("/metrics", headers=SCRAPER).code == 200
    assert checked == [5]
