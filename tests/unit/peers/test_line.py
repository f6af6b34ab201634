# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets on a line: when they arrive, and which of them are lost."""

from __future__ import annotations

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


def test_packets_with_jitter_arrive_later_and_in_order() -> None:
    direction = Direction(rate=1e9, delay=0.1, queue=1, jitter=0.05)
    times = [number / 1000 for number in range(1000)]
    late = [arrival - time - 0.1 for time, arrival in zip(times, arrivals(direction, times))]
    assert max(late) <= 0.051
    assert min(late) >= 0
    assert max(late) - min(late) > 0.01
