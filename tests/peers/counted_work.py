# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts function calls, and lets a protocol read without an event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["arrive", "calls"]


def arrive(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Let a protocol read, as the event loop does."""
    while data:
        room = memoryview(protocol.get_buffer(-1))
        some = data[: len(room)]
        room[: len(some)] = some
        protocol.buffer_updated(len(some))
        data = data[len(some) :]


def calls(action: Callable[[], Any]) -> int:
    """How many functions, Python's and C's, ``action`` calls."""
    counted = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counted
