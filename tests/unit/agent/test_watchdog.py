# SPDX-License-Identifier: GPL-3.0-or-later
"""How often systemd wants to hear of the agent."""

from __future__ import annotations

import os

import pytest

from tunnelproxy.agent.watchdog import watchdog_seconds


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
