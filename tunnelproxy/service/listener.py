# SPDX-License-Identifier: Apache-2.0
"""Accepts TCP connections, makes them TLS, and keeps those that do not get on with it from crowding out the others.

asyncio's own servers show a connection to nobody before its TLS handshake is done: who opens many and sends nothing
could not even be counted. Here every connection counts from the moment of its acceptance against its address's share.
Until its client speaks, it costs a descriptor and no more (see arrivals). Then, until the protocol inside has found
out who it is, it takes one of the places for the unknown. When these are taken, others wait, and the addresses take
turns, so that a fleet that comes back all at once gets in batch by batch. Who takes a place for seconds loses it then:
the oldest connection of the address that has most of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Union, cast

from ..net import connections, receive_buffer
from ..net.accept_loop import accept_connections
from ..net.background_tasks import supervise
from ..net.descriptor_limit import allow_many_files
from .events import CutOff, EventHandler
from .limits import Limits, counted_address
from .pending_connections import PendingConnections

__all__ = ["Listener"]

_MOST_WAITING = 4096

# An honest handshake takes milliseconds; but a Python process that began 2,000 at once lost some with a second
# here, and none with three.
_PATIENCE = 3.0

_log = logging.getLogger(__name__)

_Protocol = Union[asyncio.Protocol, asyncio.BufferedProtocol]


class Listener:
    """One listening socket and the connections that came through it.

    Args:
        make_protocol: makes the protocol for a connection.
        context: for TLS.
        limits: how many connections, and how long a handshake may take.
        notify: is told of every connection that is cut off here.
        deadline: seconds until a connection must be settled; the handshake's where None.
    """

    def __init__(
        self,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        limits: Limits,
        notify: EventHandler,
        *,
        deadline: float | None = None,
    ) -> None:
        self._make_protocol = make_protocol
        self._context = context
        self._limits = limits
        self._deadline = deadline or limits.handshake_seconds
        self._notify = notify
        self._by_address: Counter[str] = Counter()
        # In the order in which they came.
        self._half_open: dict[object, _Visitor] = {}
        self._one_less = asyncio.Event()
        self._arrivals: PendingConnections | None = None
        self._accepting: list[asyncio.Task[None]] = []

    def open(self, listener: socket.socket) -> None:
        """Accept connections on a bound socket, and let in those whose clients speak: one of each address in turn."""
        arrivals = self._arrivals = PendingConnections(
            self._limits.handshake_seconds, self._notify, most=_places_to_wait()
        )

        def arrive(sock: socket.socket, peer: Any) -> None:
            address = counted_address(str(peer[0]))
            if self._is_full(address):
                self._refuse(sock, address)
            else:
                arrivals.add(sock, peer)

        self._accepting = [
            supervise("accepting connections", lambda: accept_connections(listener, arrive)),
            supervise("letting connections in", lambda: self._let_in(arrivals)),
        ]

    def stop_accepting(self) -> None:
        """Let nobody else in."""
        for task in self._accepting:
            task.cancel()
        if self._arrivals is not None:
            self._arrivals.close()

    def close(self) -> None:
        """Let nobody else in, and cut off those who are still half-way in."""
        self.stop_accepting()
        for visitor in list(self._half_open.values()):
            visitor.cut_off()

    async def _let_in(self, arrivals: PendingConnections) -> None:
        """Let in connections whose clients have spoken, as there is room for them; until cancelled."""
        while True:
            await self._room()
            self._admit(*await arrivals.next())

    def settle(self, protocol: object) -> None:
        """The protocol knows whom it talks to: its connection does not count as half-open any more."""
        visitor = self._half_open.pop(protocol, None)
        if visitor is not None:
            visitor.timer.cancel()
            self._one_less.set()

    def _is_full(self, address: str) -> bool:
        waiting = 0 if self._arrivals is None else self._arrivals.count(address)
        return 0 < self._limits.connections_per_address <= self._by_address[address] + waiting

    def _refuse(self, sock: socket.socket, address: str) -> None:
        _log.debug("refused a connection of %s, which has %d", address, self._by_address[address])
        self._notify(CutOff(address, "connections-per-address"))
        sock.close()

    def _admit(self, sock: socket.socket, address: str) -> None:
        if self._is_full(address):
            self._refuse(sock, address)
            return
        self._by_address[address] += 1
        visitor = _Visitor(cast(_Protocol, self._make_protocol()), sock, address, self._forget)
        self._half_open[visitor.protocol] = visitor
        loop = asyncio.get_running_loop()
        visitor.since = loop.time()
        visitor.timer = loop.call_later(self._deadline, self._cut_off, visitor, "handshake-time")
        visitor.task = loop.create_task(self._shake_hands(visitor))

    async def _shake_hands(self, visitor: _Visitor) -> None:
        try:
            await connections.accept(
                lambda: visitor,
                visitor.sock,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
            )
        except OSError as error:
            # ssl.SSLError, too, and what a timeout raises.
            _log.debug("TLS handshake with %s failed: %s", visitor.address, error)
            if visitor.protocol in self._half_open:
                # Else it is cut off here, and counted.
                self._notify(CutOff(visitor.address, "tls"))
        finally:
            if visitor.transport is None:
                self._forget(visitor)

    async def _room(self) -> None:
        """Wait for a place, or make one."""
        while 0 < self._limits.half_open <= len(self._half_open):
            ((crowd, _),) = Counter(visitor.address for visitor in self._half_open.values()).most_common(1)
            oldest = next(visitor for visitor in self._half_open.values() if visitor.address == crowd)
            patience = oldest.since + _PATIENCE - asyncio.get_running_loop().time()
            if patience <= 0:
                self._cut_off(oldest, "half-open")
                continue
            self._one_less.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._one_less.wait(), patience)

    def _cut_off(self, visitor: _Visitor, cause: str) -> None:
        self.settle(visitor.protocol)
        self._notify(CutOff(visitor.address, cause))
        visitor.cut_off()

    def _forget(self, visitor: _Visitor) -> None:
        self.settle(visitor.protocol)
        if visitor.counted:
            visitor.counted = False
            self._by_address[visitor.address] -= 1
            if not self._by_address[visitor.address]:
                del self._by_address[visitor.address]


def _places_to_wait() -> int:
    """For how many connections there are descriptors to wait with: a quarter of all, on each port."""
    return min(_MOST_WAITING, allow_many_files() // 4)


class _Visitor(asyncio.BufferedProtocol):
    """Stands between a connection and its protocol, and tells when the connection is lost."""

    since: float
    timer: asyncio.TimerHandle
    task: asyncio.Task[None]

    def __init__(
        self, protocol: _Protocol, sock: socket.socket, address: str, lost: Callable[[_Visitor], None]
    ) -> None:
        self.protocol = protocol
        self.sock = sock
        self.address = address
        self.counted = True
        self.transport: asyncio.Transport | None = None
        self._lost = lost
        self._buffered = protocol if isinstance(protocol, asyncio.BufferedProtocol) else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        self.protocol.connection_lost(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._buffered is not None:
            return cast(memoryview, self._buffered.get_buffer(sizehint))
        return receive_buffer.whole()

    def buffer_updated(self, nbytes: int) -> None:
        if self._buffered is not None:
            self._buffered.buffer_updated(nbytes)
        elif isinstance(self.protocol, asyncio.Protocol):
            self.protocol.data_received(bytes(receive_buffer.received(nbytes)))

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def cut_off(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            return
        # Within the TLS handshake asyncio holds the connection; to find it ended is what makes asyncio let go of it.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
