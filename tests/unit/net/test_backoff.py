# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from tunnelproxy.net.backoff import Backoff


def test_delays_grow_up_to_the_cap_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(first=1.0, most=8.0)
    ceilings = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    for ceiling in ceilings:
        assert 0.25 <= backoff.next_delay() <= ceiling
    backoff.reset()
    assert backoff.next_delay() <= 1.0


def test_delays_differ_so_that_a_fleet_does_not_come_back_in_step() -> None:
    assert len({Backoff().next_delay() for _ in range(50)}) > 40
