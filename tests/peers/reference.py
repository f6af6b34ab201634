# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination that follows the rules of AWS's reference local proxy, even where they differ from ours.

They are described in PROTOCOL.md, "What real peers do", for the versions 1.1 (V1), 2.1 (V2) and 3.3 (V3), which were
observed at run time. :class:`ReferenceRules` has no I/O; :class:`ReferenceDestination` runs them on a WebSocket and TCP
connections.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed

from tunnelproxy.protocol.framing import FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import Version

from .service import TunnelingService

__all__ = ["Exited", "ReferenceDestination", "ReferenceRules"]


class Exited(Exception):
    """A message makes the reference exit, which uses up its access token."""


@dataclass
class _Service:
    waiting: bool = True
    """Whether the next start opens a stream."""
    stream_id: int = 0
    connections: set[int] = field(default_factory=set)
    names_connections: bool = True


class ReferenceRules:
    """The reaction to each message.

    Args:
        connect: called with the service and the ID of each connection that it opens.
        deliver: called with data for a connection.
        close: called with each connection that it closes.
        send: called with its messages.
    """

    def __init__(
        self,
        version: Version,
        connect: Callable[[str, int], None],
        deliver: Callable[[str, int, bytes], None],
        close: Callable[[str, int], None],
        send: Callable[[Message], None],
    ) -> None:
        self._version = version
        self._connect = connect
        self._deliver = deliver
        self._close = close
        self._send = send
        self._services: dict[str, _Service] = {"": _Service()} if version is Version.V1 else {}
        self._deaf = False

    def receive(self, message: Message) -> None:
        """Act on a message.

        Raises:
            Exited: the reference exits.
        """
        if self._deaf:
            return
        kind, name = message.type, "" if self._version is Version.V1 else message.serviceId
        if self._version is Version.V2 and len(self._services) == 1:
            # As 2.1 to 3.0 do, whatever the message names; 3.1 and newer do not.
            (name,) = self._services
        known = {Message.DATA, Message.STREAM_START, Message.STREAM_RESET, Message.SESSION_RESET, Message.SERVICE_IDS}
        if self._version is Version.V3:
            known |= {Message.CONNECTION_START, Message.CONNECTION_RESET}
        if kind not in known:
            if not message.ignorable:
                raise Exited(f"an unrecognized message type: {kind}")
        elif kind == Message.SERVICE_IDS:
            for each in message.availableServiceIds:
                self._services.setdefault(each, _Service())
        elif name not in self._services:
            if kind == Message.STREAM_START:
                raise Exited(f"a start before the service IDs, or of a service that it does not know: {name!r}")
            # SESSION_RESET names no service: the reference stops reading.
            self._deaf = kind not in (Message.DATA, Message.STREAM_RESET)
        else:
            self._act(name, self._services[name], message)

    def _act(self, name: str, service: _Service, message: Message) -> None:
        kind, connection_id = message.type, message.connectionId if self._version is Version.V3 else 0
        if kind in (Message.DATA, Message.STREAM_RESET) and message.streamId != service.stream_id:
            return
        if kind == Message.DATA:
            if connection_id in service.connections:
                self._deliver(name, connection_id, message.payload)
        elif kind in (Message.STREAM_START, Message.CONNECTION_START):
            self._start(name, service, message, connection_id)
        elif kind == Message.CONNECTION_RESET:
            if connection_id in service.connections:
                # It stops reading from its server, treats that as the end, and reports it.
                self._close(name, connection_id)
                self.server_closed(name, connection_id)
        else:
            self._reset(name, service)

    def _start(self, name: str, service: _Service, message: Message, connection_id: int) -> None:
        if service.waiting:
            service.waiting = False
            service.stream_id = message.streamId
            service.names_connections = bool(connection_id)
        elif message.type == Message.STREAM_START:
            # A second one in a live stream is dropped, and closes that stream if its ID differs.
            if message.streamId != service.stream_id:
                self._reset(name, service)
            if self._version is Version.V1:
                service.stream_id = message.streamId
            return
        service.connections.add(connection_id)
        self._connect(name, connection_id)

    def _reset(self, name: str, service: _Service) -> None:
        service.waiting = True
        for connection_id in sorted(service.connections):
            self._close(name, connection_id)
        service.connections.clear()

    def server_said(self, name: str, connection_id: int, data: bytes) -> None:
        """The server has sent data."""
        if connection_id in self._services[name].connections:
            self._send(self._about(Message.DATA, name, connection_id, data))

    def server_closed(self, name: str, connection_id: int) -> None:
        """The server has closed a connection."""
        service = self._services[name]
        if connection_id in service.connections:
            service.connections.discard(connection_id)
            kind = Message.CONNECTION_RESET if service.names_connections else Message.STREAM_RESET
            self._send(self._about(kind, name, connection_id))
            service.waiting = service.waiting or kind == Message.STREAM_RESET

    def _about(self, kind: Message.Type, name: str, connection_id: int, payload: bytes = b"") -> Message:
        stream_id = self._services[name].stream_id
        return Message(type=kind, streamId=stream_id, serviceId=name, connectionId=connection_id, payload=payload)


class ReferenceDestination:
    """Runs such a destination in a thread, in front of TCP servers on the loopback.

    Args:
        ports: the servers' ports, by service.
        drops_newer: whether it ignores messages that name a service, like AWS IoT Device Client.
    """

    def __init__(
        self,
        service: TunnelingService,
        token: str,
        ports: Mapping[str, int],
        version: Version,
        *,
        drops_newer: bool = False,
    ) -> None:
        self._ports = ports
        self._drops_newer = drops_newer
        self._version = version
        self._todo: queue.Queue[Callable[[], None]] = queue.Queue()
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._rules = ReferenceRules(version, self._connect, self._deliver, self._close, self._send)
        self._connection: Any = service.connect("destination", token, version=version.value)
        self._stopped = False
        self.exited: Exited | None = None

    def __enter__(self) -> ReferenceDestination:
        self._websocket = self._connection.__enter__()
        for run in (self._read, self._work):
            threading.Thread(target=run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Disconnect immediately, as if killed."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._websocket.socket.shutdown(socket.SHUT_RDWR)
        self._connection.__exit__(None, None, None)
        for sock in list(self._sockets.values()):
            sock.close()

    def _messages(self) -> Iterator[Message]:
        reader = FrameReader()
        for data in self._websocket:
            for encoded in reader.feed(data):
                yield parse(encoded)

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            self._read_until_closed()

    def _read_until_closed(self) -> None:
        for message in self._messages():
            if not (self._drops_newer and message.serviceId):
                self._todo.put(lambda message=message: self._rules.receive(message))  # type: ignore[misc]

    def _work(self) -> None:
        while not self._stopped:
            try:
                self._todo.get()()
            except Exited as exited:
                self.exited = exited
                self.stop()
            except (OSError, ConnectionClosed):
                pass  # a server or the service is gone

    def _connect(self, name: str, connection_id: int) -> None:
        port = self._ports[name] if name else next(iter(self._ports.values()))
        sock = socket.create_connection(("127.0.0.1", port))
        self._sockets[name, connection_id] = sock

        def read() -> None:
            data = b"-"
            while data:
                try:
                    data = sock.recv(65536)
                except OSError:
                    data = b""
                self._todo.put(lambda data=data: self._said(name, connection_id, sock, data))  # type: ignore[misc]

        threading.Thread(target=read, daemon=True).start()

    def _said(self, name: str, connection_id: int, sock: socket.socket, data: bytes) -> None:
        if self._sockets.get((name, connection_id)) is not sock:
            return
        if data:
            self._rules.server_said(name, connection_id, data)
        else:
            self._close(name, connection_id)
            self._rules.server_closed(name, connection_id)

    def _deliver(self, name: str, connection_id: int, data: bytes) -> None:
        self._sockets[name, connection_id].sendall(data)

    def _close(self, name: str, connection_id: int) -> None:
        sock = self._sockets.pop((name, connection_id), None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _send(self, message: Message) -> None:
        self._websocket.send(frame(message))
