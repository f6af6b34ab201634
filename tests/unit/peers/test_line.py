# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets on a line: when they arrive, and which of them are lost."""

from __future__ import annotations

import statistics

import pytest

from peers.line import Direction

PACKET = bytes(1000)


def arrivals(direction: Direction, times: list[float]) -> list[float]:
    """When packets arrive that enter at these times."""
    for now in times:
        direction.take(PACKET, now)
    arrived = []
    while (due := direction.due_at) is not None:
        assert direction.due(due - 0.001) is None
        assert direction.due(due) == PACKET
        arrived.append(round(due, 6))
    return arrived


def test_packets_that_come_at_once_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    direction = Direction(rate=100_000, delay=0.5, queue=1)
    assert arrivals(direction, [1.0, 1.0, 1.0, 3.0]) == [1.51, 1.52, 1.53, 3.51]


def test_packets_for_which_the_queue_has_no_room_are_dropped() -> None:
    direction = Direction(rate=100_000, delay=0, queue=0.025)
    assert arrivals(direction, [1.0] * 5) == [1.01, 1.02, 1.03]
    assert direction.dropped == 2


def test_the_share_of_lost_packets() -> None:
    direction = Direction(rate=1e9, delay=0, queue=1, loss=0.1)
    assert 850 < len(arrivals(direction, [float(number) for number in range(1000)])) < 950


@pytest.mark.parametrize("interval", [0.0002, 0.02], ids=["dense", "sparse"])
def test_jitter_is_the_same_however_dense_the_packets_are_and_none_overtakes_another(interval: float) -> None:
    direction = Direction(rate=1e9, delay=0.1, queue=1, jitter=0.05)
    times = [number * interval for number in range(int(20 / interval))]
    arrived = arrivals(direction, times)
    late = [arrival - time - 0.1 for time, arrival in zip(times, arrived)]
    assert arrived == sorted(arrived)
    assert min(late) >= 0
    assert max(late) <= 0.051
    assert statistics.mean(late) == pytest.approx(0.025, abs=0.003)
    # A fifth of the range; a uniform distribution has 0.29 of it.
    assert statistics.pstdev(late) > 0.01


def test_two_directions_lose_different_packets() -> None:
    times = [float(number) for number in range(1000)]
    lost = [arrivals(Direction(rate=1e9, delay=0, queue=1, loss=0.1, seed=seed), times) for seed in (1, 2)]
    assert lost[0] != lost[1]


def test_how_late_packets_leave() -> None:
    direction = Direction(rate=1e9, delay=0, queue=1)
    for number in range(100):
        direction.take(PACKET, float(number))
        due = direction.due_at
        assert due is not None
        direction.due(due + (0.02005 if number >= 98 else 0.00015))
    assert direction.late(0.5) == pytest.approx(0.0002)
    assert direction.late(0.99) == pytest.approx(0.0201)


def test_nothing_is_late_where_no_packet_has_left() -> None:
    assert Direction(rate=1e9, delay=0, queue=1).late(0.99) == 0
