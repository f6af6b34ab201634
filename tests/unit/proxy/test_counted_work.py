# SPDX-License-Identifier: GPL-3.0-or-later
"""How many functions are called, and how much is allocated, for what happens often: a guard against getting slower.

Counted, not timed, so that it says the same on every machine. The bounds are a fifth above what was counted when they
were set. Who has to raise one should know why it is worth it: ``make bench`` tells what it costs.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from peers.counted_work import arrive, calls
from peers.event_loop import in_event_loop
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.framing import MAX_PAYLOAD, FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import SUBPROTOCOLS, Connection, Mode, Version
from tunnelproxy.proxy.link import Link, TunnelCredentials
from tunnelproxy.proxy.local_socket import LocalSocket
from tunnelproxy.proxy.multiplexer import Multiplexer

MESSAGES = 20
CALLS_PER_MESSAGE_SENT = 53
CALLS_PER_MESSAGE_RECEIVED = 45
BYTES_PER_IDLE_LINK = 16_000


class Wire:
    """Stands for a transport: takes all that is written, and never fills up."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def take(self) -> bytes:
        data = b"".join(self.written)
        self.written.clear()
        return data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, **limits: int) -> None:
        """Nothing to do."""

    def pause_reading(self) -> None:
        """Nothing to do."""

    def resume_reading(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""


class Owner:
    """Stands for a proxy."""

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        """Nothing to do."""

    def connection_requested(self, connection: Connection) -> None:
        """Nothing to do."""

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        """Nothing to do."""

    def peer_version_found(self, version: Version) -> None:
        """Nothing to do."""

    def peer_silent(self, *, asked: bool) -> None:
        """Nothing to do."""


class End:
    """A source: link and multiplexer as they are, the service's end of the WebSocket in the test's hands."""

    def __init__(self, route: Route) -> None:
        self.wire = Wire()
        self.multiplexer = Multiplexer(Mode.SOURCE, Owner())
        self.link = Link(route, TunnelCredentials(Mode.SOURCE, "token", "client-token"), self.multiplexer)
        self.link.connection_made(cast(asyncio.Transport, self.wire))
        self.service = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOLS[Version.V3])])
        self.service.receive_data(self.wire.take())
        (request,) = self.service.events_received()
        self.service.send_response(self.service.accept(cast(Request, request)))
        self.service.send_binary(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1"])))
        arrive(self.link, b"".join(self.service.data_to_send()))

    async def open(self) -> tuple[LocalSocket, Wire]:
        """A connection, with a local peer that takes everything."""
        local, peer = LocalSocket(self.multiplexer), Wire()
        local.connection_made(cast(asyncio.Transport, peer))
        await asyncio.sleep(0)
        self.multiplexer.open("SSH1", local)
        return local, peer

    def messages(self) -> list[Message]:
        """What has arrived at the service."""
        self.service.receive_data(self.wire.take())
        events = self.service.events_received()
        reader = FrameReader()
        return [
            parse(encoded)
            for event in events
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY
            for encoded in reader.feed(bytes(event.data))
        ]


def route() -> Route:
    return Route(Endpoint("localhost", 443), tls_context(None))


@in_event_loop
async def test_sending_a_full_message_takes_so_many_calls() -> None:
    end = End(route())
    local, _ = await end.open()
    end.messages()
    data = bytes(MAX_PAYLOAD)

    def send() -> None:
        for _ in range(MESSAGES):
            arrive(local, data)

    counted = calls(send) / MESSAGES
    print(f"{counted:.0f} calls for a message sent")
    assert [len(message.payload) for message in end.messages()] == [MAX_PAYLOAD] * MESSAGES
    assert counted <= CALLS_PER_MESSAGE_SENT


@in_event_loop
async def test_receiving_a_full_message_takes_so_many_calls() -> None:
    end = End(route())
    _, peer = await end.open()
    payload = bytes(MAX_PAYLOAD)
    for _ in range(MESSAGES):
        end.service.send_binary(
            frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1), payload)
        )
    data = b"".join(end.service.data_to_send())

    counted = calls(lambda: arrive(end.link, data)) / MESSAGES
    print(f"{counted:.0f} calls for a message received")
    assert [len(piece) for piece in peer.written] == [MAX_PAYLOAD] * MESSAGES
    assert counted <= CALLS_PER_MESSAGE_RECEIVED


@in_event_loop
async def test_an_idle_link_takes_so_much_memory() -> None:
    way = route()
    End(way)
    tracemalloc.start()
    try:
        ends = [End(way) for _ in range(50)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The service's end is the test's own, and the two WebSockets are alike.
    each = taken / len(ends)
    print(f"{each / 1000:.1f} kB for a link")
    assert each <= BYTES_PER_IDLE_LINK
