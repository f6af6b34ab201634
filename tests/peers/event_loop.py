# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that are coroutines."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

__all__ = ["Clock", "in_event_loop", "until"]


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine test in its own event loop, for at most a minute."""

    @functools.wraps(test)
    def run(*arguments: Any, **settings: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **settings), 60))

    return run


class Clock:
    """The time of the running event loop, which a test can move forward.

    Deadlines of the test itself jump too: keep to seconds.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real = loop.time
        self._ahead = 0.0
        monkeypatch.setattr(loop, "time", lambda: real() + self._ahead)

    def skip(self, seconds: float) -> None:
        """Advance the time. Timers that are then due run when the test waits next."""
        self._ahead += seconds


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition is true; fail when the deadline passes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)
