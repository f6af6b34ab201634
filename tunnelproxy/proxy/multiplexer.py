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
from typing import Callable, Protocol

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
from .flow_control import STALL_SECONDS, FlowControl
from .link import Link, LinkLost
from .local_socket import LocalSocket

__all__ = ["Multiplexer", "MultiplexerOwner"]

log = logging.getLogger(__name__)

TURN = 16 * 1024
"""Bytes that a connection may send in one turn while others wait."""

GATHER = 3 * TURN
"""Bytes of turns that make a WebSocket message, if that many wait. No more than one connection may send in one message,
so that a keystroke waits no longer beside several than beside one."""

SILENCE_SECONDS = 5.0
"""How long a far end of unknown version may say nothing before it is asked whether it speaks V3."""

OLD_SECONDS = 15.0
"""How long it may say nothing, to that neither, before this is told. The reference answers nothing while it tries to
reach its server, up to five times and 2.5 s apart."""

LOST_SECONDS = 60.0
"""How long a local peer's machine may acknowledge nothing of what it was sent: as long as the kernel gives it where
there is nothing to acknowledge."""

LOOK_SECONDS = 10.0
"""How often to look for those."""

EXPECTED_OLD = 0.2
"""Which part of these is enough for a far end that is expected to speak V1 only: its thing did so before. One that has
become newer answers the question at once."""


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

    def peer_silent(self, service_id: str) -> None:
        """Nothing has come for the connection of a service for :data:`OLD_SECONDS`, nor that the far end speaks V3."""


class Multiplexer:
    """Joins local sockets to the streams of one link. It lives as long as that link, and is the link's receiver.

    Args:
        version: what a source speaks, unless the handshake agrees on an older one.
        probing: whether the far end may speak an older version than that.
        expects_v1: whether it probably speaks V1 only.
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
        expects_v1: bool = False,
        first_stream_id: int = 1,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._retry_policy = EXPECTED_OLD if expects_v1 else 1.0
        self.connections: dict[Connection, LocalSocket] = {}
        self._session = Session(mode, version, first_stream_id=first_stream_id, probing=probing)
        self._silences: dict[str, asyncio.TimerHandle] = {}
        self._abandoned = False
        self._owner = owner
        self._slow_peers = FlowControl(self._peer_stalled, stall_seconds)
        self._link: Link | None = None
        self._names: dict[LocalSocket, Connection] = {}
        self._waiting: deque[LocalSocket] = deque()
        self._parked: list[LocalSocket] = []
        """Those that have something to send, and are held."""
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None

    # What the proxy does.

    @property
    def version(self) -> Version:
        """What a source speaks, where the far end understands it."""
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
        """Whether a service may have a further connection now."""
        return self._session.can_open(service_id)

    def is_undecided(self, service_id: str) -> bool:
        """Whether it is yet to be seen if the far end, which has one connection of a service, can have more."""
        return self._session.is_undecided(service_id)

    def ask_version(self, service_id: str) -> None:
        """Ask a far end that is undecided whether it speaks V3; what it understands no better than V1 it ignores."""
        self._session.ask_version(service_id)
        self._send_output()

    def open(self, service_id: str, local: LocalSocket) -> Connection:
        """Open a connection to a service of the far end for a local socket."""
        connection = self._session.open(service_id)
        self._send_output()
        if self._session.is_undecided(service_id):
            self._expect_answer(connection, SILENCE_SECONDS * self._retry_policy, self._ask_about)
        self.join(connection, local)
        return connection

    def join(self, connection: Connection, local: LocalSocket) -> None:
        """Give a connection that was opened, or asked for, its local socket; it may still be connecting."""
        self.connections[connection] = local
        self._names[local] = connection
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look_for_lost)
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

    def release(self) -> None:
        """Have those that are held send."""
        for local in self.connections.values():
            local.held = False
        self._waiting.extend(self._parked)
        self._parked.clear()
        self.link_writable()

    def carry_over(self) -> list[tuple[str, LocalSocket]]:
        """Give up this link: return the connections that have sent and received nothing, ready for another one.

        The others end.
        """
        self._abandoned = True
        self._waiting.clear()
        self._parked.clear()
        self._forget_silences()
        carried = []
        for connection, local in list(self.connections.items()):
            if local.bytes_in or local.bytes_out:
                self._finish(connection, local)
            else:
                del self.connections[connection]
                del self._names[local]
                local.owner = None
                carried.append((connection.service_id, local))
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
            self._owner.services_offered(event.service_ids)
        elif isinstance(event, PeerVersionFound):
            self._owner.peer_version_found(event.version)
            if not self._abandoned:
                self.release()

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
        self._forget_silences()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._parked.clear()
        self._waiting.clear()
        self._slow_peers.link_down()
        for connection, local in list(self.connections.items()):
            self._finish(connection, local)

    # What the local sockets report.

    def local_ready(self, local: LocalSocket) -> None:
        if local in self._parked and not local.pending:
            # Its peer is gone, and what it had to say with it.
            self._parked.remove(local)
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

    def _look_for_lost(self) -> None:
        """End the connections whose peer has vanished without a word, while something was on its way there."""
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look_for_lost) if self.connections else None
        for connection, local in list(self.connections.items()):
            seconds = local.unanswered_seconds
            if seconds >= LOST_SECONDS:
                log.warning("%s: reset, as its peer has acknowledged nothing for %.0f s", connection, seconds)
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
        if local.pending and not local.held:
            data = local.take(most)
            self._session.send(connection, data)
        if local.pending:
            (self._parked if local.held else self._waiting).append(local)
        elif local.ended:
            self._session.close(connection)
            self._finish(connection, local)
        return len(data)

    def _expect_answer(self, connection: Connection, seconds: float, otherwise: Callable[[Connection], None]) -> None:
        """Wait for the first answer in a stream of a far end of unknown version."""
        self._forget_silence(connection.service_id)
        self._silences[connection.service_id] = self._loop.call_later(seconds, self._silent, connection, otherwise)

    def _silent(self, connection: Connection, otherwise: Callable[[Connection], None]) -> None:
        del self._silences[connection.service_id]
        if self._session.is_live(connection) and self._session.is_undecided(connection.service_id):
            otherwise(connection)

    def _ask_about(self, connection: Connection) -> None:
        self.ask_version(connection.service_id)
        self._expect_answer(connection, (OLD_SECONDS - SILENCE_SECONDS) * self._retry_policy, self._tell_silence)

    def _tell_silence(self, connection: Connection) -> None:
        self._owner.peer_silent(connection.service_id)

    def _forget_silence(self, service_id: str) -> None:
        timer = self._silences.pop(service_id, None)
        if timer is not None:
            timer.cancel()

    def _forget_silences(self) -> None:
        for service_id in list(self._silences):
            self._forget_silence(service_id)

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
