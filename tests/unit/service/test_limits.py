# SPDX-License-Identifier: GPL-3.0-or-later
"""The pace of a tunnel, with a clock that the test moves, and what counts as one address."""

from __future__ import annotations

import pytest

from tunnelproxy.service.limits import Pace, counted_address


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_little_passes_at_once() -> None:
    assert Pace(1000, Clock()).take(250) == 0


def test_more_has_to_be_waited_for() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    assert pace.take(1250) == pytest.approx(1.0)
    clock.now += 0.5
    assert pace.take(0) == pytest.approx(0.5)
    clock.now += 0.5
    assert pace.take(0) == 0


def test_both_ends_wait_for_what_both_have_sent() -> None:
    pace = Pace(1000, Clock())
    assert pace.take(1250) == pytest.approx(1.0)
    assert pace.take(1000) == pytest.approx(2.0)


def test_a_long_silence_does_not_save_up_more_than_a_burst() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    clock.now += 3600
    assert pace.take(1250) == pytest.approx(1.0)


def test_over_time_the_rate_is_kept() -> None:
    clock = Clock()
    pace = Pace(100_000, clock)
    for _ in range(1000):
        clock.now += pace.take(65_536)
    assert 1000 * 65_536 / (clock.now - Clock.now) == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_client_with_an_ipv6_network_counts_once(address: str, counted: str) -> None:
    assert counted_address(address) == counted
