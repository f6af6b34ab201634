# SPDX-License-Identifier: GPL-3.0-or-later
"""A data plane in the test's event loop, with one open tunnel, and clients that connect to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tunnelproxy.protocol.framing import FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import SUBPROTOCOLS, Mode, Version
from tunnelproxy.service.data_plane.server import DataPlane
from tunnelproxy.service.events import Event
from tunnelproxy.service.model import NewTunnel, Tunnel, digest
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store

__all__ = ["Client", "RunningDataPlane", "running_data_plane"]


class Client:
    """One end of the tunnel, which exchanges protobuf messages."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self._reader = FrameReader()
        self._received: list[Message] = []

    async def send(self, *messages: Message) -> None:
        """Send messages, in one WebSocket message."""
        await self.websocket.send(b"".join(frame(message) for message in messages))

    async def receive(self) -> Message:
        """Return the next message."""
        while not self._received:
            data = await asyncio.wait_for(self.websocket.recv(), 10)
            assert isinstance(data, bytes)
            self._received += [parse(encoded) for encoded in self._reader.feed(data)]
        return self._received.pop(0)

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait until the connection is closed; return the code and reason of the close frame."""
        await asyncio.wait_for(self.websocket.wait_closed(), 10)
        return self.websocket.close_code, self.websocket.close_reason


class RunningDataPlane:
    """A data plane that accepts clients.

    Attributes:
        port: its port on 127.0.0.1.
        events: its events for the audit log.
    """

    def __init__(self, store: Store, certificates: Certificates, services: Sequence[str], **settings: Any) -> None:
        self.store = store
        self.events: list[Event] = []
        self.data_plane = DataPlane(store, clock=time.time, notify=self.events.append, **settings)
        digests = {mode: digest(f"{mode.value}-token") for mode in Mode}
        new = NewTunnel(thing_name="pump", services=tuple(services), lifetime=60)
        self.tunnel: Tunnel = store.open_tunnel(new, digests, time.time())
        self.port = 0
        self.client_tls = ssl.create_default_context(cafile=str(certificates.authority))
        self._server_tls = server_context(certificates)

    async def start(self, listening: socket.socket) -> None:
        self.port = listening.getsockname()[1]
        await self.data_plane.start(listening, self._server_tls)

    async def connect(
        self,
        mode: Mode,
        versions: Sequence[Version] = (Version.V3,),
        headers: dict[str, str] | None = None,
        **settings: Any,
    ) -> Client:
        """Connect as an end of the tunnel, and complete the handshake."""
        headers = {"access-token": f"{mode.value}-token", "client-token": mode.value.ljust(32, "x"), **(headers or {})}
        websocket = await connect(
            f"wss://127.0.0.1:{self.port}/tunnel?local-proxy-mode={mode.value}",
            ssl=self.client_tls,
            additional_headers=headers,
            subprotocols=[SUBPROTOCOLS[version] for version in versions],  # type: ignore[misc]
            compression=None,
            ping_interval=None,
            close_timeout=5,
            **settings,
        )
        return Client(websocket)

    async def open_tls(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect without a WebSocket handshake."""
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client_tls)

    async def connect_both(self) -> tuple[Client, Client]:
        """Connect both ends with V3, and return source and destination after the service has named its services."""
        ends = await self.connect(Mode.SOURCE), await self.connect(Mode.DESTINATION)
        for end in ends:
            assert (await end.receive()).type == Message.SERVICE_IDS
        return ends


@asynccontextmanager
async def running_data_plane(
    certificates: Certificates, folder: Path, services: Sequence[str] = ("SSH1", "HTTP1"), **settings: Any
) -> AsyncIterator[RunningDataPlane]:
    """Run a data plane until the end of the block.

    Args:
        settings: as for :class:`DataPlane`.
    """
    store = Store(folder / "service.db")
    running = RunningDataPlane(store, certificates, services, **settings)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await running.start(listening)
            try:
                yield running
            finally:
                await running.data_plane.stop()
    finally:
        store.close()
