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
from tunnelproxy.proxy.link import Link
from tunnelproxy.proxy.local_socket import LocalSocket
from tunnelproxy.proxy.multiplexer import TURN, Multiplexer


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
        self.silences: list[str] = []

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        self.offered = service_ids

    def connection_requested(self, connection: Connection) -> None:
        self.requested.append(connection)

    def peer_version_found(self, version: Version) -> None:
        self.versions.append(version)

    def peer_silent(self, service_id: str) -> None:
        self.silences.append(service_id)

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        self.ended.append(connection)


class Rig:
    """A source's multiplexer on a valve."""

    def __init__(self, **settings: Any) -> None:
        self.link = ValveLink()
        self.owner = Owner()
        self.multiplexer = Multiplexer(Mode.SOURCE, self.owner, **settings)
        self.multiplexer.link_up(cast(Link, self.link))

    async def connect(self, service: str = "SSH1", *, held: bool = False) -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(self.multiplexer)
        local.held = held
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
async def test_one_that_is_held_sends_nothing_before_the_far_end_does() -> None:
    rig = Rig(probing=True)
    connection, peer = await rig.connect(held=True)
    peer.send(b"hello")
    local = rig.multiplexer.connections[connection]
    await until(lambda: local.pending)
    assert rig.data() == []
    rig.receive(Message.DATA, connection, b"answer")
    assert [message.payload for message in rig.data()] == [b"hello"]
    assert rig.owner.versions == [Version.V3]


@in_event_loop
async def test_one_that_is_held_ends_with_its_peer() -> None:
    rig = Rig(probing=True)
    connection, peer = await rig.connect(held=True)
    peer.send(b"hello")
    await until(lambda: rig.multiplexer.connections[connection].pending)
    rig.multiplexer.connections[connection].abort()
    await until(lambda: rig.owner.ended == [connection])
    assert rig.data() == []


@in_event_loop
async def test_what_has_sent_nothing_can_go_to_another_link_and_the_rest_ends() -> None:
    rig = Rig(probing=True)
    connection, other = await rig.connect("HTTP1")
    other.send(b"sent already")
    await until(rig.data)
    _, peer = await rig.connect(held=True)
    peer.send(b"first ")
    await until(lambda: any(local.pending for local in rig.multiplexer.connections.values()))
    ((service_id, local),) = rig.multiplexer.carry_over()
    assert rig.owner.ended == [connection]
    next_rig = Rig(version=Version.V1)
    local.owner = next_rig.multiplexer
    local.held = False
    next_rig.multiplexer.open(service_id, local)
    peer.send(b"second")
    await until(lambda: b"".join(message.payload for message in next_rig.data()) == b"first second")
    assert {message.serviceId for message in next_rig.link.messages} == {""}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.multiplexer.SILENCE_SECONDS", 0.05)
    monkeypatch.setattr("tunnelproxy.proxy.multiplexer.OLD_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_silent_far_end_is_asked_for_v3_and_then_told_of_once() -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig(probing=True)
        _peers = [await rig.connect(), await rig.connect("HTTP1")]
        await until(lambda: len(rig.owner.silences) == 2)
        assert sorted(rig.owner.silences) == ["HTTP1", "SSH1"]
        asked = [message.serviceId for message in rig.link.messages if message.ignorable]
        assert asked == ["SSH1", "SSH1", "HTTP1", "HTTP1"]

    check()


@pytest.mark.usefixtures("impatient")
def test_a_far_end_that_says_that_it_speaks_v3_is_slow_and_not_silent() -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig(probing=True)
        connection, _peer = await rig.connect()
        await until(lambda: any(message.ignorable for message in rig.link.messages))
        rig.receive(Message.CONNECTION_RESET, connection._replace(connection_id=2))
        assert rig.owner.versions == [Version.V3]
        await asyncio.sleep(0.2)
        assert rig.owner.silences == []
        assert rig.owner.ended == []

    check()


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_an_answer_to_a_connection_that_has_ended() -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig(probing=True)
        _, peer = await rig.connect()
        peer.close()
        await until(lambda: rig.owner.ended)
        await asyncio.sleep(0.2)
        assert rig.owner.silences == []
        assert not any(message.ignorable for message in rig.link.messages)

    check()


@in_event_loop
async def test_a_peer_that_has_vanished_with_something_on_its_way_is_reset_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.multiplexer.LOOK_SECONDS", 0.01)
    rig = Rig()
    (vanished, peer), (other, _) = [await rig.connect() for _ in range(2)]
    lost = rig.multiplexer.connections[vanished]
    rig.receive(Message.DATA, vanished, b"to nobody")
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"to nobody"
    transport = cast(asyncio.Transport, lost._transport)
    number = transport.get_extra_info("socket").fileno()
    monkeypatch.setattr(
        "tunnelproxy.proxy.local_socket.unanswered_seconds", lambda sock: 60.0 if sock.fileno() == number else 0.0
    )
    await until(lambda: rig.owner.ended)
    assert rig.owner.ended == [vanished]
    assert list(rig.multiplexer.connections) == [other]
    assert [message.connectionId for message in rig.link.messages if message.type == Message.CONNECTION_RESET] == [
        vanished.connection_id
    ]
    assert "reset, as its peer has acknowledged nothing for 60 s" in caplog.text
