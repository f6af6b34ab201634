# SPDX-License-Identifier: Apache-2.0
"""TCP connections whose clients have not spoken yet, and who is next of those that have.

A TLS handshake takes memory and one of a few places, so that idle connections would keep others waiting in the kernel's
queue, where nobody can be preferred. Here a connection is accepted at once and costs a descriptor only, until its
client's first byte is there; then the addresses take turns. What one address opens keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from typing import Any

from .events import CutOff, EventHandler
from .limits import counted_address

__all__ = ["PendingConnections"]


class _Pending:
    timer: asyncio.TimerHandle

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address


class PendingConnections:
    """Connections that wait.

    Args:
        seconds: how long a client may say nothing.
        notify: is told of every connection that is cut off.
        most: how many may wait. Of more, the address that has most loses its oldest.
    """

    def __init__(self, seconds: float, notify: EventHandler, *, most: int) -> None:
        self._seconds = seconds
        self._notify = notify
        self._most = most
        self._number = 0
        # Of each address in the order in which they came; then the addresses in the order of their turns.
        self._waiting: dict[str, dict[_Pending, None]] = {}
        self._ready: OrderedDict[str, deque[_Pending]] = OrderedDict()
        self._one_is_ready = asyncio.Event()

    def add(self, sock: socket.socket, peer: Any) -> None:
        """Have an accepted connection wait for its client's first byte.

        Args:
            sock: non-blocking.
            peer: as accept(2) has it.
        """
        if self._number >= self._most:
            crowd = max(self._waiting.values(), key=len)
            self._cut_off(next(iter(crowd)), "half-open")
        loop = asyncio.get_running_loop()
        arrival = _Pending(sock, counted_address(str(peer[0])))
        arrival.timer = loop.call_later(self._seconds, self._cut_off, arrival, "handshake-time")
        self._waiting.setdefault(arrival.address, {})[arrival] = None
        self._number += 1
        loop.add_reader(sock.fileno(), self._speaks, arrival)

    async def next(self) -> tuple[socket.socket, str]:
        """Wait for the next connection whose client has spoken; it is the caller's from then on. And its address."""
        while not self._ready:
            self._one_is_ready.clear()
            await self._one_is_ready.wait()
        address, arrivals = self._ready.popitem(last=False)
        arrival = arrivals.popleft()
        if arrivals:
            self._ready[address] = arrivals
        self._forget(arrival)
        return arrival.sock, address

    def count(self, address: str) -> int:
        """How many of an address wait."""
        return len(self._waiting.get(address, ()))

    def close(self) -> None:
        """Close all that wait."""
        for arrivals in list(self._waiting.values()):
            for arrival in list(arrivals):
                self._drop(arrival)

    def _speaks(self, arrival: _Pending) -> None:
        asyncio.get_running_loop().remove_reader(arrival.sock.fileno())
        self._ready.setdefault(arrival.address, deque()).append(arrival)
        self._one_is_ready.set()

    def _cut_off(self, arrival: _Pending, cause: str) -> None:
        self._notify(CutOff(arrival.address, cause))
        self._drop(arrival)

    def _drop(self, arrival: _Pending) -> None:
        asyncio.get_running_loop().remove_reader(arrival.sock.fileno())
        ready = self._ready.get(arrival.address)
        if ready is not None and arrival in ready:
            ready.remove(arrival)
            if not ready:
                del self._ready[arrival.address]
        self._forget(arrival)
        arrival.sock.close()

    def _forget(self, arrival: _Pending) -> None:
        arrival.timer.cancel()
        self._number -= 1
        arrivals = self._waiting[arrival.address]
        del arrivals[arrival]
        if not arrivals:
            del self._waiting[arrival.address]
