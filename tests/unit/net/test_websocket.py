# SPDX-License-Identifier: GPL-3.0-or-later
"""Two WebSockets that are joined by a socket pair, and some whose peer is the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from peers.event_loop import Clock, in_event_loop, until
from tunnelproxy.net import receive_buffer, websocket
from tunnelproxy.net.websocket import Callbacks, WebSocket
from tunnelproxy.protocol.framing import MAX_WEBSOCKET_MESSAGE, Bytes

SEND_BUFFER = 32 * 1024


class End(asyncio.BufferedProtocol):
    """The owner of a WebSocket, as a link and a client's connection are; it records what it is told."""

    def __init__(self, protocol: Protocol) -> None:
        self.messages: list[bytes] = []
        self.events: list[Event] = []
        self.ended = 0
        self.overflows = 0
        self.writable = True
        self.lost = asyncio.get_running_loop().create_future()
        self.protocol = protocol
        self.websocket = WebSocket(protocol, Callbacks(self._message, self._event, self._last_sent, self._overflow))

    def _message(self, data: Bytes) -> None:
        self.messages.append(bytes(data))

    def _event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Request):
            server = cast(ServerProtocol, self.protocol)
            server.send_response(server.accept(event))

    def _last_sent(self) -> None:
        self.ended += 1
        self.websocket.close_transport()

    def _overflow(self) -> None:
        self.overflows += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.websocket.connection_made(transport, SEND_BUFFER)
        if isinstance(self.protocol, ClientProtocol):
            self.protocol.send_request(self.protocol.connect())
            self.websocket.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.websocket.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if isinstance(self.protocol, ServerProtocol) and not self.events:
            self.websocket.request_received(bytes(receive_buffer.received(nbytes)), b"")
        else:
            self.websocket.buffer_updated(nbytes)

    def eof_received(self) -> None:
        self.websocket.eof_received()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def connection_lost(self, error: Exception | None) -> None:
        self.websocket.connection_lost()
        self.lost.set_result(error)


def new_client() -> End:
    return End(ClientProtocol(parse_uri("ws://x/"), max_size=MAX_WEBSOCKET_MESSAGE))


def new_server() -> End:
    return End(ServerProtocol(max_size=MAX_WEBSOCKET_MESSAGE))


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[End, End]]:
    """A client and a server that have shaken hands."""
    loop = asyncio.get_running_loop()
    client, server = new_client(), new_server()
    ours, theirs = socket.socketpair()
    await loop.connect_accepted_socket(lambda: server, theirs)
    await loop.connect_accepted_socket(lambda: client, ours)
    await until(lambda: client.websocket.is_open and server.websocket.is_open)
    yield client, server
    for end in (client, server):
        end.websocket.abort()
        await end.lost


@in_event_loop
async def test_the_handshake_reaches_both_owners() -> None:
    async with joined() as (client, server):
        assert [type(event) for event in server.events] == [Request]
        assert [type(event) for event in client.events] == [Response]


@in_event_loop
async def test_messages_of_any_size_arrive_in_order() -> None:
    sizes = (0, 1, 125, 126, 65_535, 65_536, MAX_WEBSOCKET_MESSAGE)
    async with joined() as ends:
        for sender, receiver in (ends, ends[::-1]):
            for size in sizes:
                sender.websocket.send((bytes([size % 256]) * (size // 2), b"", bytes(size - size // 2)))
            await until(lambda receiver=receiver: len(receiver.messages) == len(sizes))
            assert receiver.messages == [bytes([size % 256]) * (size // 2) + bytes(size - size // 2) for size in sizes]


@in_event_loop
async def test_frames_that_are_not_binary_are_events() -> None:
    async with joined() as (client, server):
        client.protocol.send_text(b"text")
        client.protocol.send_ping(b"ping")
        client.websocket.flush()
        await until(lambda: len(client.events) == 2)
        assert [event.opcode for event in server.events[1:] if isinstance(event, Frame)] == [Opcode.TEXT, Opcode.PING]
        (pong,) = client.events[1:]
        assert isinstance(pong, Frame)
        assert (pong.opcode, pong.data) == (Opcode.PONG, b"ping")


@in_event_loop
async def test_a_closing_handshake_ends_with_the_last_bytes() -> None:
    async with joined() as (client, server):
        client.protocol.send_close(1000, "bye")
        client.websocket.flush()
        assert not client.websocket.is_open
        assert await client.lost is None
        assert await server.lost is None
        assert server.ended == 1
        assert server.protocol.close_rcvd is not None
        assert server.protocol.close_rcvd.reason == "bye"


@in_event_loop
async def test_nothing_is_sent_after_the_end() -> None:
    async with joined() as (client, server):
        client.protocol.send_close(1000)
        client.websocket.send((b"late",))
        client.websocket.flush()
        await client.lost
        client.websocket.send((b"later",))
        client.websocket.flush()
        await server.lost
        assert client.websocket.is_closing
        assert server.messages == []


@in_event_loop
async def test_the_end_of_the_bytes_is_an_end_without_a_close() -> None:
    async with joined() as (client, server):
        client.websocket.abort()
        await server.lost
        assert server.protocol.close_rcvd is None
        assert not server.websocket.is_open


@in_event_loop
async def test_a_paused_websocket_reads_nothing_until_it_is_resumed() -> None:
    async with joined() as (client, server):
        server.websocket.pause_reading()
        assert server.websocket.is_paused
        await asyncio.sleep(0)
        client.websocket.send((b"early",))
        # What the client answers has crossed the message in the other direction.
        server.protocol.send_ping(b"x")
        server.websocket.flush()
        await until(lambda: len(client.events) == 2)
        assert server.messages == []
        server.websocket.resume_reading()
        assert not server.websocket.is_paused
        await until(lambda: server.messages == [b"early"])


@in_event_loop
async def test_senders_are_paused_while_more_waits_than_the_send_buffer() -> None:
    async with joined() as (client, server):
        server.websocket.pause_reading()
        while client.writable:
            client.websocket.send((bytes(MAX_WEBSOCKET_MESSAGE),))
            await asyncio.sleep(0)
        assert client.overflows == 0
        server.websocket.resume_reading()
        await until(lambda: client.writable)


@pytest.mark.parametrize("unasked", [False, True], ids=["messages", "answers to pings"])
@in_event_loop
async def test_a_peer_that_does_not_read_is_left_when_too_much_waits(
    monkeypatch: pytest.MonkeyPatch, unasked: bool
) -> None:
    monkeypatch.setattr(websocket, "SEND_LIMIT", 256 * 1024)
    async with joined() as (client, server):
        server.websocket.pause_reading()
        while not client.lost.done():
            if unasked:
                client.protocol.send_pong(bytes(125))
                client.websocket.flush()
            else:
                client.websocket.send((bytes(64 * 1024),))
            if client.overflows:
                await asyncio.sleep(0)
        assert client.overflows == 1


@in_event_loop
async def test_there_is_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    called: list[str] = []
    async with joined() as (client, _):
        client.websocket.set_timer(1, lambda: called.append("replaced"))
        client.websocket.set_timer(2, lambda: called.append("due"))
        clock.skip(3)
        await until(lambda: called)
        client.websocket.set_timer(1, lambda: called.append("cancelled"))
        client.websocket.cancel_timer()
        client.websocket.set_timer(1, lambda: called.append("lost"))
        client.websocket.abort()
        await client.lost
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(2, later.set)
        clock.skip(3)
        await later.wait()
        assert called == ["due"]


@in_event_loop
async def test_before_it_is_connected_a_websocket_does_nothing() -> None:
    client = new_client()
    client.websocket.send((b"early",))
    client.websocket.flush()
    client.websocket.pause_reading()
    client.websocket.resume_reading()
    client.websocket.close_transport()
    client.websocket.abort()
    assert client.websocket.is_closing
    assert not client.websocket.is_paused
