"""Shell completion, with click's protocol and in bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flower_proxy.deploy.targets import TARGETS
from tests.support.command import environment
from tests.support.forks import run

PROGRAM = Path(sys.executable).with_name("flower-proxy")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        pytest.param("--url_pre", ["--url_prefix"], id="underscore"),
        pytest.param("--url-pre", ["--url-prefix"], id="dash"),
        pytest.param("--url", ["--url_prefix"], id="no-separator"),
        pytest.param("--no-col", ["--no-color"], id="celery-dash"),
        pytest.param("--no_col", ["--no_color"], id="celery-underscore"),
        pytest.param("-A shop --task-run", ["--task-runtime-metric-buckets"], id="after-an-option"),
        pytest.param("conf", ["config"], id="command"),
        pytest.param("-A shop conf", ["config"], id="command-after-an-option"),
        pytest.param("config ", list(TARGETS), id="targets"),
        pytest.param("config sys", ["systemd", "systemd-socket"], id="targets-by-prefix"),
        pytest.param("-A shop config ng", ["nginx"], id="target-after-options"),
        pytest.param("--port = 5555 config ng", ["nginx"], id="target-after-an-assignment-split-by-bash"),
        pytest.param("config nginx --url-pre", ["--url-prefix"], id="option-of-config"),
        pytest.param("config nginx --server-n", ["--server-name"], id="option-of-config-only"),
        pytest.param("config nginx --url_prefix = x --server_n", ["--server_name"], id="option-after-an-assignment"),
        pytest.param("nonsense ch", ["check"], id="unknown-command"),
        pytest.param("--port --url-pre", ["--url-prefix"], id="missing-value"),
    ],
)
def test_words_are_completed(tmp_path: Path, words: str, completed: list[str]) -> None:
    count = len(words.split()) + words.endswith(" ")
    line = {"COMP_WORDS": f"flower-proxy {words}", "COMP_CWORD": str(count), "_FLOWER_PROXY_COMPLETE": "bash_complete"}
    result = run([], tmp_path, env=line)
    assert result.stderr == ""
    assert [item.partition(",")[2] for item in result.stdout.splitlines()] == completed


BASH = """\
eval "$(_FLOWER_PROXY_COMPLETE=bash_source flower-proxy)"
complete -p flower-proxy >&2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_flower_proxy_completion flower-proxy
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [(["config", "tr"], "traefik"), (["-A", "shop", "config", "nginx", "--url-p"], "--url-prefix")],
)
def test_bash_completes(words: list[str], completed: str) -> None:
    env = environment()
    result = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", "flower-proxy", *words],
        env={**env, "PATH": f"{PROGRAM.parent}:{env['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "-F _flower_proxy_completion flower-proxy" in result.stderr
    assert result.stdout == f"{completed}\n"


def test_zsh_and_fish_have_completion_scripts(tmp_path: Path) -> None:
    for shell in ("zsh", "fish"):
        assert "complet" in run([], tmp_path, env={"_FLOWER_PROXY_COMPLETE": f"{shell}_source"}).stdout
