# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog: what is not heard of in time is started again.

Source: sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Callable

__all__ = ["Tell", "feed_watchdog", "watchdog_seconds"]

Tell = Callable[..., None]
"""Tells the service manager assignments such as ``READY=1``, if there is one."""


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """How often to tell that all is well: twice as often as systemd demands; None where it does not."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2_000_000 if microseconds.isdecimal() and meant else None


async def feed_watchdog(tell: Tell) -> None:
    """Tell that the event loop turns, as often as systemd wants to hear that, until cancelled."""
    seconds = watchdog_seconds(os.environ)
    while seconds is not None:
        tell("WATCHDOG=1")
        await asyncio.sleep(seconds)
