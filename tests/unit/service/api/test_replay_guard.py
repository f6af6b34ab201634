# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a signature is good for, with a clock that the test moves."""

from __future__ import annotations

import pytest

from tunnelproxy.service.api.replay_guard import GRACE, ReplayGuard
from tunnelproxy.service.errors import ApiError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def is_refused(replays: ReplayGuard, signature: bytes) -> bool:
    try:
        replays.check(signature)
    except ApiError as error:
        if (error.kind, error.status) != ("InvalidSignatureException", 403):
            raise
        return True
    return False


def test_equal_calls_of_one_moment_pass_and_a_replay_is_refused() -> None:
    clock = Clock()
    replays = ReplayGuard(clock)
    assert not is_refused(replays, b"one")
    clock.now += GRACE
    assert not is_refused(replays, b"one")
    clock.now += 0.1
    assert is_refused(replays, b"one")
    assert not is_refused(replays, b"another")


def test_using_it_again_does_not_make_it_last() -> None:
    clock = Clock()
    replays = ReplayGuard(clock)
    for _ in range(3):
        replays.check(b"one")
        clock.now += GRACE / 2
    assert is_refused(replays, b"one")


@pytest.mark.parametrize("later", [60, 299, 600])
def test_it_is_refused_for_as_long_as_its_date_is_good(later: float) -> None:
    clock = Clock()
    replays = ReplayGuard(clock)
    replays.check(b"one")
    clock.now += later
    replays.check(b"another")
    assert is_refused(replays, b"one")


def test_signatures_whose_date_has_expired_are_forgotten() -> None:
    clock = Clock()
    replays = ReplayGuard(clock)
    for number in range(100):
        replays.check(b"%d" % number)
    clock.now += 1000
    replays.check(b"new")
    assert len(replays._first_uses) == 1
