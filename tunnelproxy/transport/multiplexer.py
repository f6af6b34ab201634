# SPDX-License-Identifier: Apache-2.0
"""Many local connections over one link: fair turns outwards, bounded buffers inwards.

Outwards, a local socket hands over at most one message's worth and is not read again before that is sent; while more
than one socket has data, each gets a turn and a small chunk. Inwards, a local peer that does not read fills a buffer of
its own first, then slows the tunnel down, and is reset alone when it makes no progress for a while (see slow_peers).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from ..protocol.framing import MAX_PAYLOAD, Bytes, ProtocolError
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
from .link import Link, LinkLost
from .local import LocalSocket
from .slow_peers import STALL_SECONDS, SlowPeers

__all__ = ["Multiplexer", "MultiplexerOwner"]

log = logging.getLogger(__name__)

TURN = 16 * 1024
"""Bytes that a connection may send in one turn while others wait."""

GATHER = 3 * TURN
"""Bytes of turns that make a WebSocket message, if that many wait. No more than one connection may send in one message,
so that a keystroke waits no longer beside several than beside one."""

SILENCE_SECONDS = 5.0
"""How long a far end of unknown version may leave what was asked unanswered before it is taken for an older one."""

REMEMBER = 64 * 1024
"""Bytes that a connection may send to a far end of unknown version; they are kept, to be sent again in another one."""


class MultiplexerOwner(Protocol):
    """Whom a multiplexer tells what the far end wants: a proxy."""

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        """The service named what the tunnel carries."""

    def connection_requested(self, connection: Connection) -> None:
        """A source asks for a connection; answer with :meth:`Multiplexer.join` or :meth:`Multiplexer.refuse`."""

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        """A connection is over, whoever ended it."""

    def peer_version_found(self, version: Version) -> None:
        """The far end showed which version it speaks."""

    def peer_silent(self, *, asked: bool) -> None:
        """Nothing at all has come from the far end for :data:`SILENCE_SECONDS`, though a connection is open.

        Args:
            asked: whether it should have: browsers also connect ahead, and ask nothing yet.
        """


class Multiplexer:
    """Joins local sockets to the streams of one link. It lives as long as that link, and is the link's receiver.

    Args:
        version: what a source speaks, unless the handshake agrees on an older one.
        probing: whether the far end may speak an older version than that. Until it has answered, and where it may be
            of V1, connections send little, and that is kept, so that :meth:`carry_over` can take them to another link.
        first_stream_id: as for :class:`Session`.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
    """

    def __init__(
        self,
        mode: Mode,
        owner: MultiplexerOwner,
        *,
        version: Version = Version.V3,
        probing: bool = False,
        first_stream_id: int = 1,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.connections: dict[Connection, LocalSocket] = {}
        self._session = Session(mode, version, first_stream_id=first_stream_id)
        self._probing = probing
        self._remembering = probing
        self._silence: asyncio.TimerHandle | None = None
        self._abandoned = False
        self._owner = owner
        self._slow_peers = SlowPeers(self._peer_stalled, stall_seconds)
        self._link: Link | None = None
        self._names: dict[LocalSocket, Connection] = {}
        self._waiting: deque[LocalSocket] = deque()
        self._parked: list[LocalSocket] = []
        """Those that may send no more before the far end has answered."""
        self._loop = asyncio.get_running_loop()

    # What the proxy does.

    @property
    def version(self) -> Version:
        """What a source speaks now."""
        return self._session.version

    @property
    def next_stream_id(self) -> int:
        """The stream ID for the next link to begin with."""
        return self._session.next_stream_id

    @property
    def probing(self) -> bool:
        """Whether it is still to be seen which version the far end speaks."""
        return self._probing

    def is_idle(self, service_id: str) -> bool:
        """Whether a service has no connection. A far end of V1 or V2 can have one at a time."""
        return self._session.is_idle(service_id)

    def open(self, service_id: str, local: LocalSocket) -> Connection:
        """Open a connection to a service of the far end for a local socket."""
        self._expect_answer()
        connection = self._session.open(service_id)
        self._send_output()
        self.join(connection, local)
        return connection

    def join(self, connection: Connection, local: LocalSocket) -> None:
        """Give a connection that was opened, or asked for, its local socket; it may still be connecting."""
        self.connections[connection] = local
        self._names[local] = connection
        if local.pending or local.ended:
            self.local_ready(local)

    def refuse(self, connection: Connection) -> None:
        """Reset a connection that the source asked for."""
        self._session.close(connection)
        self._send_output()

    def reset(self, connection: Connection) -> None:
        """End a connection at once, at both ends."""
        local = self.connections.get(connection)
        self.refuse(connection)
        if local is not None:
            self._forget(connection, local)
            local.abort()

    def stop_probing(self) -> None:
        """Take the far end's version for known."""
        self._probing = self._remembering = False
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        for local in self.connections.values():
            local.remembered = b""
        self._waiting.extend(self._parked)
        self._parked.clear()
        self.link_writable()

    def carry_over(self) -> list[tuple[str, LocalSocket]]:
        """Give up this link: return the connections that nothing has come for yet, ready to begin anew.

        The others end.
        """
        self._abandoned = True
        self._waiting.clear()
        carried = []
        for connection, local in list(self.connections.items()):
            if local.bytes_out or not self._remembering:
                self._finish(connection, local)
            else:
                del self.connections[connection]
                del self._names[local]
                local.owner = None
                local.rewind()
                carried.append((connection.service_id, local))
        self.stop_probing()
        return carried

    # What the link reports.

    def link_up(self, link: Link) -> None:
        self._link = link
        self._slow_peers.link_up(link)
        self._session.version = min(self._session.version, link.version)
        if link.version is Version.V1:
            # The service names nothing to V1: there is one service, and it has no name.
            self._owner.services_offered((NAMELESS,))

    def data_received(self, data: Bytes) -> None:
        try:
            for event in self._session.receive(data):
                self._handle(event)
                if self._abandoned:
                    return
        except ProtocolError as error:
            if self._link is not None:
                self._link.fail(LinkLost(f"the far end broke the protocol: it sent {error}"))
        self._send_output()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            local = self.connections.get(event.connection)
            if local is not None:
                local.deliver(event.payload)
                self._slow_peers.delivered(local, len(event.payload))
        elif isinstance(event, ConnectionClosed):
            local = self.connections.get(event.connection)
            if local is not None:
                self._finish(event.connection, local)
        elif isinstance(event, ConnectionRequested):
            self._owner.connection_requested(event.connection)
        elif isinstance(event, ServicesOffered):
            # A tunnel with several services has no far end of V1, and V2 understands how a V3 stream starts.
            self._remembering = self._probing and len(event.service_ids) <= 1
            self._owner.services_offered(event.service_ids)
        elif isinstance(event, PeerVersionFound):
            self._owner.peer_version_found(event.version)
            if not self._abandoned:
                self.stop_probing()

    def link_writable(self) -> None:
        link = self._link
        while self._waiting and link is not None and link.writable:
            # Several turns in one WebSocket message: with 8 connections that halves the work.
            gathered = 0
            while self._waiting and gathered < GATHER:
                local = self._waiting.popleft()
                gathered += self._take_turn(local, TURN if self._waiting else MAX_PAYLOAD)
            self._send_output()

    def link_down(self) -> None:
        self._link = None
        self.stop_probing()
        self._waiting.clear()
        self._slow_peers.link_down()
        for connection, local in list(self.connections.items()):
            self._finish(connection, local)

    # What the local sockets report.

    def local_ready(self, local: LocalSocket) -> None:
        if local not in self._names or local in self._waiting or local in self._parked:
            return
        if not self._waiting and self._link is not None and self._link.writable:
            # Nobody is before it, and what it has need not be kept.
            self._take_turn(local, MAX_PAYLOAD)
            self._send_output()
        else:
            self._waiting.append(local)
        if self._waiting:
            self.link_writable()

    def local_full(self, local: LocalSocket) -> None:
        self._slow_peers.full(local)

    def local_drained(self, local: LocalSocket) -> None:
        self._slow_peers.drained(local)

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
        if self._remembering:
            most = min(most, REMEMBER - len(local.remembered))
        if local.pending and most:
            if not local.bytes_in:
                self._expect_answer()
            data = local.take(most, remember=self._remembering)
            self._session.send(connection, data)
        if local.pending:
            (self._waiting if most else self._parked).append(local)
        elif local.ended:
            self._session.close(connection)
            self._finish(connection, local)
        return len(data)

    def _expect_answer(self) -> None:
        """Begin to wait for the first answer: when a connection is opened, and anew when it first asks something."""
        if self._silence is not None:
            self._silence.cancel()
        if self._probing:
            self._silence = self._loop.call_later(SILENCE_SECONDS, self._fell_silent)

    def _fell_silent(self) -> None:
        self._silence = None
        if self._probing and self.connections:
            asked = any(local.awaits_answer or local.bytes_in for local in self.connections.values())
            self._owner.peer_silent(asked=asked)

    def _finish(self, connection: Connection, local: LocalSocket) -> None:
        self._forget(connection, local)
        local.finish()
        self._slow_peers.closing(local)

    def _forget(self, connection: Connection, local: LocalSocket) -> None:
        del self.connections[connection]
        del self._names[local]
        self._owner.connection_ended(connection, local)

    def _send_output(self) -> None:
        pieces = self._session.data_to_send()
        if pieces and self._link is not None:
            self._link.send(pieces)
