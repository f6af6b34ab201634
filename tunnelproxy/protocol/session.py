# SPDX-License-Identifier: Apache-2.0
"""The state machine of one end of a tunnel: bytes and calls in, events and bytes out.

A :class:`Session` lives as long as one WebSocket connection. It knows which streams and connections are alive, makes
the messages for what the proxy does with its local sockets, and turns what the far end sends into events. It holds no
data of the application: what it is given it frames, what it receives it hands over.

Streams and connections (V3): the first connection of a service starts a *stream*, and further ones join it while one of
them lives. When the last has ended, the next connection starts a new stream: a far end that was replaced meanwhile, and
so never heard of the old stream, answers all the same.

Source: V3WebSocketProtocolGuide.md of the reference local proxy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from .framing import FrameReader, Message, ProtocolError, frame, parse

__all__ = [
    "SUBPROTOCOLS",
    "Connection",
    "ConnectionClosed",
    "ConnectionRequested",
    "DataReceived",
    "Event",
    "Mode",
    "ServicesOffered",
    "Session",
    "Version",
]

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


class Version(enum.IntEnum):
    """Versions of the protocol. V3 carries many connections per service."""

    V3 = 3


SUBPROTOCOLS = {Version.V3: "aws.iot.securetunneling-3.0"}
"""The WebSocket subprotocol that stands for each version."""


class Mode(enum.Enum):
    """The two ends of a tunnel; the values are those of the handshake's ``local-proxy-mode``."""

    SOURCE = "source"
    DESTINATION = "destination"


class Connection(NamedTuple):
    """Identifies one TCP connection that a tunnel carries."""

    service_id: str
    stream_id: int
    connection_id: int

    def __str__(self) -> str:
        return f"{self.service_id} stream {self.stream_id} connection {self.connection_id}"


class ServicesOffered(NamedTuple):
    """The service named what this tunnel carries."""

    service_ids: tuple[str, ...]


class ConnectionRequested(NamedTuple):
    """The source opened a connection; only a destination sees this."""

    connection: Connection


class DataReceived(NamedTuple):
    """Bytes for the local socket of a connection."""

    connection: Connection
    payload: bytes


class ConnectionClosed(NamedTuple):
    """The far end, or the service, ended a connection. All of its data has been handed over before."""

    connection: Connection


Event = Union[ServicesOffered, ConnectionRequested, DataReceived, ConnectionClosed]


@dataclass
class _Stream:
    """What is alive of one service."""

    stream_id: int
    numbered: bool = True
    """Whether the far end knows connection IDs. One that starts a stream without (V2) is sent none either."""
    newest: int = _FIRST_CONNECTION_ID
    live: set[int] = field(default_factory=set)


class Session:
    """One end's view of the tunnel, over one WebSocket connection.

    Args:
        mode: which end this is.
        version: the version of the protocol that the handshake agreed on.
    """

    def __init__(self, mode: Mode, version: Version = Version.V3) -> None:
        self.mode = mode
        self.version = version
        self._reader = FrameReader()
        self._streams: dict[str, _Stream] = {}
        self._output: list[bytes] = []

    # What the proxy does.

    def open(self, service_id: str) -> Connection:
        """Open a connection to a service of the far end. Data may follow at once; only a source may call this."""
        if self.mode is not Mode.SOURCE:
            raise RuntimeError("only a source opens connections")
        stream = self._streams.get(service_id)
        if stream is not None and stream.live:
            stream.newest += 1
            kind = Message.CONNECTION_START
        else:
            previous = stream.stream_id if stream is not None else 0
            stream = _Stream(previous % _HIGHEST_STREAM_ID + 1)
            self._streams[service_id] = stream
            kind = Message.STREAM_START
        stream.live.add(stream.newest)
        connection = Connection(service_id, stream.stream_id, stream.newest)
        self._send(kind, connection)
        return connection

    def send(self, connection: Connection, payload: bytes) -> None:
        """Send bytes, at most :data:`~.framing.MAX_PAYLOAD` of them. Without effect once the connection has ended."""
        if self.is_live(connection):
            self._send(Message.DATA, connection, payload)

    def close(self, connection: Connection) -> None:
        """End a connection. Without effect if it has ended already."""
        if self.is_live(connection):
            self._streams[connection.service_id].live.discard(connection.connection_id)
            self._send(Message.CONNECTION_RESET, connection)

    def is_live(self, connection: Connection) -> bool:
        """Whether neither end has ended this connection."""
        stream = self._streams.get(connection.service_id)
        return (
            stream is not None and stream.stream_id == connection.stream_id and connection.connection_id in stream.live
        )

    def data_to_send(self) -> bytes:
        """Take the bytes that the calls so far have made for the far end."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    # What the far end does.

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield the events in the payload of one WebSocket message. Consume them all before the next call.

        Raises:
            ProtocolError: the far end broke the protocol; what came before has been yielded.
        """
        for encoded in self._reader.feed(data):
            yield from self._receive(parse(encoded))

    def _receive(self, message: Message) -> Iterator[Event]:
        kind = message.type
        if kind in _ABOUT_A_STREAM:
            yield from self._receive_about(kind, self._identify(message), message)
        elif kind == Message.SESSION_RESET:
            for service_id in list(self._streams):
                yield from self._end_stream(service_id)
        elif kind == Message.SERVICE_IDS:
            yield ServicesOffered(tuple(message.availableServiceIds))
        elif not message.ignorable:
            raise ProtocolError(f"a message of the unknown type {kind}, which may not be ignored")

    def _receive_about(self, kind: Message.Type, connection: Connection, message: Message) -> Iterator[Event]:
        if kind == Message.DATA:
            if self.is_live(connection):
                yield DataReceived(connection, message.payload)
        elif kind == Message.CONNECTION_RESET:
            if self.is_live(connection):
                self._streams[connection.service_id].live.discard(connection.connection_id)
                yield ConnectionClosed(connection)
        elif kind == Message.STREAM_RESET:
            stream = self._streams.get(connection.service_id)
            if stream is not None and stream.stream_id == connection.stream_id:
                yield from self._end_stream(connection.service_id)
        elif self.mode is Mode.SOURCE:
            raise ProtocolError("a start of a stream or a connection, which only a source may send")
        elif kind == Message.STREAM_START:
            yield from self._stream_started(connection, numbered=message.connectionId != 0)
        else:
            yield from self._connection_started(connection)

    def _identify(self, message: Message) -> Connection:
        if message.streamId == 0:
            raise ProtocolError("a message about a stream with the stream ID 0")
        if not message.serviceId:
            raise ProtocolError("a message about a stream without a service ID, as only V1 sends")
        return Connection(message.serviceId, message.streamId, message.connectionId or _FIRST_CONNECTION_ID)

    def _stream_started(self, connection: Connection, *, numbered: bool) -> Iterator[Event]:
        yield from self._end_stream(connection.service_id)
        stream = _Stream(connection.stream_id, numbered=numbered)
        stream.live.add(connection.connection_id)
        self._streams[connection.service_id] = stream
        yield ConnectionRequested(connection)

    def _connection_started(self, connection: Connection) -> Iterator[Event]:
        stream = self._streams.get(connection.service_id)
        if stream is None or stream.stream_id != connection.stream_id:
            self._send(Message.CONNECTION_RESET, connection)
        elif connection.connection_id in stream.live:
            # The reset names the connection that lives, so the source drops it too: end it here as well.
            self.close(connection)
            yield ConnectionClosed(connection)
        else:
            stream.live.add(connection.connection_id)
            yield ConnectionRequested(connection)

    def _end_stream(self, service_id: str) -> Iterator[Event]:
        stream = self._streams.get(service_id)
        if stream is not None:
            live, stream.live = sorted(stream.live), set()
            for connection_id in live:
                yield ConnectionClosed(Connection(service_id, stream.stream_id, connection_id))

    def _send(self, kind: Message.Type, connection: Connection, payload: bytes = b"") -> None:
        message = Message(type=kind, streamId=connection.stream_id, serviceId=connection.service_id, payload=payload)
        stream = self._streams.get(connection.service_id)
        if stream is None or stream.numbered:
            message.connectionId = connection.connection_id
        self._output.append(frame(message))
