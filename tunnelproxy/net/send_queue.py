# SPDX-License-Identifier: Apache-2.0
"""How much of a connection's data may wait to be sent: a keystroke joins the end of that queue.

It waits in two places, in the kernel and in this process, and either may hold what the path delivers in a fiftieth of
a second. 32 KiB are nothing at 100 MB/s, and 160 ms at 200 kB/s.
"""

from __future__ import annotations

import asyncio
import time
from typing import Callable

from .socket_options import limit_unsent

__all__ = ["SMALLEST_QUEUE", "SendQueue"]

SMALLEST_QUEUE = 4 * 1024
"""Bytes that may always wait."""

_SECONDS = 0.02
"""How long data may wait in either place."""

_MEASURED_SECONDS = 0.05
"""For how long the speed is measured, at least."""

_FORGET = 0.8
"""A lower speed replaces the one before only by and by. Every ten seconds, BBR sends next to nothing for 0.2 s; with a
short queue after that, it would not find out how fast the path is."""


class SendQueue:
    """Adapts the queue of a connection to the speed of its path.

    Args:
        transport: the connection. Its water marks are set here.
        largest: how many bytes may wait in either place, however fast the path is.
        clock: returns seconds.
    """

    __slots__ = (
        "_bytes",
        "_clock",
        "_filled_at",
        "_largest",
        "_seconds",
        "_sock",
        "_speed",
        "_transport",
        "_waiting",
        "size",
    )

    def __init__(self, transport: asyncio.Transport, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._sock = transport.get_extra_info("socket")
        self._largest = largest
        self._clock = clock
        self._filled_at = 0.0
        self._waiting = 0
        self._bytes, self._seconds = 0, 0.0
        self._speed = 0.0
        self.size = 0
        """How many bytes may wait in either place."""
        self._resize(largest)

    def filled(self) -> None:
        """More waits than may: asyncio has called ``pause_writing``. The path limits the speed until it has drained.

        With larger water marks, aiofastnet calls ``resume_writing`` within this: call it last.
        """
        self._filled_at = self._clock()
        self._waiting = self._transport.get_write_buffer_size()
        if self._seconds >= _MEASURED_SECONDS:
            self._speed = max(self._bytes / self._seconds, _FORGET * self._speed)
            self._bytes, self._seconds = 0, 0.0
            self._resize(max(SMALLEST_QUEUE, min(int(self._speed * _SECONDS), self._largest)))

    def drained(self) -> None:
        """Little waits: asyncio has called ``resume_writing``."""
        self._seconds += self._clock() - self._filled_at
        self._bytes += self._waiting - self._transport.get_write_buffer_size()

    def _resize(self, size: int) -> None:
        if size != self.size:
            self.size = size
            self._transport.set_write_buffer_limits(high=size)
            limit_unsent(self._sock, size)
