# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow control with real sockets whose peers do not read, and a link that records whether it is read."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.proxy import flow_control
from tunnelproxy.proxy.flow_control import FlowControl
from tunnelproxy.proxy.link import Link
from tunnelproxy.proxy.local_socket import RECEIVE_BUFFER, LocalSocket

MESSAGE = bytes(60 * 1024)


class ReadLink:
    """Stands in for the WebSocket."""

    def __init__(self) -> None:
        self.reading = True
        self.pauses = 0

    def pause_reading(self) -> None:
        self.reading = False
        self.pauses += 1

    def resume_reading(self) -> None:
        self.reading = True


class Rig:
    """Flow control as a multiplexer uses it; the local sockets report here."""

    def __init__(self, stall_seconds: float) -> None:
        self.link = ReadLink()
        self.given_up: list[LocalSocket] = []
        self.flow_control = FlowControl(self.give_up, stall_seconds)
        self.flow_control.link_up(cast(Link, self.link))

    def give_up(self, local: LocalSocket, seconds: float) -> None:
        assert seconds > 0
        self.given_up.append(local)
        local.abort()

    def local_ready(self, local: LocalSocket) -> None:
        pass

    def local_full(self, local: LocalSocket) -> None:
        self.flow_control.full(local)

    def local_drained(self, local: LocalSocket) -> None:
        self.flow_control.drained(local)

    async def connect(self) -> tuple[LocalSocket, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(self)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
        return local, theirs

    def deliver(self, local: LocalSocket) -> None:
        local.deliver(MESSAGE)
        self.flow_control.delivered(local, len(MESSAGE))

    def fill(self, local: LocalSocket) -> None:
        """Deliver until the socket's own buffer is full."""
        while local.unwritten <= RECEIVE_BUFFER:
            self.deliver(local)


async def drain(peer: socket.socket, local: LocalSocket) -> None:
    while local.unwritten:
        await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "BUDGET", 1024 * 1024)
    monkeypatch.setattr(flow_control, "_LOOK_SECONDS", 0.01)


@in_event_loop
async def test_a_peer_that_keeps_up_costs_nothing() -> None:
    rig = Rig(stall_seconds=1)
    local, peer = await rig.connect()
    for _ in range(100):
        rig.deliver(local)
        await drain(peer, local)
    assert rig.link.pauses == 0


@in_event_loop
async def test_with_a_slow_peer_the_link_is_still_read_but_slowly() -> None:
    rig = Rig(stall_seconds=2)
    local, _peer = await rig.connect()
    rig.fill(local)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(4):
        await until(lambda: rig.link.reading)
        rig.deliver(local)
        assert not rig.link.reading
    # The first was charged by filling; each of these uses up 60 of 1024 KiB, and the same part of two seconds.
    assert 3 * 60 / 1024 * 2 < loop.time() - began < 2
    assert rig.given_up == []


@in_event_loop
async def test_the_link_is_read_at_once_when_the_peer_has_caught_up() -> None:
    rig = Rig(stall_seconds=3600)
    local, peer = await rig.connect()
    rig.fill(local)
    assert not rig.link.reading
    await drain(peer, local)
    assert rig.link.reading


@in_event_loop
async def test_when_the_budget_is_used_up_the_link_is_not_read_until_there_is_room() -> None:
    rig = Rig(stall_seconds=1)
    local, peer = await rig.connect()
    while local.unwritten < flow_control.BUDGET:
        rig.deliver(local)
    rig.deliver(local)
    assert not rig.link.reading
    loop = asyncio.get_running_loop()
    while not rig.link.reading:
        await loop.sock_recv(peer, 64 * 1024)
        await asyncio.sleep(0.005)
    assert local.unwritten > RECEIVE_BUFFER
    assert rig.given_up == []


@in_event_loop
async def test_a_peer_without_progress_is_given_up_alone() -> None:
    rig = Rig(stall_seconds=0.2)
    (stalled, _), (healthy, _other) = await rig.connect(), await rig.connect()
    rig.fill(stalled)
    healthy.deliver(b"little")
    await until(lambda: rig.given_up)
    assert rig.given_up == [stalled]
    assert rig.link.reading


@in_event_loop
async def test_a_peer_that_reads_next_to_nothing_cannot_block_the_link_for_ever() -> None:
    rig = Rig(stall_seconds=0.3)
    local, peer = await rig.connect()
    while local.unwritten < flow_control.BUDGET:
        rig.deliver(local)
    rig.deliver(local)
    loop = asyncio.get_running_loop()
    while not rig.given_up:
        await loop.sock_recv(peer, 100)
        await asyncio.sleep(0.005)
    assert rig.given_up == [local]
    await until(lambda: rig.link.reading)


@in_event_loop
async def test_a_closing_connection_slows_no_other_and_is_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "LINGER_SECONDS", 0.6)
    rig = Rig(stall_seconds=0.1)
    local, _peer = await rig.connect()
    rig.fill(local)
    assert not rig.link.reading
    began = asyncio.get_running_loop().time()
    local.finish()
    rig.flow_control.closing(local)
    assert rig.link.reading
    await until(lambda: rig.given_up)
    assert asyncio.get_running_loop().time() - began > 0.5


@in_event_loop
async def test_a_closing_connection_is_written_out_after_the_link_has_gone() -> None:
    rig = Rig(stall_seconds=1)
    local, peer = await rig.connect()
    rig.fill(local)
    expected = local.bytes_out
    rig.flow_control.link_down()
    local.finish()
    rig.flow_control.closing(local)
    received = 0
    while piece := await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
        received += len(piece)
    assert received == expected
    assert rig.given_up == []
