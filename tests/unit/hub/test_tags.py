# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from tunnelproxy.hub.tags import default_owner, valid_owner


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("alice@jump1", "alice@jump1"),
        ("CI: job 7/8", "CI: job 7/8"),
        ("Zoë 李", "Zoë 李"),
        ("anna (work)", "anna -work--79a30d9c"),
    ],
)
def test_an_owner_is_what_a_tag_may_hold(text: str, owner: str) -> None:
    assert valid_owner(text) == owner


def test_what_does_not_fit_is_cut_and_told_apart() -> None:
    owners = [valid_owner(text) for text in ("x" * 300, "x" * 301, "a;b", "a*b")]
    assert len(set(owners)) == len(owners)
    assert max(map(len, owners)) == 256


def test_the_owner_is_this_user_on_this_machine_where_nobody_says() -> None:
    user, _, machine = default_owner().partition("@")
    assert user
    assert machine
