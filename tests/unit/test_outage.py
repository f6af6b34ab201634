# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that is full is told once, and once more when it has space again."""

from __future__ import annotations

from tunnelproxy.outage import Outage


def test_it_is_said_at_its_beginning_and_at_its_end() -> None:
    said: list[str] = []
    now = 0.0
    outage = Outage("the file f", "lines are lost", report=lambda level, text: said.append(text), clock=lambda: now)
    outage.worked()
    for _ in range(3):
        outage.failed("No space left on device")
    now = 12.0
    outage.worked()
    outage.worked()
    assert said == [
        "cannot write to the file f: No space left on device; lines are lost",
        "the file f can be written again; writing failed 3 times within 12 s",
    ]
    assert outage.total == 3
