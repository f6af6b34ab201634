# SPDX-License-Identifier: GPL-3.0-or-later
"""Token buckets, with a clock that the test moves, and which addresses count as one client."""

from __future__ import annotations

import pytest

from tunnelproxy.service.limits import TokenBucket, client_network


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_does_not_wait() -> None:
    assert TokenBucket.for_bandwidth(1000, Clock()).take(250) == 0


def test_more_than_a_burst_waits_until_its_debt_is_paid() -> None:
    clock = Clock()
    bucket = TokenBucket.for_bandwidth(1000, clock)
    assert bucket.take(1250) == pytest.approx(1.0)
    clock.now += 0.5
    assert bucket.take(0) == pytest.approx(0.5)
    clock.now += 0.5
    assert bucket.take(0) == 0


def test_debts_add_up() -> None:
    bucket = TokenBucket.for_bandwidth(1000, Clock())
    assert bucket.take(1250) == pytest.approx(1.0)
    assert bucket.take(1000) == pytest.approx(2.0)


def test_idle_time_saves_up_no_more_than_a_burst() -> None:
    clock = Clock()
    bucket = TokenBucket.for_bandwidth(1000, clock)
    clock.now += 3600
    assert bucket.take(1250) == pytest.approx(1.0)


def test_over_time_the_rate_is_kept() -> None:
    clock = Clock()
    bucket = TokenBucket.for_bandwidth(100_000, clock)
    for _ in range(1000):
        clock.now += bucket.take(65_536)
    assert 1000 * 65_536 / (clock.now - Clock.now) == pytest.approx(100_000, rel=0.01)


def test_events_above_a_burst_are_rejected_until_the_next_token() -> None:
    clock = Clock()
    bucket = TokenBucket(0.5, 3, clock)
    assert [bucket.try_take() for _ in range(4)] == [True, True, True, False]
    clock.now += 1
    assert not bucket.try_take()
    clock.now += 1
    assert bucket.has_token()
    assert bucket.try_take()
    assert not bucket.has_token()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_client_with_an_ipv6_network_counts_once(address: str, network: str) -> None:
    assert client_network(address) == network
