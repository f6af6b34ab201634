# SPDX-License-Identifier: Apache-2.0
"""The state machine of one end of a tunnel: bytes and calls in, events and bytes out.

A :class:`Session` lasts as long as one WebSocket connection. It tracks which streams and connections are live, encodes
messages for what the proxy does with its local sockets, and turns messages of the far end into events. It stores no
application data.

Streams and connections (V3): the first connection of a service starts a *stream*. All further connections join it, even
if it has none left. A new stream starts only after the old one has been reset, because the reference does not accept a
second STREAM_START of a service before that. A destination that has replaced another one does not know its streams: it
treats a CONNECTION_START as the start of the stream, as the reference does.

Versions: V1 messages name no service, because the tunnel has only one. V2 adds the service ID, and V3 the connection
ID, which allows a service to have many connections. A destination answers each source in the version that the source
began with. A source speaks the configured version. Without one, it detects the version for each stream: until the far
end has shown that it speaks V3, the source sends only messages that V1 and V2 also have: STREAM_START, DATA and
STREAM_RESET. The reference of V1 and V2 exits when it receives a CONNECTION_START.

Source: V1, V2 and V3WebSocketProtocolGuide.md of the reference local proxy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from .decoder import Decoder
from .framing import Bytes, Message, ProtocolError, head

__all__ = [
    "MAX_SERVICES",
    "NAMELESS",
    "SUBPROTOCOLS",
    "Connection",
    "ConnectionClosed",
    "ConnectionRequested",
    "DataReceived",
    "Event",
    "Mode",
    "PeerVersionFound",
    "ServicesOffered",
    "Session",
    "Version",
    "version_of",
]

NAMELESS = ""
"""The service ID of the only service of a tunnel that was opened without services."""

MAX_SERVICES = 1000
"""How many services a session tracks: more than any tunnel has. This bounds the memory that a far end can consume."""

_HIGHEST_STREAM_ID = 2**31 - 1
_FIRST_CONNECTION_ID = 1
_ABOUT_A_STREAM = frozenset(
    (
        Message.DATA,
        Message.STREAM_START,
        Message.STREAM_RESET,
        Message.CONNECTION_START,
        Message.CONNECTION_RESET,
    )
)
_OF_V3 = frozenset((Message.CONNECTION_START, Message.CONNECTION_RESET))


class Version(enum.IntEnum):
    """Versions of the protocol."""

    V1 = 1
    V2 = 2
    V3 = 3

    def __str__(self) -> str:
        return self.name


SUBPROTOCOLS = {version: f"aws.iot.securetunneling-{version.value}.0" for version in sorted(Version, reverse=True)}
"""The WebSocket subprotocol of each version, newest first."""


def version_of(subprotocol: str) -> Version:
    """Return the version of a WebSocket subprotocol.

    Raises:
        KeyError: it is not in :data:`SUBPROTOCOLS`.
    """
    return {name: version for version, name in SUBPROTOCOLS.items()}[subprotocol]


class Mode(enum.Enum):
    """The two ends of a tunnel. The values are those of the handshake's ``local-proxy-mode``."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def other(self) -> Mode:
        """The other end."""
        return Mode.DESTINATION if self is Mode.SOURCE else Mode.SOURCE


class Connection(NamedTuple):
    """Identifies one TCP connection within a tunnel."""

    service_id: str
    stream_id: int
    connection_id: int

    def __str__(self) -> str:
        return f"{self.service_id or '(nameless)'} stream {self.stream_id} connection {self.connection_id}"


class ServicesOffered(NamedTuple):
    """The service has sent the service IDs of this tunnel."""

    service_ids: tuple[str, ...]


class ConnectionRequested(NamedTuple):
    """The source has opened a connection. Only a destination gets this event."""

    connection: Connection


class DataReceived(NamedTuple):
    """Data for the local socket of a connection."""

    connection: Connection
    payload: Bytes


class ConnectionClosed(NamedTuple):
    """The far end or the service has closed a connection. All its data was in earlier events."""

    connection: Connection


class PeerVersionFound(NamedTuple):
    """A source has learned which version the destination speaks: from its first message and, if no version was
    configured, from the first message in each stream.

    If the destination answers in V1, the source continues in the newer version: the destination has understood the
    newer messages, and the service does not allow mixing messages with and without a service ID.
    """

    version: Version


Event = Union[ServicesOffered, ConnectionRequested, DataReceived, ConnectionClosed, PeerVersionFound]


@dataclass
class _Stream:
    """The stream of one service."""

    stream_id: int
    version: Version
    """The version of this end's messages about this stream."""
    newest: int = _FIRST_CONNECTION_ID
    live: dict[int, bytes] = field(default_factory=dict)
    """Its live connections: the encoding of a data message without its payload, by connection ID."""
    heard: bool = False
    """Whether the far end has shown its version in this stream."""
    asked: int | None = None
    """The connection ID of the query for its version."""
    over: bool = False
    """Whether it has been reset: the next connection starts a new stream."""
    reset: bool = False
    """Whether this end sent the reset."""

    def add(self, connection: Connection) -> None:
        """Add a live connection."""
        self.live[connection.connection_id] = _encode(Message.DATA, connection, self.version)


class Session:
    """One end's view of the tunnel, over one WebSocket connection.

    Args:
        mode: which end this is.
        version: the version that a source speaks. A destination adapts to its source, up to this version.
        sole_service: the service that messages without a service ID belong to.
        first_stream_id: the ID of a source's first stream. Messages that the far end sent before it noticed the loss of
            the last WebSocket connection may still arrive. To distinguish them from those of new streams, pass the
            :attr:`next_stream_id` of the last session.
        probing: whether a source has to detect whether the far end speaks an older version.
    """

    def __init__(
        self,
        mode: Mode,
        version: Version = Version.V3,
        sole_service: str = NAMELESS,
        first_stream_id: int = 1,
        *,
        probing: bool = False,
    ) -> None:
        self.mode = mode
        self.version = version
        self._probing = probing
        self.sole_service: str | None = sole_service
        """None if the tunnel has several services."""
        self._before_first_stream_id = first_stream_id - 1
        self._peer_version: Version | None = None
        self._decoder = Decoder()
        self._latest: Message | None = None
        """The latest data message. The decoder returns the same object for the next message of its connection."""
        self._latest_connection = Connection(NAMELESS, 0, 0)
        self._streams: dict[str, _Stream] = {}
        self._output: list[Bytes] = []

    # Actions of the proxy.

    @property
    def next_stream_id(self) -> int:
        """The lowest stream ID that this session has not used."""
        latest = max((stream.stream_id for stream in self._streams.values()), default=self._before_first_stream_id)
        return latest % _HIGHEST_STREAM_ID + 1

    def can_open(self, service_id: str) -> bool:
        """Whether a service can have another connection now."""
        stream = self._streams.get(service_id)
        return stream is None or not stream.live or self._takes_more(stream)

    def is_undecided(self, service_id: str) -> bool:
        """Whether the far end may still turn out to accept more than the one connection that a service has."""
        stream = self._streams.get(service_id)
        return stream is not None and bool(stream.live) and self._is_unheard(stream)

    def open(self, service_id: str) -> Connection:
        """Open a connection to a service of the far end; only for a source. Data may be sent immediately."""
        if self.mode is not Mode.SOURCE:
            raise RuntimeError("only a source opens connections")
        stream = self._streams.get(service_id)
        if stream is not None and self._takes_more(stream):
            stream.newest += 1
            kind = Message.CONNECTION_START
        elif stream is not None and stream.live:
            raise RuntimeError(f"{stream.version} has one connection per service")
        else:
            stream = self._new_stream(service_id, stream)
            kind = Message.STREAM_START
        connection = Connection(service_id, stream.stream_id, stream.newest)
        stream.add(connection)
        self._send(kind, connection, stream.version)
        return connection

    def ask_version(self, service_id: str) -> None:
        """Ask an undecided far end whether it speaks V3.

        The query is the start of a connection and its reset, in messages that are marked as ignorable, so that a V1 or
        V2 far end ignores them. A V3 far end answers with a reset: the reference after it has closed the local
        connection that it made; this package without making one.
        """
        stream = self._streams.get(service_id)
        if stream is not None and stream.asked is None and self.is_undecided(service_id):
            stream.newest += 1
            stream.asked = stream.newest
            connection = Connection(service_id, stream.stream_id, stream.asked)
            for kind in (Message.CONNECTION_START, Message.CONNECTION_RESET):
                self._send(kind, connection, Version.V3, ignorable=True)

    def send(self, connection: Connection, payload: Bytes) -> None:
        """Send data. Does nothing if the connection is closed.

        Args:
            payload: :data:`~.framing.MAX_PAYLOAD` bytes or less. They are not copied: call :meth:`data_to_send` before
                they change.
        """
        if self.is_live(connection):
            stream = self._streams[connection.service_id]
            self._output += (head(stream.live[connection.connection_id], len(payload)), payload)

    def close(self, connection: Connection) -> None:
        """Close a connection. Does nothing if it is closed already."""
        if self.is_live(connection):
            stream = self._streams[connection.service_id]
            del stream.live[connection.connection_id]
            alone = stream.version is Version.V3 and not self._is_unheard(stream)
            self._send(Message.CONNECTION_RESET if alone else Message.STREAM_RESET, connection, stream.version)
            stream.over = stream.reset = not alone

    def is_live(self, connection: Connection) -> bool:
        """Whether a connection is open: neither end has closed it."""
        stream = self._streams.get(connection.service_id)
        return (
            stream is not None and stream.stream_id == connection.stream_id and connection.connection_id in stream.live
        )

    def data_to_send(self) -> list[Bytes]:
        """Return the data for the far end since the last call, in parts of any size."""
        pieces, self._output = self._output, []
        return pieces

    # Actions of the far end.

    def receive(self, data: Bytes) -> Iterator[Event]:
        """Yield the events in the payload of a WebSocket message. Consume the iterator before the next call.

        Raises:
            ProtocolError: the far end has broken the protocol. The events before that have been yielded.
        """
        for message, payload, _ in self._decoder.decode(data):
            if message is self._latest and self.is_live(self._latest_connection):
                yield DataReceived(self._latest_connection, payload)
            else:
                yield from self._receive(message, payload)

    def _receive(self, message: Message, payload: Bytes) -> Iterator[Event]:
        kind = message.type
        if kind in _ABOUT_A_STREAM:
            yield from self._receive_about(kind, message, payload)
        elif kind == Message.SESSION_RESET:
            for service_id in list(self._streams):
                yield from self._end_stream(service_id)
        elif kind == Message.SERVICE_IDS:
            offered = tuple(message.availableServiceIds)
            self._latest = None
            self.sole_service = offered[0] if len(offered) == 1 else (None if offered else NAMELESS)
            yield ServicesOffered(offered)
        elif not message.ignorable:
            raise ProtocolError(f"a message of the unknown type {kind}, which may not be ignored")

    def _receive_about(self, kind: Message.Type, message: Message, payload: Bytes) -> Iterator[Event]:
        if message.streamId == 0:
            raise ProtocolError("a message about a stream with the stream ID 0")
        starts = kind in (Message.STREAM_START, Message.CONNECTION_START)
        if starts and self.mode is Mode.SOURCE:
            raise ProtocolError("a start of a stream or a connection, which only a source may send")
        if message.ignorable and self.version is not Version.V3 and kind in _OF_V3:
            return
        if self.mode is Mode.SOURCE:
            yield from self._find_peer_version(kind, message)
        connection = self._identify(message)
        if kind == Message.STREAM_START:
            yield from self._stream_started(connection, min(_message_version(message), self.version))
        elif kind == Message.CONNECTION_START:
            yield from self._connection_started(connection, is_question=message.ignorable)
        elif kind == Message.STREAM_RESET:
            stream = self._streams.get(connection.service_id)
            if stream is not None and stream.stream_id == connection.stream_id:
                yield from self._end_stream(connection.service_id)
        elif self.is_live(connection):
            if kind == Message.DATA:
                self._latest, self._latest_connection = message, connection
                yield DataReceived(connection, payload)
            else:
                del self._streams[connection.service_id].live[connection.connection_id]
                yield ConnectionClosed(connection)
        elif kind == Message.DATA and self.mode is Mode.DESTINATION and connection.service_id not in self._streams:
            # It was meant for a destination that this one has replaced. Without a reset, the source would wait.
            version = _message_version(message)
            kind = Message.CONNECTION_RESET if version is Version.V3 else Message.STREAM_RESET
            self._send(kind, connection, version)

    def _identify(self, message: Message) -> Connection:
        service_id = message.serviceId or self.sole_service
        if self.version is Version.V1 or (not message.serviceId and self.sole_service is not None):
            service_id = self.sole_service
        if service_id is None:
            raise ProtocolError(
                "a message without a service ID, as V1 has them, though this tunnel has several services"
            )
        return Connection(service_id, message.streamId, message.connectionId or _FIRST_CONNECTION_ID)

    def _find_peer_version(self, kind: Message.Type, message: Message) -> Iterator[Event]:
        """Learn the destination's version from its data, a reset in V1, or the answer to :meth:`ask_version`.

        Other resets may come from the service. To a source that speaks V1, those look like the destination's.
        """
        service_id = self.sole_service if self.version is Version.V1 else message.serviceId or self.sole_service
        stream = self._streams.get(service_id) if service_id is not None else None
        if stream is not None and stream.stream_id != message.streamId:
            stream = None
        if stream is not None and stream.heard:
            return
        version = _message_version(message)
        if kind == Message.CONNECTION_RESET and version is Version.V3:
            if stream is None or not stream.live or message.connectionId != stream.asked:
                return
        elif kind != Message.DATA and (version is not Version.V1 or self.version is Version.V1):
            return
        news = self._peer_version is None
        self._peer_version = self._peer_version or version
        if stream is not None:
            stream.heard = True
            news = news or self._probing
            if version is not Version.V3 and stream.version is Version.V3:
                self._fall_back(stream)
        if news:
            yield PeerVersionFound(version)

    def _fall_back(self, stream: _Stream) -> None:
        """Continue in V2: in this stream, or in all streams if the source was configured to speak V3."""
        if not self._probing:
            self.version = Version.V2
        for service_id, each in self._streams.items():
            if each is stream or not self._probing:
                each.version = Version.V2
                for connection_id in each.live:
                    each.add(Connection(service_id, each.stream_id, connection_id))

    def _takes_more(self, stream: _Stream) -> bool:
        return not stream.over and stream.version is Version.V3 and not self._is_unheard(stream)

    def _is_unheard(self, stream: _Stream) -> bool:
        """Whether the far end may speak an older version than this end's messages."""
        return self._probing and not stream.heard and stream.version is Version.V3

    def _new_stream(self, service_id: str, before: _Stream | None) -> _Stream:
        if before is None:
            stream = _Stream(self._before_first_stream_id % _HIGHEST_STREAM_ID + 1, self.version)
        else:
            if before.version is Version.V3 and not before.reset:
                # A destination that has just connected may have received a start of the old stream, and the reference
                # then ignores a STREAM_START.
                self._send(Message.STREAM_RESET, Connection(service_id, before.stream_id, before.newest), Version.V3)
            stream = _Stream(before.stream_id % _HIGHEST_STREAM_ID + 1, self.version)
        self._streams[service_id] = stream
        return stream

    def _stream_started(self, connection: Connection, version: Version) -> Iterator[Event]:
        if len(self._streams) >= MAX_SERVICES and connection.service_id not in self._streams:
            raise ProtocolError(f"starts of streams for more than {MAX_SERVICES} services")
        yield from self._end_stream(connection.service_id)
        stream = _Stream(connection.stream_id, version)
        stream.add(connection)
        self._streams[connection.service_id] = stream
        yield ConnectionRequested(connection)

    def _connection_started(self, connection: Connection, *, is_question: bool) -> Iterator[Event]:
        stream = self._streams.get(connection.service_id)
        if is_question:
            self._send(Message.CONNECTION_RESET, connection, Version.V3)
        elif stream is None or stream.over or stream.stream_id != connection.stream_id:
            yield from self._stream_started(connection, self.version)
        elif connection.connection_id in stream.live:
            # The reset closes the live connection at the source: close it here too.
            self.close(connection)
            yield ConnectionClosed(connection)
        else:
            stream.add(connection)
            yield ConnectionRequested(connection)

    def _end_stream(self, service_id: str) -> Iterator[Event]:
        stream = self._streams.get(service_id)
        if stream is not None:
            stream.over = True
            live, stream.live = sorted(stream.live), {}
            for connection_id in live:
                yield ConnectionClosed(Connection(service_id, stream.stream_id, connection_id))

    def _send(self, kind: Message.Type, connection: Connection, version: Version, *, ignorable: bool = False) -> None:
        self._output.append(head(_encode(kind, connection, version, ignorable=ignorable)))


def _encode(kind: Message.Type, connection: Connection, version: Version, *, ignorable: bool = False) -> bytes:
    """Encode a message about a connection, without a payload."""
    message = Message(type=kind, streamId=connection.stream_id, ignorable=ignorable)
    if version is not Version.V1:
        message.serviceId = connection.service_id
    if version is Version.V3:
        message.connectionId = connection.connection_id
    encoded: bytes = message.SerializeToString()
    return encoded


def _message_version(message: Message) -> Version:
    """The version of a message about a stream, from the fields that it has."""
    if message.connectionId:
        # In a tunnel without services, AWS's reference 3.3 sends a connection ID and no service ID.
        return Version.V3
    return Version.V2 if message.serviceId else Version.V1
