# SPDX-License-Identifier: GPL-3.0-or-later
"""How often systemd wants to hear of the agent."""

from __future__ import annotations

import asyncio
import os

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.agent.watchdog import feed_watchdog, watchdog_seconds


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_wants(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environment) == seconds


@in_event_loop
async def test_it_is_told_until_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    told: list[str] = []
    feeding = asyncio.create_task(feed_watchdog(told.append))
    await until(lambda: len(told) >= 3)
    feeding.cancel()
    assert set(told) == {"WATCHDOG=1"}


@in_event_loop
async def test_without_a_watchdog_there_is_nothing_to_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    told: list[str] = []
    await feed_watchdog(told.append)
    assert told == []
