# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md has every message that tests produce, and no other."""

from __future__ import annotations

import re

import pytest

from peers.process import REPOSITORY
from peers.troubleshooting import Row, rows

_PRODUCED = re.compile(
    r'assert_documented\(\s*"([^"]+)"|^ +(?:Broken|Mistake|Refused|Wrong)\(\s*"([^"]+)"',
    re.MULTILINE,
)


def produced() -> set[str]:
    files = (REPOSITORY / "tests" / "integration").glob("test_*.py")
    return {first or second for file in files for first, second in _PRODUCED.findall(file.read_text())}


def test_each_message_of_the_page_is_produced_by_a_test() -> None:
    assert produced() == set(rows())


# What a service of one's own says on its machine is not always about a thing.
ABOUT_THINGS = [row for row in rows().values() if not row.cause.startswith("Service: ")]


@pytest.mark.parametrize("row", ABOUT_THINGS, ids=lambda row: row.cause)
def test_each_message_names_the_thing(row: Row) -> None:
    assert re.search(r"\bTHING\b", row.message)


def test_a_message_matches_from_its_first_to_its_last_word() -> None:
    row = Row("x", "the device THING refused SSH1 (CODE): see …", "y")
    assert row.matches("the device d-1 refused SSH1 (E_1): see there")
    assert not row.matches("well, the device d-1 refused SSH1 (E_1): see there")
    assert not row.matches("the device d-1 refused SSH2 (E_1): see there")
    assert not row.matches("the device d-1 refused SSH1 (E_1)")
