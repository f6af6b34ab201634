# SPDX-License-Identifier: GPL-3.0-or-later
"""Which failures a soak excuses, and what it reports as a violation."""

from __future__ import annotations

import pytest

from soak.faults import FAULTS, HubKilled, Rotation, ServiceFrozen
from soak.record import AFTERMATH_SECONDS, Failure, Record, Window
from soak.watch import Growth, Sample, growths

MEGABYTE = 1_000_000


def window(*, affected: str = "pump-1", disconnected: str = "", recovered: float = 120.0) -> Window:
    return Window(
        "fault", frozenset({affected}), frozenset({disconnected}), began=100.0, removed=110.0, recovered=recovered
    )


def failure(
    began: float, ended: float, *, thing: str = "pump-1", disconnected: bool = False, never_excused: bool = False
) -> Failure:
    return Failure("page", thing, began, ended, "message", disconnected, never_excused)


@pytest.mark.parametrize(
    ("began", "ended", "excused"),
    [
        (80.0, 99.0, False),
        (80.0, 101.0, True),
        (105.0, 106.0, True),
        (119.0, 160.0, True),
        (121.0 + AFTERMATH_SECONDS, 160.0, False),
    ],
)
def test_a_failure_is_excused_if_it_overlaps_a_fault(began: float, ended: float, excused: bool) -> None:
    assert window().excuses(failure(began, ended)) is excused


def test_a_fault_without_recovery_excuses_every_later_failure() -> None:
    assert window(recovered=0.0).excuses(failure(500.0, 501.0))


def test_a_fault_excuses_only_failures_of_the_devices_it_affects() -> None:
    assert not window().excuses(failure(105.0, 106.0, thing="pump-2"))


def test_only_a_fault_that_disconnects_a_device_excuses_a_lost_connection() -> None:
    assert not window().excuses(failure(105.0, 106.0, disconnected=True))
    assert window(disconnected="pump-1").excuses(failure(105.0, 106.0, disconnected=True))


def test_wrong_bytes_are_never_excused() -> None:
    assert not window(disconnected="pump-1").excuses(failure(105.0, 106.0, never_excused=True))


def test_each_violation_is_a_sentence() -> None:
    record = Record()
    record.failed("page", "pump-1", record.began, "no\n answer")
    record.note("something is left over")
    record.open_window("fault", (), ()).violation = "not recovered after 90 s"

    assert record.violations() == [
        "0:00: page on pump-1 failed, and no fault explains it: no answer",
        "0:00: fault: not recovered after 90 s",
        "0:00: something is left over",
    ]


def samples(*sizes: float, pid: int = 1) -> list[Sample]:
    """One sample a minute of one process, from its start."""
    return [
        Sample(60.0 * minute, "hub", pid, 60.0 * minute, int(size * MEGABYTE), 0, 0, 0)
        for minute, size in enumerate(sizes)
    ]


def test_growth_is_measured_after_each_fault_has_happened_once() -> None:
    process, role = growths(samples(10, 20, 30, 40, 50, *[60] * 9), 300.0)

    assert process.before == process.after == role.before == role.after == 60 * MEGABYTE
    assert not process.too_much


def test_a_growing_process_is_reported() -> None:
    found = growths(samples(*range(50, 80)), 300.0)

    assert [growth.what for growth in found if growth.too_much] == ["hub (process 1)", "hub"]


def test_a_role_is_reported_if_each_new_process_is_larger() -> None:
    lives = [each for pid in range(20) for each in samples(*[50 + 5 * pid] * 2, pid=pid)]
    for minute, each in enumerate(lives):
        object.__setattr__(each, "seconds", 60.0 * minute)

    assert [growth.what for growth in growths(lives, 60.0) if growth.too_much] == ["hub"]


def test_five_percent_plus_three_megabytes_are_allowed() -> None:
    assert not Growth("fault", 100 * MEGABYTE, 108 * MEGABYTE, 1.0).too_much
    assert Growth("fault", 100 * MEGABYTE, 109 * MEGABYTE, 1.0).too_much


def test_the_same_seed_gives_the_same_rotation() -> None:
    first, second = ([fault for _, fault in zip(range(60), Rotation(FAULTS, 15))] for _ in range(2))

    assert first == second
    assert set(first[: len(FAULTS)]) == set(FAULTS)


def test_a_fault_that_disconnects_all_devices_comes_in_every_third_round() -> None:
    faults = [fault for _, fault in zip(range(6), Rotation((HubKilled, ServiceFrozen), 1))]

    assert faults.count(HubKilled) == 2
