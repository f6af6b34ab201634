# SPDX-License-Identifier: GPL-3.0-or-later
"""Links of a proxy whose other side the test plays: in memory, and as WebSockets over TLS in the test process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from websockets.asyncio.server import Request, Response, ServerConnection, serve

from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Bytes, FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import SUBPROTOCOLS, Connection, Version
from tunnelproxy.proxy.link import Link
from tunnelproxy.service.state.certificates import Certificates, server_context

__all__ = ["FarEnd", "IgnoringReceiver", "LinkServer", "ValveLink", "link_server", "message_about"]


def message_about(
    kind: Message.Type, connection: Connection, payload: bytes = b"", version: Version = Version.V3
) -> bytes:
    """A message about a connection, as a peer of a version frames it."""
    message = Message(type=kind, streamId=connection.stream_id, payload=payload)
    if version is not Version.V1:
        message.serviceId = connection.service_id
    if version is Version.V3:
        message.connectionId = connection.connection_id
    return frame(message)


class IgnoringReceiver:
    """Ignores what a link reports."""

    def link_up(self, link: Link) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        pass

    def link_writable(self) -> None:
        pass

    def link_down(self) -> None:
        pass


class ValveLink:
    """Replaces the WebSocket: records what is sent, and is writable for as many messages as the test allows."""

    def __init__(self) -> None:
        self.version = Version.V3
        self.messages: list[Message] = []
        self.failure: Exception | None = None
        self.reading = True
        self.credit = 10**9
        self.turn = MAX_PAYLOAD
        self._reader = FrameReader()

    @property
    def writable(self) -> bool:
        return self.credit > 0

    def data(self) -> bytes:
        """The sent data of connections."""
        return b"".join(message.payload for message in self.messages if message.type == Message.DATA)

    def send(self, pieces: Collection[Bytes]) -> None:
        self.credit -= 1
        self.messages += [parse(encoded) for encoded in self._reader.feed(b"".join(pieces))]

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def fail(self, cause: Exception, code: int = 1002) -> None:
        self.failure = cause


class FarEnd:
    """The service and the far end of one link, played by the test message by message."""

    def __init__(self, websocket: ServerConnection) -> None:
        self._websocket = websocket
        self._reader = FrameReader()
        self._received: deque[Message] = deque()

    async def offer(self, *service_ids: str) -> None:
        """Name the services of the tunnel."""
        await self._websocket.send(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=service_ids)))

    async def send(
        self, kind: Message.Type, connection: Connection, payload: bytes = b"", version: Version = Version.V3
    ) -> None:
        """Send a message about a connection."""
        await self._websocket.send(message_about(kind, connection, payload, version))

    async def receive(self, kind: Message.Type | None = None) -> Message:
        """Return the next message that the proxy sent, and check its type."""
        while not self._received:
            data = await asyncio.wait_for(self._websocket.recv(), 10)
            assert isinstance(data, bytes)
            self._received += [parse(encoded) for encoded in self._reader.feed(data)]
        message = self._received.popleft()
        assert kind in (None, message.type), message
        return message

    async def receive_about(self, kind: Message.Type) -> Connection:
        """Return the connection that the next message is about, and check the message's type."""
        message = await self.receive(kind)
        return Connection(message.serviceId, message.streamId, message.connectionId)

    async def receive_data(self, size: int) -> bytes:
        """Return this many bytes of data of connections."""
        data = b""
        while len(data) < size:
            data += (await self.receive(Message.DATA)).payload
        return data

    async def close(self, code: int = 1001, reason: str = "") -> None:
        """Close the WebSocket."""
        await self._websocket.close(code, reason)


class LinkServer:
    """Accepts the links of proxies, or refuses them while the test wants it.

    Attributes:
        route: the route to it.
        refuses: the HTTP status and the text to refuse with; None to accept.
        attempts: how many links were requested.
    """

    def __init__(self) -> None:
        self.route: Route
        self.refuses: tuple[int, str] | None = None
        self.attempts = 0
        self._links: asyncio.Queue[FarEnd] = asyncio.Queue()

    async def next_link(self) -> FarEnd:
        """Wait for the next link."""
        return await asyncio.wait_for(self._links.get(), 10)

    def _answer(self, websocket: ServerConnection, _: Request) -> Response | None:
        self.attempts += 1
        return None if self.refuses is None else websocket.respond(*self.refuses)

    async def _serve(self, websocket: ServerConnection) -> None:
        self._links.put_nowait(FarEnd(websocket))
        await websocket.wait_closed()


@asynccontextmanager
async def link_server(certificates: Certificates, version: Version = Version.V3) -> AsyncIterator[LinkServer]:
    """Run a server that agrees on a version in the handshake."""
    server = LinkServer()
    async with serve(
        server._serve,
        "127.0.0.1",
        0,
        ssl=server_context(certificates),
        compression=None,
        close_timeout=0.5,
        subprotocols=[SUBPROTOCOLS[version]],
        process_request=server._answer,
    ) as running:
        endpoint = Endpoint("127.0.0.1", running.sockets[0].getsockname()[1])
        server.route = Route(endpoint, tls_context(str(certificates.ca)))
        yield server
