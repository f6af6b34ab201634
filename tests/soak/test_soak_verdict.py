# SPDX-License-Identifier: GPL-3.0-or-later
"""What a soak's verdict excuses, and what it finds."""

from __future__ import annotations

import pytest

from soak.faults import FAULTS, HubKilled, Rotation, ServiceFrozen
from soak.record import AFTERMATH_SECONDS, Record, Trouble, Window
from soak.watch import Growth, Sample, growths

MEGABYTE = 1_000_000


def window(*, troubled: str = "pump-1", cut: str = "", recovered: float = 120.0) -> Window:
    return Window("any", frozenset({troubled}), frozenset({cut}), began=100.0, undone=110.0, recovered=recovered)


def trouble(began: float, ended: float, *, thing: str = "pump-1", cut: bool = False, never: bool = False) -> Trouble:
    return Trouble("page", thing, began, ended, "words", cut, never)


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
def test_work_is_excused_if_a_fault_was_there_meanwhile(began: float, ended: float, excused: bool) -> None:
    assert window().excuses(trouble(began, ended)) is excused


def test_a_fault_that_has_not_healed_excuses_what_follows() -> None:
    assert window(recovered=0.0).excuses(trouble(500.0, 501.0))


def test_a_fault_excuses_only_its_own_devices() -> None:
    assert not window().excuses(trouble(105.0, 106.0, thing="pump-2"))


def test_a_connection_may_be_cut_only_by_a_fault_that_must_cut_it() -> None:
    assert not window().excuses(trouble(105.0, 106.0, cut=True))
    assert window(cut="pump-1").excuses(trouble(105.0, 106.0, cut=True))


def test_wrong_bytes_are_never_excused() -> None:
    assert not window(cut="pump-1").excuses(trouble(105.0, 106.0, never=True))


def test_each_violation_is_a_sentence() -> None:
    record = Record()
    record.trouble("page", "pump-1", record.began, "no\n answer")
    record.note("something is left over")
    record.open_window("any", (), ()).failure = "not well after 90 s"

    assert record.violations() == [
        "0:00: page on pump-1 while no fault explains it: no answer",
        "0:00: any: not well after 90 s",
        "0:00: something is left over",
    ]


def samples(*sizes: float, pid: int = 1) -> list[Sample]:
    """Of one process each minute, from its start."""
    return [
        Sample(60.0 * minute, "hub", pid, 60.0 * minute, int(size * MEGABYTE), 0, 0, 0)
        for minute, size in enumerate(sizes)
    ]


def test_growth_counts_from_when_each_fault_has_happened_once() -> None:
    process, role = growths(samples(10, 20, 30, 40, 50, *[60] * 9), 300.0)

    assert process.before == process.after == role.before == role.after == 60 * MEGABYTE
    assert not process.too_much


def test_a_process_that_grows_is_found() -> None:
    found = growths(samples(*range(50, 80)), 300.0)

    assert [growth.what for growth in found if growth.too_much] == ["hub (process 1)", "hub"]


def test_a_role_whose_every_process_is_larger_is_found() -> None:
    lives = [each for pid in range(20) for each in samples(*[50 + 5 * pid] * 2, pid=pid)]
    for minute, each in enumerate(lives):
        object.__setattr__(each, "seconds", 60.0 * minute)

    assert [growth.what for growth in growths(lives, 60.0) if growth.too_much] == ["hub"]


def test_a_twentieth_and_three_megabytes_are_no_growth() -> None:
    assert not Growth("any", 100 * MEGABYTE, 108 * MEGABYTE, 1.0).too_much
    assert Growth("any", 100 * MEGABYTE, 109 * MEGABYTE, 1.0).too_much


def test_the_same_seed_gives_the_same_rotation() -> None:
    first, second = ([fault for _, fault in zip(range(60), Rotation(FAULTS, 15))] for _ in range(2))

    assert first == second
    assert set(first[: len(FAULTS)]) == set(FAULTS)


def test_what_kills_for_all_is_due_in_every_third_round() -> None:
    faults = [fault for _, fault in zip(range(6), Rotation((HubKilled, ServiceFrozen), 1))]

    assert faults.count(HubKilled) == 2
