# SPDX-License-Identifier: Apache-2.0
"""Many local connections over one link: fair turns when sending, bounded buffers when receiving.

Sending: a local socket hands over at most one message's worth, and is not read again before that is sent. While several
sockets have data, they take turns with small chunks. Receiving: a local peer that does not read first fills a buffer of
its own, then slows the tunnel down, and is reset alone if it makes no progress for a while (see :mod:`.flow_control`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Callable

from ..protocol.framing import Bytes, ProtocolError
from ..protocol.session import (
    NAMELESS,
    Connection,
    ConnectionClosed,
    ConnectionRequested,
    DataReceived,
    Event,
    Mode,
    PeerVersionFound,
    ServicesOffered,
    Session,
    Version,
)
from .flow_control import STALL_SECONDS, FlowControl
from .link import Link, LinkLost
from .local_socket import LocalSocket

__all__ = ["Callbacks", "Multiplexer"]

log = logging.getLogger(__name__)

TURN = 16 * 1024
"""Bytes that a connection may send in one turn while others wait."""

GATHER = 3 * TURN
"""Bytes of turns that fill a WebSocket message, if that many wait. No more than one connection may send in one message,
so that a keystroke waits no longer behind several connections than behind one."""

LOST_SECONDS = 60.0
"""How long a local peer's machine may leave sent data unacknowledged: as long as the kernel's keep-alive gives a peer
to which nothing was sent."""

LOOK_SECONDS = 10.0
"""How often to look for such peers."""


def _ignore(_: object) -> None:
    """Ignore an event that this end of a tunnel does not get."""


@dataclass(frozen=True)
class Callbacks:
    """The functions that a multiplexer calls.

    Attributes:
        services_offered: the service has named what the tunnel carries.
        connection_ended: a connection has ended, whichever end closed it.
        connection_requested: a source requests a connection. Answer with :meth:`Multiplexer.join` or
            :meth:`Multiplexer.refuse`. Only a destination gets this.
        peer_version_found: the destination has shown which version it speaks. Only a source gets this.
    """

    services_offered: Callable[[tuple[str, ...]], None]
    connection_ended: Callable[[Connection, LocalSocket], None]
    connection_requested: Callable[[Connection], None] = _ignore
    peer_version_found: Callable[[Version], None] = _ignore


class Multiplexer:
    """Joins local sockets to the connections of one link. It lasts as long as that link, and is the link's receiver.

    Args:
        version: the version that a source speaks, unless the handshake agrees on an older one.
        probing: whether the destination may speak an older version than that.
        first_stream_id: as for :class:`Session`.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
    """

    def __init__(
        self,
        mode: Mode,
        callbacks: Callbacks,
        *,
        version: Version = Version.V3,
        probing: bool = False,
        first_stream_id: int = 1,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.connections: dict[Connection, LocalSocket] = {}
        self._session = Session(mode, version, first_stream_id=first_stream_id, probing=probing)
        self._callbacks = callbacks
        self._flow_control = FlowControl(self._peer_stalled, stall_seconds)
        self._link: Link | None = None
        self._names: dict[LocalSocket, Connection] = {}
        self._waiting: deque[LocalSocket] = deque()
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None

    # What the proxy does.

    @property
    def version(self) -> Version:
        """The version that a source speaks, if the destination understands it."""
        return self._session.version

    @property
    def next_stream_id(self) -> int:
        """The stream ID for the next link to begin with."""
        return self._session.next_stream_id

    @property
    def linked(self) -> bool:
        """Whether its link is up."""
        return self._link is not None

    def can_open(self, service_id: str) -> bool:
        """Whether a service may have another connection now."""
        return self._session.can_open(service_id)

    def is_undecided(self, service_id: str) -> bool:
        """Whether the destination, which has one connection of a service, may turn out to accept more."""
        return self._session.is_undecided(service_id)

    def ask_version(self, service_id: str) -> None:
        """Ask an undecided destination whether it speaks V3. Older ones ignore the question."""
        self._session.ask_version(service_id)
        self._send_output()

    def open(self, service_id: str, local: LocalSocket) -> Connection:
        """Open a connection to a service of the destination for a local socket."""
        connection = self._session.open(service_id)
        self._send_output()
        self.join(connection, local)
        return connection

    def join(self, connection: Connection, local: LocalSocket) -> None:
        """Give a connection that was opened or requested its local socket, which may still be connecting."""
        self.connections[connection] = local
        self._names[local] = connection
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look_for_lost_peers)
        if local.pending or local.ended:
            local.report_ready()

    def refuse(self, connection: Connection) -> None:
        """Reset a connection that the source requested."""
        self._session.close(connection)
        self._send_output()

    def reset(self, connection: Connection) -> None:
        """Close a connection at once, at both ends."""
        local = self.connections.get(connection)
        self.refuse(connection)
        if local is not None:
            self._forget(connection, local)
            local.abort()

    def carry_over(self) -> list[tuple[str, LocalSocket]]:
        """Give up this link, and return the connections that have carried nothing, ready for another link.

        The others are closed.

        Returns:
            the service ID and the local socket of each.
        """
        self._waiting.clear()
        carried = []
        for connection, local in list(self.connections.items()):
            if local.bytes_in or local.bytes_out:
                self._finish(connection, local)
            else:
                del self.connections[connection]
                del self._names[local]
                if local.owner is self:
                    local.owner = None
                carried.append((connection.service_id, local))
        return carried

    # What the link reports.

    def link_up(self, link: Link) -> None:
        self._link = link
        self._flow_control.link_up(link)
        self._session.version = min(self._session.version, link.version)
        if link.version is Version.V1:
            # The service sends no list of services to V1: there is one service, without a name.
            self._callbacks.services_offered((NAMELESS,))

    def data_received(self, data: Bytes) -> None:
        try:
            for event in self._session.receive(data):
                self._handle(event)
        except ProtocolError as error:
            if self._link is not None:
                self._link.fail(LinkLost(f"the far end broke the protocol: it sent {error}"))
        self._send_output()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            local = self.connections.get(event.connection)
            if local is not None:
                local.deliver(event.payload)
                self._flow_control.delivered(local, len(event.payload))
        elif isinstance(event, ConnectionClosed):
            local = self.connections.get(event.connection)
            if local is not None:
                self._finish(event.connection, local)
        elif isinstance(event, ConnectionRequested):
            self._callbacks.connection_requested(event.connection)
        elif isinstance(event, ServicesOffered):
            self._callbacks.services_offered(event.service_ids)
        elif isinstance(event, PeerVersionFound):
            self._callbacks.peer_version_found(event.version)

    def link_writable(self) -> None:
        link = self._link
        while self._waiting and link is not None and link.writable:
            # Several turns in one WebSocket message: with 8 connections that halves the work.
            gathered, most = 0, link.turn
            while self._waiting and gathered < min(GATHER, most):
                local = self._waiting.popleft()
                gathered += self._take_turn(local, min(TURN, most) if self._waiting else most)
            self._send_output()

    def link_down(self) -> None:
        self._link = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._waiting.clear()
        self._flow_control.link_down()
        for connection, local in list(self.connections.items()):
            self._finish(connection, local)

    # What the local sockets report.

    def local_ready(self, local: LocalSocket) -> None:
        if local not in self._names or local in self._waiting:
            return
        if not self._waiting and self._link is not None and self._link.writable:
            # No connection is ahead of it, so its data can be sent without a copy.
            self._take_turn(local, self._link.turn)
            self._send_output()
        else:
            self._waiting.append(local)
        if self._waiting:
            self.link_writable()

    def local_full(self, local: LocalSocket) -> None:
        self._flow_control.full(local)

    def local_drained(self, local: LocalSocket) -> None:
        self._flow_control.drained(local)

    def _look_for_lost_peers(self) -> None:
        """Reset the connections whose peer has vanished without a word while data was on its way there."""
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look_for_lost_peers) if self.connections else None
        for connection, local in list(self.connections.items()):
            seconds = local.unanswered_seconds
            if seconds >= LOST_SECONDS:
                log.warning("%s: reset, because its peer has acknowledged nothing for %.0f s", connection, seconds)
                self.reset(connection)

    def _peer_stalled(self, local: LocalSocket, seconds: float) -> None:
        connection = self._names.get(local)
        log.warning(
            "%s: reset, because its peer does not read: %d bytes have waited for %.0f s (--stall-seconds)",
            connection or "a connection that is closing",
            local.unwritten,
            seconds,
        )
        if connection is not None:
            self.reset(connection)
        else:
            local.abort()

    def _take_turn(self, local: LocalSocket, most: int) -> int:
        """Frame what a connection may send now, and return how many bytes that are."""
        connection = self._names.get(local)
        if connection is None:
            return 0
        data: Bytes = b""
        if local.pending:
            data = local.take(most)
            self._session.send(connection, data)
        if local.pending:
            self._waiting.append(local)
        elif local.ended:
            self._session.close(connection)
            self._finish(connection, local)
        return len(data)

    def _finish(self, connection: Connection, local: LocalSocket) -> None:
        self._forget(connection, local)
        local.finish()
        self._flow_control.closing(local)

    def _forget(self, connection: Connection, local: LocalSocket) -> None:
        del self.connections[connection]
        del self._names[local]
        self._callbacks.connection_ended(connection, local)

    def _send_output(self) -> None:
        pieces = self._session.data_to_send()
        if pieces and self._link is not None:
            self._link.send(pieces)
