# SPDX-License-Identifier: Apache-2.0
"""Flow control: how much of the link's data is taken in while local peers do not keep up.

The protocol has no windows: whatever the far end sends arrives, whether or not the local peer reads it. So the data
that waits for slow peers has a budget. While some of it is left, the link is still read, but no faster than would use
up the whole budget in the time that a peer without progress is given: the other connections keep going meanwhile. When
the budget is used up, the link is not read, for that time at most: then the connection with most data waiting is reset.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Callable

from ..protocol.framing import MAX_PAYLOAD
from .link import Link
from .local_socket import LocalSocket

__all__ = ["BUDGET", "STALL_SECONDS", "FlowControl"]

BUDGET = 8 * 1024 * 1024
"""Bytes that may wait for slow peers in one tunnel. AWS lets that much through a tunnel in ten seconds (800 KB/s), so
there a stalled peer does not slow the others at all."""

STALL_SECONDS = 10.0
"""How long a local peer may read nothing, with its buffer full, before its connection is reset."""

LINGER_SECONDS = 60.0
"""How long a peer may read nothing of what waits for it after its connection has ended, as that slows no other."""

_LOOK_SECONDS = 0.1


@dataclass
class _Progress:
    """A peer's progress: how many bytes it has taken, and since when that number has not grown."""

    written: int
    since: float
    closing: bool = False


class FlowControl:
    """Watches those local sockets of one link whose buffers are full, or that are closing with bytes left to write.

    Args:
        give_up: is called with a socket whose peer makes too little progress, and for how many seconds.
        stall_seconds: how long a peer may make no progress.
    """

    def __init__(self, give_up: Callable[[LocalSocket, float], None], stall_seconds: float = STALL_SECONDS) -> None:
        self._give_up = give_up
        self._stall_seconds = stall_seconds
        self._link: Link | None = None
        self._watched: dict[LocalSocket, _Progress] = {}
        self._loop = asyncio.get_running_loop()
        self._looking = False
        self._paused = False
        self._pause: asyncio.TimerHandle | None = None
        self._paid_until = 0.0
        self._held_since: float | None = None

    def link_up(self, link: Link) -> None:
        """Pause and resume this link."""
        self._link = link

    def link_down(self) -> None:
        """The link is gone. Sockets that are closing are still watched."""
        self._link = None
        self._held_since = None
        self._go_on()

    def full(self, local: LocalSocket) -> None:
        """A socket's own buffer is full."""
        if local not in self._watched:
            self._watch(local)

    def closing(self, local: LocalSocket) -> None:
        """A socket's connection has ended."""
        if local.unwritten:
            self._watch(local, closing=True)
            self._hold_if_used_up()
            self._reconsider()

    def delivered(self, local: LocalSocket, size: int) -> None:
        """Bytes have arrived for a socket. If its peer is slow, pause the link for as long as they cost."""
        if local not in self._watched or self._hold_if_used_up():
            return
        self._paid_until = max(self._paid_until, self._loop.time()) + size * self._stall_seconds / BUDGET
        self._set_paused(True)
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._loop.call_at(self._paid_until, self._go_on)

    def drained(self, local: LocalSocket) -> None:
        """A socket's buffer is nearly empty, or the socket is gone."""
        progress = self._watched.get(local)
        if progress is not None and not (progress.closing and local.unwritten):
            self._forget(local)

    def _watch(self, local: LocalSocket, *, closing: bool = False) -> None:
        self._watched[local] = _Progress(local.written, self._loop.time(), closing)
        if not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _forget(self, local: LocalSocket) -> None:
        del self._watched[local]
        self._reconsider()

    def _look(self) -> None:
        now = self._loop.time()
        for local, progress in list(self._watched.items()):
            if local.written > progress.written:
                progress.written, progress.since = local.written, now
            elif now - progress.since >= self._allowed_seconds(progress):
                self._forget(local)
                self._give_up(local, now - progress.since)
        self._reconsider()
        if self._held_since is not None and now - self._held_since >= self._stall_seconds:
            worst = max(self._watched, key=lambda local: local.unwritten)
            seconds, self._held_since = now - self._held_since, now
            self._forget(worst)
            self._give_up(worst, seconds)
        self._looking = bool(self._watched)
        if self._looking:
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _allowed_seconds(self, progress: _Progress) -> float:
        lingers = progress.closing and self._held_since is None
        return max(LINGER_SECONDS, self._stall_seconds) if lingers else self._stall_seconds

    # The link.

    def _waiting(self) -> int:
        return sum(local.unwritten for local in self._watched)

    def _hold_if_used_up(self) -> bool:
        if self._held_since is None and self._waiting() >= BUDGET:
            self._held_since = self._loop.time()
            self._stop_pause()
            self._set_paused(True)
        return self._held_since is not None

    def _reconsider(self) -> None:
        """Read on if there is room again, or no slow peer is left."""
        if self._held_since is not None:
            if self._waiting() > BUDGET - MAX_PAYLOAD:
                return
            self._held_since = None
            self._go_on()
        elif all(progress.closing for progress in self._watched.values()):
            self._go_on()

    def _go_on(self) -> None:
        self._stop_pause()
        self._set_paused(False)

    def _stop_pause(self) -> None:
        self._paid_until = 0.0
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _set_paused(self, paused: bool) -> None:
        if paused is not self._paused and self._link is not None:
            self._paused = paused
            if paused:
                self._link.pause_reading()
            else:
                self._link.resume_reading()
