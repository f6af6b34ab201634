# SPDX-License-Identifier: GPL-3.0-or-later
"""``scripts/own_coverage.py`` finds the own tests of a module, and what these have to run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("coverage", reason="coverage is not installed: it is in the dependency group test")

import own_coverage
from own_coverage import Result, lines_in_functions, own_tests

MODULES = {"net/mqtt", "net/mqtt_client", "net/route", "errors"}
FILES = {
    "net/mqtt": ["net/test_mqtt.py", "net/test_mqtt_pings.py"],
    "net/mqtt_client": ["net/test_mqtt_client.py"],
    "net/route": [],
    "errors": ["test_errors.py"],
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_own_tests_are_named_after_the_module_and_no_other(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in [*(file for files in FILES.values() for file in files), "hub/test_route.py", "net/test_mq.py"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(own_coverage, "TESTS", tmp_path)
    assert [test.relative_to(tmp_path).as_posix() for test in own_tests(module, MODULES)] == FILES[module]


def test_lines_in_functions_are_those_that_an_import_does_not_run() -> None:
    source = '''\
LIMIT = 5
class Tunnel:
    name = "x"
    def open(
        self,
    ) -> None:
        """Open it."""
        self.close()
'''
    assert lines_in_functions(source) == {7, 8}


@pytest.mark.parametrize(("module", "missing", "too_low"), [("net/mqtt", 15, False), ("net/mqtt", 16, True)])
def test_a_module_is_too_low_below_85_percent(module: str, missing: int, too_low: bool) -> None:
    assert Result(module, (), 100, tuple(range(missing)), 0).too_low == too_low


def test_an_exception_is_never_too_low() -> None:
    assert not Result("protocol/message_pb2", (), 10, tuple(range(10)), 10).too_low
