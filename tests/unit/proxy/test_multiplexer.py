# SPDX-License-Identifier: GPL-3.0-or-later
"""The multiplexer between real local sockets and a link whose send buffer the test opens and closes."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import pytest

from peers.event_loop import in_event_loop, until
from peers.links import ValveLink, message_about
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Message, frame
from tunnelproxy.protocol.session import NAMELESS, Connection, Mode, Version
from tunnelproxy.proxy.link import Link
from tunnelproxy.proxy.local_socket import LocalSocket
from tunnelproxy.proxy.multiplexer import TURN, Callbacks, Multiplexer


class Rig:
    """A multiplexer on a valve, and what it has reported."""

    def __init__(self, mode: Mode = Mode.SOURCE, link_version: Version = Version.V3, **settings: Any) -> None:
        self.link = ValveLink()
        self.link.version = link_version
        self.requested: list[Connection] = []
        self.ended: list[Connection] = []
        self.offered: list[tuple[str, ...]] = []
        self.versions: list[Version] = []
        callbacks = Callbacks(
            services_offered=self.offered.append,
            connection_ended=lambda connection, _: self.ended.append(connection),
            connection_requested=self.requested.append,
            peer_version_found=self.versions.append,
        )
        self.multiplexer = Multiplexer(mode, callbacks, **settings)
        self.multiplexer.link_up(cast(Link, self.link))

    async def connect(self, service: str = "SSH1") -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(self.multiplexer)
        connection = self.multiplexer.open(service, local)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
        return connection, theirs

    def receive(self, kind: Message.Type, connection: Connection, payload: bytes = b"") -> None:
        self.multiplexer.data_received(message_about(kind, connection, payload))

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
    await until(lambda: rig.ended == [connection])
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
    assert rig.ended == []


@in_event_loop
async def test_a_peer_that_makes_no_progress_is_reset_alone(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(stall_seconds=0.2)
    stalled, _peer = await rig.connect()
    healthy, other = await rig.connect()
    with caplog.at_level(logging.WARNING):
        while rig.link.reading:
            rig.receive(Message.DATA, stalled, bytes(MAX_PAYLOAD))
        await until(lambda: rig.ended)
    assert rig.ended == [stalled]
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
    assert rig.ended == [connection]
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""


@in_event_loop
async def test_connections_that_have_carried_nothing_can_move_to_another_link_and_the_rest_are_closed() -> None:
    rig = Rig()
    connection, talkative = await rig.connect("HTTP1")
    talkative.send(b"sent already")
    await until(rig.data)
    rig.link.credit = 0
    _, peer = await rig.connect()
    peer.send(b"first ")
    await until(lambda: any(local.pending for local in rig.multiplexer.connections.values()))
    ((service_id, local),) = rig.multiplexer.carry_over()
    assert rig.ended == [connection]
    assert local.owner is None
    other = Rig(version=Version.V1)
    local.owner = other.multiplexer
    other.multiplexer.open(service_id, local)
    peer.send(b"second")
    await until(lambda: other.link.data() == b"first second")
    assert {message.serviceId for message in other.link.messages} == {""}


@in_event_loop
async def test_a_link_that_was_given_up_delivers_nothing_more() -> None:
    rig = Rig()
    connection, _peer = await rig.connect()
    ((_, local),) = rig.multiplexer.carry_over()
    rig.receive(Message.DATA, connection, b"too late")
    assert local.bytes_out == 0
    assert rig.multiplexer.connections == {}


@in_event_loop
async def test_a_destination_reports_the_connections_that_a_source_requests() -> None:
    rig = Rig(Mode.DESTINATION)
    joined, refused = Connection("SSH1", 1, 1), Connection("HTTP1", 1, 1)
    for connection in (joined, refused):
        rig.receive(Message.STREAM_START, connection)
    assert rig.requested == [joined, refused]
    local = LocalSocket(rig.multiplexer)
    rig.multiplexer.join(joined, local)
    rig.multiplexer.refuse(refused)
    assert [(message.type, message.serviceId) for message in rig.link.messages] == [(Message.CONNECTION_RESET, "HTTP1")]
    rig.receive(Message.DATA, joined, b"early")
    assert local.unwritten == len(b"early")
    assert list(rig.multiplexer.connections) == [joined]


@in_event_loop
async def test_the_services_are_those_that_the_service_names() -> None:
    rig = Rig()
    rig.multiplexer.data_received(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1", "HTTP1"])))
    assert rig.offered == [("SSH1", "HTTP1")]


@in_event_loop
async def test_a_link_in_v1_has_one_service_without_a_name() -> None:
    rig = Rig(link_version=Version.V1)
    assert rig.offered == [(NAMELESS,)]
    assert rig.multiplexer.version is Version.V1


@in_event_loop
async def test_a_source_learns_the_version_of_its_peer_from_the_first_data() -> None:
    rig = Rig(probing=True)
    connection, _peer = await rig.connect()
    assert rig.multiplexer.is_undecided("SSH1")
    assert not rig.multiplexer.can_open("SSH1")
    rig.receive(Message.DATA, connection, b"hello")
    assert rig.versions == [Version.V3]
    assert rig.multiplexer.can_open("SSH1")


@in_event_loop
async def test_the_next_link_goes_on_with_other_stream_ids() -> None:
    rig = Rig()
    await rig.connect()
    after = Rig(first_stream_id=rig.multiplexer.next_stream_id)
    connection, _peer = await after.connect()
    assert connection.stream_id == 2


@in_event_loop
async def test_a_peer_that_does_not_read_is_cut_off_after_its_connection_has_ended_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.flow_control.LINGER_SECONDS", 0.2)
    rig = Rig(stall_seconds=0.1)
    connection, _peer = await rig.connect()
    local = rig.multiplexer.connections[connection]
    while rig.link.reading:
        rig.receive(Message.DATA, connection, bytes(MAX_PAYLOAD))
    rig.receive(Message.CONNECTION_RESET, connection)
    await until(lambda: local.ended)
    assert "a connection that is closing: reset, because its peer does not read" in caplog.text


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
    monkeypatch.setattr(LocalSocket, "unanswered_seconds", property(lambda local: 60.0 if local is lost else 0.0))
    await until(lambda: rig.ended)
    assert rig.ended == [vanished]
    assert list(rig.multiplexer.connections) == [other]
    assert [message.connectionId for message in rig.link.messages if message.type == Message.CONNECTION_RESET] == [
        vanished.connection_id
    ]
    assert "reset, because its peer has acknowledged nothing for 60 s" in caplog.text
