# SPDX-License-Identifier: GPL-3.0-or-later
"""The fuzzer's targets, without the fuzzer: the seeds, what was found once, and whatever Hypothesis thinks of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.seeds import seeds
from fuzz.targets import one_input

FOUND = sorted((Path(__file__).parent / "found").glob("*"))
INPUTS = {**{f"seed-{number}": data for number, data in enumerate(seeds())}, **{p.name: p.read_bytes() for p in FOUND}}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_the_seeds_and_what_was_found_once_hold(data: bytes) -> None:
    one_input(data)


@given(st.binary(min_size=3, max_size=200))
@settings(max_examples=300, deadline=None)
def test_anything_holds(data: bytes) -> None:
    one_input(data)
