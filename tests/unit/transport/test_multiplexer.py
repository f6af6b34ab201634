# SPDX-License-Identifier: GPL-3.0-or-later
"""The multiplexer between real local sockets and a link whose send buffer the test opens and shuts."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection
from typing import Any, cast

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Bytes, FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import Connection, Mode, Version
from tunnelproxy.transport.link import Link
from tunnelproxy.transport.local import LocalSocket
from tunnelproxy.transport.multiplexer import REMEMBER, TURN, Multiplexer


class ValveLink:
    """Stands where the WebSocket is: keeps what is sent, and is writable for as many messages as the test says."""

    def __init__(self) -> None:
        self.version = Version.V3
        self.messages: list[Message] = []
        self.failure: Exception | None = None
        self.reading = True
        self.credit = 10**9
        self._reader = FrameReader()

    @property
    def writable(self) -> bool:
        return self.credit > 0

    def send(self, pieces: Collection[Bytes]) -> None:
        self.credit -= 1
        self.messages += [parse(encoded) for encoded in self._reader.feed(b"".join(pieces))]

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def fail(self, cause: Exception, code: int = 1002) -> None:
        self.failure = cause


class Owner:
    def __init__(self) -> None:
        self.requested: list[Connection] = []
        self.ended: list[Connection] = []
        self.offered: tuple[str, ...] = ()
        self.versions: list[Version] = []
        self.silences: list[bool] = []

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        self.offered = service_ids

    def connection_requested(self, connection: Connection) -> None:
        self.requested.append(connection)

    def peer_version_found(self, version: Version) -> None:
        self.versions.append(version)

    def peer_silent(self, *, asked: bool) -> None:
        self.silences.append(asked)

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        self.ended.append(connection)


class Rig:
    """A source's multiplexer on a valve."""

    def __init__(self, **settings: Any) -> None:
        self.link = ValveLink()
        self.owner = Owner()
        self.multiplexer = Multiplexer(Mode.SOURCE, self.owner, **settings)
        self.multiplexer.link_up(cast(Link, self.link))

    async def connect(self, service: str = "SSH1") -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(self.multiplexer)
        connection = self.multiplexer.open(service, local)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
        return connection, theirs

    def receive(self, kind: Message.Type, connection: Connection, payload: bytes = b"") -> None:
        self.multiplexer.data_received(
            frame(
                Message(
                    type=kind,
                    streamId=connection.stream_id,
                    serviceId=connection.service_id,
                    connectionId=connection.connection_id,
                    payload=payload,
                )
            )
        )

    def data(self) -> list[Message]:
        return [message for message in self.link.messages if message.type == Message.DATA]


@in_event_loop
async def test_connections_that_all_have_data_take_turns_with_small_chunks() -> None:
    rig = Rig()
    peers = [await rig.connect() for _ in range(3)]
    rig.link.credit = 0
    for _, peer in peers:
        peer.send(bytes(4 * TURN))
    await until(lambda: all(len(local.pending) >= TURN for local in rig.multiplexer.connections.values()))
    rig.link.credit = 2
    rig.multiplexer.link_writable()
    turns = [(message.connectionId, len(message.payload)) for message in rig.data()]
    assert turns == [(1, TURN), (2, TURN), (3, TURN), (1, TURN), (2, TURN), (3, TURN)]


@in_event_loop
async def test_a_connection_alone_sends_whole_messages() -> None:
    rig = Rig()
    _, peer = await rig.connect()
    rig.link.credit = 0
    peer.send(bytes(MAX_PAYLOAD))
    local = next(iter(rig.multiplexer.connections.values()))
    await until(lambda: len(local.pending) > TURN)
    rig.link.credit = 1
    rig.multiplexer.link_writable()
    assert len(rig.data()[0].payload) > TURN


@in_event_loop
async def test_everything_read_goes_out_before_the_reset() -> None:
    rig = Rig()
    connection, peer = await rig.connect()
    rig.link.credit = 0
    peer.send(b"x" * 1000)
    peer.close()
    await until(lambda: next(iter(rig.multiplexer.connections.values())).pending)
    rig.link.credit = 10
    rig.multiplexer.link_writable()
    await until(lambda: rig.owner.ended == [connection])
    assert [message.type for message in rig.link.messages] == [
        Message.STREAM_START,
        Message.DATA,
        Message.CONNECTION_RESET,
    ]


@in_event_loop
async def test_everything_received_reaches_the_local_peer_before_its_end() -> None:
    rig = Rig()
    connection, peer = await rig.connect()
    rig.receive(Message.DATA, connection, b"tail")
    rig.receive(Message.CONNECTION_RESET, connection)
    loop = asyncio.get_running_loop()
    assert (await loop.sock_recv(peer, 100), await loop.sock_recv(peer, 100)) == (b"tail", b"")


@in_event_loop
async def test_a_peer_that_stops_reading_holds_the_tunnel_back_until_it_reads_again() -> None:
    rig = Rig()
    connection, peer = await rig.connect()
    while rig.link.reading:
        rig.receive(Message.DATA, connection, bytes(MAX_PAYLOAD))
    loop = asyncio.get_running_loop()
    while not rig.link.reading:
        await asyncio.wait_for(loop.sock_recv(peer, 1 << 20), 5)
        await asyncio.sleep(0)
    assert rig.owner.ended == []


@in_event_loop
async def test_a_peer_that_makes_no_progress_is_reset_alone(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(stall_seconds=0.2)
    stalled, _peer = await rig.connect()
    healthy, other = await rig.connect()
    with caplog.at_level(logging.WARNING):
        while rig.link.reading:
            rig.receive(Message.DATA, stalled, bytes(MAX_PAYLOAD))
        await until(lambda: rig.owner.ended)
    assert rig.owner.ended == [stalled]
    assert rig.link.messages[-1].type == Message.CONNECTION_RESET
    assert rig.link.messages[-1].connectionId == stalled.connection_id
    await until(lambda: rig.link.reading)
    assert "reset, because its peer does not read" in caplog.text
    rig.receive(Message.DATA, healthy, b"still here")
    assert await asyncio.get_running_loop().sock_recv(other, 100) == b"still here"


@in_event_loop
async def test_a_broken_protocol_fails_the_link() -> None:
    rig = Rig()
    rig.multiplexer.data_received(frame(Message(type=99)))
    assert "the far end broke the protocol: it sent a message of the unknown type 99" in str(rig.link.failure)


@in_event_loop
async def test_every_connection_ends_with_its_link() -> None:
    rig = Rig()
    connection, peer = await rig.connect()
    rig.multiplexer.link_down()
    assert rig.owner.ended == [connection]
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""


@in_event_loop
async def test_a_far_end_of_unknown_version_gets_little_until_it_has_answered() -> None:
    rig = Rig(probing=True)
    connection, peer = await rig.connect()
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(peer, bytes(4 * REMEMBER)))
    await until(lambda: sum(len(message.payload) for message in rig.data()) == REMEMBER)
    rig.receive(Message.DATA, connection, b"answer")
    await sending
    await until(lambda: sum(len(message.payload) for message in rig.data()) == 4 * REMEMBER)
    assert rig.owner.versions == [Version.V3]


@in_event_loop
async def test_what_was_sent_to_no_avail_can_be_carried_to_another_link() -> None:
    rig = Rig(probing=True)
    _, peer = await rig.connect()
    peer.send(b"first ")
    await until(rig.data)
    ((service_id, local),) = rig.multiplexer.carry_over()
    other = Rig(version=Version.V1)
    local.owner = other.multiplexer
    other.multiplexer.open(service_id, local)
    peer.send(b"second")
    await until(lambda: b"".join(message.payload for message in other.data()) == b"first second")
    assert {message.serviceId for message in other.link.messages} == {""}
    assert rig.owner.ended == []


@in_event_loop
async def test_more_than_a_message_can_be_carried_to_a_link_that_takes_it_all_at_once() -> None:
    rig = Rig(probing=True)
    _, peer = await rig.connect()
    data = bytes(range(256)) * (4 * REMEMBER // 256)
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer, data))
    await until(lambda: sum(len(message.payload) for message in rig.data()) == REMEMBER)
    ((service_id, local),) = rig.multiplexer.carry_over()
    await until(lambda: len(local.pending) > MAX_PAYLOAD)
    other = Rig(version=Version.V1)
    local.owner = other.multiplexer
    other.multiplexer.open(service_id, local)
    await sending
    await until(lambda: sum(len(message.payload) for message in other.data()) == len(data))
    assert b"".join(message.payload for message in other.data()) == data


@pytest.mark.parametrize("asks", [True, False])
def test_silence_is_told_once_and_whether_something_was_asked(monkeypatch: pytest.MonkeyPatch, asks: bool) -> None:
    monkeypatch.setattr("tunnelproxy.transport.multiplexer.SILENCE_SECONDS", 0.05)

    @in_event_loop
    async def check() -> None:
        rig = Rig(probing=True)
        _, peer = await rig.connect()
        if asks:
            peer.send(b"a question")
        await until(lambda: rig.owner.silences)
        assert rig.owner.silences == [asks]

    check()


@in_event_loop
async def test_a_tunnel_with_several_services_has_no_far_end_of_v1_to_be_careful_with() -> None:
    rig = Rig(probing=True)
    rig.multiplexer.data_received(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1", "HTTP1"])))
    _, peer = await rig.connect()
    await asyncio.get_running_loop().sock_sendall(peer, bytes(4 * REMEMBER))
    await until(lambda: sum(len(message.payload) for message in rig.data()) == 4 * REMEMBER)
