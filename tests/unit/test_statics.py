"""The corrected flower.js: spliced where the place is found, and told on the page where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flower_proxy._flower import FLOWER_JS, flower_settings
from flower_proxy.web.static import SpliceError, packaged_overrides, prepend, splice

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
// why
function change(name) {
    return 3;
}
"""


def test_a_function_is_replaced_and_nothing_else() -> None:
    spliced = splice(ORIGINAL, CORRECTED)
    assert "    function change(name) {\n        return 3;\n    }\n" in spliced
    assert "return 2" not in spliced
    assert spliced.replace("return 3", "").count("function keep() {\n        return 1;\n    }") == 1


def test_names_in_control_addresses_are_encoded_once() -> None:
    """P48."""
    spliced = splice(ORIGINAL, CORRECTED)
    assert "'/api/worker/pool/grow/' + encodeURIComponent(workername)," in spliced
    assert "'/api/task/revoke/' + encodeURIComponent(taskid)," in spliced
    assert "'/task/' + taskid," in spliced


def test_a_missing_function_is_named() -> None:
    with pytest.raises(SpliceError, match="no function change"):
        splice(ORIGINAL.replace("function change", "var change = function "), CORRECTED)


def test_a_function_whose_end_is_not_found_is_named() -> None:
    with pytest.raises(SpliceError, match="end of its function change"):
        splice("    function change(name) {\n        return 2;", CORRECTED)


def test_what_cannot_be_spliced_runs_in_front() -> None:
    assert prepend(ORIGINAL, CORRECTED).endswith(ORIGINAL)


def test_the_installed_file_has_a_place_for_every_correction_and_for_every_name() -> None:
    original = Path(flower_settings["static_path"], FLOWER_JS).read_text()
    spliced = splice(original, (packaged_overrides() / FLOWER_JS).read_text())
    addresses = [
        line
        for line in spliced.splitlines()
        if "url_prefix() + '/api/" in line and "' + " in line.partition("/api/")[2]
    ]
    assert len(addresses) == 11
    assert all("encodeURIComponent(" in line for line in addresses)
