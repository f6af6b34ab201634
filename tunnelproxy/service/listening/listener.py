# SPDX-License-Identifier: Apache-2.0
"""Accepts TCP connections, wraps them in TLS, and prevents slow or idle clients from crowding out the others.

asyncio's own servers show a connection to the application only after its TLS handshake: a client that opens many
connections and sends nothing could not even be counted. Here every connection counts against its address's limit as
soon as it is accepted. Until its client sends the first byte, it costs a descriptor and nothing else (see
``pending_connections``). Then, until the application has identified the client, it is half-open. When the limit of
half-open connections is reached, further ones wait, and the addresses take turns, so that a fleet that reconnects at
once is admitted in batches. A connection that stays half-open for seconds can lose its place: the oldest connection of
the address that has the most is cut off.
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

from ...net import connections, receive_buffer
from ...net.accept_loop import accept_connections
from ...net.background_tasks import supervise
from ...net.descriptor_limit import allow_many_files
from ..events import CutOff, EventHandler
from ..limits import Limits, client_network
from .pending_connections import PendingConnections

__all__ = ["Listener"]

_MAX_PENDING = 4096

_MIN_HALF_OPEN_SECONDS = 3.0
"""How long a connection may stay half-open, however many others wait.

An honest handshake takes milliseconds; but a Python process that started 2,000 at once lost some of them with a value
of one second, and none with three.
"""

log = logging.getLogger(__name__)

_Protocol = Union[asyncio.Protocol, asyncio.BufferedProtocol]


class Listener:
    """A listening socket and the connections accepted from it.

    Args:
        make_protocol: creates the protocol of a connection.
        context: the TLS context.
        limits: limits the connections and the duration of their handshakes.
        notify: called with each connection that is cut off here.
        deadline: seconds within which :meth:`settle` must be called for a connection; by default, the limit of the
            handshake.
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
        # Oldest first.
        self._half_open: dict[object, _Connection] = {}
        self._half_open_ended = asyncio.Event()
        self._pending: PendingConnections | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, listening: socket.socket) -> None:
        """Accept connections on a listening socket, and admit those whose clients send, one per address in turn."""
        pending = self._pending = PendingConnections(
            self._limits.handshake_seconds, self._notify, limit=_pending_limit()
        )

        def accepted(sock: socket.socket, peer: Any) -> None:
            address = client_network(str(peer[0]))
            if self._is_full(address):
                self._reject(sock, address)
            else:
                pending.add(sock, peer)

        self._tasks = [
            supervise("accepting connections", lambda: accept_connections(listening, accepted)),
            supervise("admitting connections", lambda: self._admit_pending(pending)),
        ]

    def stop_accepting(self) -> None:
        """Stop admitting connections."""
        for task in self._tasks:
            task.cancel()
        if self._pending is not None:
            self._pending.close()

    def close(self) -> None:
        """Stop admitting connections, and cut off the half-open ones."""
        self.stop_accepting()
        for connection in list(self._half_open.values()):
            connection.cut_off()

    def settle(self, protocol: object) -> None:
        """The client of this protocol's connection is identified: the connection is no longer half-open."""
        connection = self._half_open.pop(protocol, None)
        if connection is not None:
            connection.timer.cancel()
            self._half_open_ended.set()

    async def _admit_pending(self, pending: PendingConnections) -> None:
        """Admit connections whose clients have sent, within the limit of half-open ones; until cancelled."""
        while True:
            await self._wait_for_place()
            self._admit(*await pending.next())

    def _is_full(self, address: str) -> bool:
        pending = 0 if self._pending is None else self._pending.count(address)
        return 0 < self._limits.connections_per_address <= self._by_address[address] + pending

    def _reject(self, sock: socket.socket, address: str) -> None:
        log.debug("rejected a connection from %s, which has %d", address, self._by_address[address])
        self._notify(CutOff(address, "connections-per-address"))
        sock.close()

    def _admit(self, sock: socket.socket, address: str) -> None:
        if self._is_full(address):
            self._reject(sock, address)
            return
        self._by_address[address] += 1
        connection = _Connection(cast(_Protocol, self._make_protocol()), sock, address, self._forget)
        self._half_open[connection.protocol] = connection
        loop = asyncio.get_running_loop()
        connection.since = loop.time()
        connection.timer = loop.call_later(self._deadline, self._cut_off, connection, "handshake-time")
        connection.task = loop.create_task(self._shake_hands(connection))

    async def _shake_hands(self, connection: _Connection) -> None:
        try:
            await connections.accept(
                lambda: connection,
                connection.sock,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
            )
        except OSError as error:
            # Includes ssl.SSLError and timeouts.
            log.debug("TLS handshake with %s failed: %s", connection.address, error)
            if connection.protocol in self._half_open:
                # Otherwise it was cut off here, and counted.
                self._notify(CutOff(connection.address, "tls"))
        finally:
            if connection.transport is None:
                self._forget(connection)

    async def _wait_for_place(self) -> None:
        """Wait until one more connection may be half-open; if that takes too long, cut one off."""
        while 0 < self._limits.half_open <= len(self._half_open):
            ((busiest, _),) = Counter(connection.address for connection in self._half_open.values()).most_common(1)
            oldest = next(connection for connection in self._half_open.values() if connection.address == busiest)
            seconds = oldest.since + _MIN_HALF_OPEN_SECONDS - asyncio.get_running_loop().time()
            if seconds <= 0:
                self._cut_off(oldest, "half-open")
                continue
            self._half_open_ended.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._half_open_ended.wait(), seconds)

    def _cut_off(self, connection: _Connection, cause: str) -> None:
        self.settle(connection.protocol)
        self._notify(CutOff(connection.address, cause))
        connection.cut_off()

    def _forget(self, connection: _Connection) -> None:
        self.settle(connection.protocol)
        if connection.counted:
            connection.counted = False
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]


def _pending_limit() -> int:
    """How many connections may wait: a quarter of the process's descriptors per port."""
    return min(_MAX_PENDING, allow_many_files() // 4)


class _Connection(asyncio.BufferedProtocol):
    """Sits between a transport and the application's protocol, to learn when the connection is lost."""

    since: float
    timer: asyncio.TimerHandle
    task: asyncio.Task[None]

    def __init__(
        self, protocol: _Protocol, sock: socket.socket, address: str, lost: Callable[[_Connection], None]
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
        # During the TLS handshake asyncio holds the socket; shutting it down is what makes asyncio release it.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
