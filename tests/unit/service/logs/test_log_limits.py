# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of what limits do is written, and that what is not written is counted."""

from __future__ import annotations

import pytest

from tunnelproxy.service.events import Connected, ControlCall, Event, Refused, Suppressed
from tunnelproxy.service.logs.log_limits import SUMMARY_SECONDS, LogLimits


class Record:
    """What was written, by a clock that the test moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.written: list[Event] = []
        self.limits = LogLimits(self.written.append, lambda: self.time)

    def flood(self, event: Event, times: int) -> None:
        for _ in range(times):
            self.limits.note(event)

    @property
    def lines(self) -> list[Event]:
        return [event for event in self.written if not isinstance(event, Suppressed)]

    @property
    def summaries(self) -> list[Suppressed]:
        return [event for event in self.written if isinstance(event, Suppressed)]


def unsigned(address: str, outcome: str = "MissingAuthenticationTokenException") -> ControlCall:
    return ControlCall("r", address, None, None, None, None, None, outcome, 403, 0.0)


def signed(outcome: str = "ok") -> ControlCall:
    return ControlCall("r", "192.0.2.1", "ci", "AKIA", "OpenTunnel", None, None, outcome, 200, 0.0)


def refused(address: str) -> Refused:
    return Refused("c", address, None, None, None, "token-unknown", "no")


@pytest.mark.parametrize("event", [unsigned("192.0.2.1"), refused("192.0.2.1"), signed("InvalidSignatureException")])
def test_lines_and_counts_add_up(event: Event) -> None:
    record = Record()
    record.flood(event, 1000)
    record.time = SUMMARY_SECONDS
    record.limits.summarize()
    assert 0 < len(record.lines) <= 20
    (summary,) = record.summaries
    assert len(record.lines) + summary.count == 1000
    assert (summary.addresses, summary.seconds) == (1, SUMMARY_SECONDS)


def test_one_address_that_floods_does_not_hide_another() -> None:
    record = Record()
    record.flood(unsigned("192.0.2.1"), 10_000)
    record.flood(unsigned("192.0.2.2"), 1)
    assert record.written[-1] == unsigned("192.0.2.2")


def test_many_addresses_together_fill_no_more_than_a_line_a_second() -> None:
    record = Record()
    for minute in range(5):
        record.time = 60.0 * minute
        for number in range(1500):
            record.limits.note(unsigned(f"2001:db8::{number:x}"))
    assert len(record.lines) == 4 * 60 + 200


def test_kinds_are_counted_apart() -> None:
    record = Record()
    record.flood(unsigned("192.0.2.1"), 100)
    record.flood(unsigned("192.0.2.1", "UnrecognizedClientException"), 5)
    record.limits.summarize()
    assert {summary.outcome: summary.count for summary in record.summaries} == {
        "MissingAuthenticationTokenException": 80,
        "UnrecognizedClientException": 5,
    }


def test_holders_of_a_key_are_always_recorded() -> None:
    record = Record()
    record.flood(unsigned("192.0.2.1"), 1000)
    record.flood(signed(), 500)
    record.flood(Connected("c", "192.0.2.1", "ci", None, "t", "source", 3), 500)
    assert len([event for event in record.lines if event != unsigned("192.0.2.1")]) == 1000


def test_nothing_is_summed_up_where_everything_was_written() -> None:
    record = Record()
    record.flood(unsigned("192.0.2.1"), 3)
    record.limits.summarize()
    assert record.summaries == []
