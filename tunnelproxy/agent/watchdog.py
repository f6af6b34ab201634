# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog, which restarts a service that does not report in time.

Source: sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Callable

__all__ = ["Tell", "feed_watchdog", "watchdog_seconds"]

Tell = Callable[..., None]
"""Sends assignments such as ``READY=1`` to the service manager, if there is one."""


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Seconds between two reports: half of systemd's timeout; None if there is none."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2_000_000 if microseconds.isdecimal() and meant else None


async def feed_watchdog(tell: Tell) -> None:
    """Report to the watchdog from the event loop, until cancelled; return at once if there is no watchdog."""
    seconds = watchdog_seconds(os.environ)
    while seconds is not None:
        tell("WATCHDOG=1")
        await asyncio.sleep(seconds)
