"""Corrections of flower.js: spliced functions, and the substitute if they cannot be spliced."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower_proxy._flower import FLOWER_JS, TIME_ZONES, flower_settings
from flower_proxy.web.static import SpliceError, packaged_overrides, prepend, splice, substitutes

ORIGINAL = """\
(function () {
    function keep() {
        return 1;
    }

    function change(name) {
        if (name) {
            return '}';
        }
        return 2;
    }

    $.ajax({url: url_prefix() + '/api/worker/pool/grow/' + workername,});
    $.ajax({url: url_prefix() + '/api/task/revoke/' + encodeURIComponent(taskid),});
    $.ajax({url: url_prefix() + '/task/' + taskid,});
}());
"""
CORRECTED = """\
// comment
function change(name) {
    return 3;
}
"""


def test_only_the_named_function_is_replaced() -> None:
    spliced = splice(ORIGINAL, CORRECTED)
    assert "    function change(name) {\n        return 3;\n    }\n" in spliced
    assert "return 2" not in spliced
    assert spliced.replace("return 3", "").count("function keep() {\n        return 1;\n    }") == 1


def test_names_in_urls_of_control_actions_are_encoded_once() -> None:
    spliced = splice(ORIGINAL, CORRECTED)
    assert "'/api/worker/pool/grow/' + encodeURIComponent(workername)," in spliced
    assert "'/api/task/revoke/' + encodeURIComponent(taskid)," in spliced
    assert "'/task/' + taskid," in spliced


def test_timers_that_reload_a_table_are_replaced() -> None:
    timer = "setInterval( function () {\n    table.ajax.reload(null, false);\n}, interval * 1000);\n"
    assert splice(ORIGINAL + timer, CORRECTED).endswith("pollTable(table, interval);\n")
    other = timer.replace("table.ajax.reload(null, false)", "show()")
    assert splice(ORIGINAL + other, CORRECTED).endswith(other)


def test_missing_function_is_reported_by_name() -> None:
    with pytest.raises(SpliceError, match="no function change"):
        splice(ORIGINAL.replace("function change", "var change = function "), CORRECTED)


def test_function_without_end_is_reported_by_name() -> None:
    with pytest.raises(SpliceError, match="end of the function change"):
        splice("    function change(name) {\n        return 2;", CORRECTED)


def test_substitute_precedes_the_original_script() -> None:
    assert prepend(ORIGINAL, CORRECTED).endswith(ORIGINAL)


def test_installed_flower_js_accepts_every_correction() -> None:
    original = Path(flower_settings["static_path"], FLOWER_JS).read_text()
    spliced = splice(original, (packaged_overrides() / FLOWER_JS).read_text())
    control_urls = [
        line
        for line in spliced.splitlines()
        if "url_prefix() + '/api/" in line and "' + " in line.partition("/api/")[2]
    ]
    assert len(control_urls) == 11
    assert all("encodeURIComponent(" in line for line in control_urls)


def test_only_the_known_moment_timezone_is_replaced(tmp_path: Path) -> None:
    assert list(substitutes(Path(flower_settings["static_path"]), packaged_overrides())) == [TIME_ZONES]
    assert not substitutes(tmp_path, packaged_overrides())
    file = tmp_path / TIME_ZONES
    file.parent.mkdir()
    file.write_text("another version")
    assert not substitutes(tmp_path, packaged_overrides())
