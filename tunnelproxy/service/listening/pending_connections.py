# SPDX-License-Identifier: Apache-2.0
"""Accepted TCP connections whose clients have not sent anything yet, and the order in which they are served.

A TLS handshake takes memory and one of a limited number of places; if idle connections took them, others would wait in
the kernel's queue, which is strictly first come, first served. Here a connection is accepted immediately and costs only
a descriptor until its client's first byte has arrived; then the addresses take turns. However many connections one
address opens, it does not lock out another.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from typing import Any

from ..events import CutOff, EventHandler
from ..limits import client_network

__all__ = ["PendingConnections"]


class _Pending:
    timer: asyncio.TimerHandle

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address


class PendingConnections:
    """Waiting connections.

    Args:
        seconds: how long a client may send nothing.
        notify: called with each connection that is cut off.
        limit: how many may wait. One more cuts off the oldest connection of the address that has the most.
    """

    def __init__(self, seconds: float, notify: EventHandler, *, limit: int) -> None:
        self._seconds = seconds
        self._notify = notify
        self._limit = limit
        self._number = 0
        # The connections of each address, oldest first; and the addresses with ready connections, in turn.
        self._waiting: dict[str, dict[_Pending, None]] = {}
        self._ready: OrderedDict[str, deque[_Pending]] = OrderedDict()
        self._one_is_ready = asyncio.Event()

    def add(self, sock: socket.socket, peer: Any) -> None:
        """Let an accepted connection wait for its client's first byte.

        Args:
            sock: non-blocking.
            peer: the address as accept(2) returns it.
        """
        if self._number >= self._limit:
            largest = max(self._waiting.values(), key=len)
            self._cut_off(next(iter(largest)), "half-open")
        loop = asyncio.get_running_loop()
        pending = _Pending(sock, client_network(str(peer[0])))
        pending.timer = loop.call_later(self._seconds, self._cut_off, pending, "handshake-time")
        self._waiting.setdefault(pending.address, {})[pending] = None
        self._number += 1
        loop.add_reader(sock.fileno(), self._is_readable, pending)

    async def next(self) -> tuple[socket.socket, str]:
        """Wait for the next connection whose client has sent something, and hand it over with its address."""
        while not self._ready:
            self._one_is_ready.clear()
            await self._one_is_ready.wait()
        address, queue = self._ready.popitem(last=False)
        pending = queue.popleft()
        if queue:
            self._ready[address] = queue
        self._forget(pending)
        return pending.sock, address

    def count(self, address: str) -> int:
        """How many connections of an address are waiting."""
        return len(self._waiting.get(address, ()))

    def close(self) -> None:
        """Close all waiting connections."""
        for of_address in list(self._waiting.values()):
            for pending in list(of_address):
                self._drop(pending)

    def _is_readable(self, pending: _Pending) -> None:
        asyncio.get_running_loop().remove_reader(pending.sock.fileno())
        self._ready.setdefault(pending.address, deque()).append(pending)
        self._one_is_ready.set()

    def _cut_off(self, pending: _Pending, cause: str) -> None:
        self._notify(CutOff(pending.address, cause))
        self._drop(pending)

    def _drop(self, pending: _Pending) -> None:
        asyncio.get_running_loop().remove_reader(pending.sock.fileno())
        queue = self._ready.get(pending.address)
        if queue is not None and pending in queue:
            queue.remove(pending)
            if not queue:
                del self._ready[pending.address]
        self._forget(pending)
        pending.sock.close()

    def _forget(self, pending: _Pending) -> None:
        pending.timer.cancel()
        self._number -= 1
        of_address = self._waiting[pending.address]
        del of_address[pending]
        if not of_address:
            del self._waiting[pending.address]
