# SPDX-License-Identifier: GPL-3.0-or-later
"""A local socket against a real one: what waits, what is flushed, and when reading stops."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net import connections
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Bytes
from tunnelproxy.proxy.local_socket import RECEIVE_BUFFER, LocalSocket


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.full = 0
        self.drained = 0
        self.ready = 0

    def local_ready(self, local: LocalSocket) -> None:
        self.ready += 1

    def local_full(self, local: LocalSocket) -> None:
        self.full += 1

    def local_drained(self, local: LocalSocket) -> None:
        self.drained += 1


class OnlyGood:
    """A guard that lets pass what begins with "good", and keeps what may become that."""

    def __init__(self) -> None:
        self.answer: bytes | None = None

    def receive(self, data: Bytes) -> Bytes:
        if not b"good".startswith(bytes(data[:4])):
            self.answer = b"no"
        return data if bytes(data[:4]) == b"good" else b""


async def connected(owner: Owner, guard: OnlyGood | None = None) -> tuple[LocalSocket, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    local = LocalSocket(owner, guard=guard)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
    return local, theirs


@in_event_loop
async def test_it_reads_one_messages_worth_and_then_waits_for_its_turn() -> None:
    local, peer = await connected(Owner())
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(peer, bytes(3 * MAX_PAYLOAD)))
    await until(lambda: local.pending)
    taken = 0
    while taken < 3 * MAX_PAYLOAD:
        assert len(local.pending) <= MAX_PAYLOAD
        taken += len(local.take(MAX_PAYLOAD))
        await asyncio.sleep(0)
    await sending
    assert local.bytes_in == 3 * MAX_PAYLOAD


def on(loop: Callable[[], asyncio.AbstractEventLoop], test: Coroutine[Any, Any, None]) -> None:
    running = loop()
    try:
        running.run_until_complete(asyncio.wait_for(test, 60))
    finally:
        running.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_one_that_was_turned_away_reads_nothing_of_the_next_with_its_number(kind: str) -> None:
    async def turn_away_and_go_on() -> None:
        turned_away, peer = LocalSocket(Owner()), None
        turned_away.finish()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        await connections.accept(lambda: turned_away, ours)
        await until(lambda: turned_away.ended)
        theirs.close()
        pairs = [socket.socketpair() for _ in range(3)]
        (ours, peer) = next(pair for pair in pairs if pair[0].fileno() == number)
        local = LocalSocket(Owner())
        await connections.accept(lambda: local, ours)
        peer.send(b"hello")
        await until(lambda: local.pending == b"hello")
        local.abort()
        await until(lambda: local.ended and not local.unwritten)
        for end in (end for pair in pairs for end in pair if end is not ours):
            end.close()

    on(pytest.importorskip(kind).new_event_loop, turn_away_and_go_on())


@in_event_loop
async def test_what_came_before_the_connection_is_written_once_there_is_one() -> None:
    local = LocalSocket(Owner())
    local.deliver(b"early ")
    local.finish()
    assert local.wanted
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b"early "
    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b""


@in_event_loop
async def test_finishing_writes_what_waits_and_then_closes() -> None:
    local, peer = await connected(Owner())
    data = bytes(range(256)) * 8192
    local.deliver(data)
    local.finish()
    received = b""
    while piece := await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
        received += piece
    assert received == data


@in_event_loop
async def test_a_peer_that_does_not_read_is_told_of_and_so_is_its_recovery() -> None:
    owner = Owner()
    local, peer = await connected(owner)
    while not owner.full:
        local.deliver(bytes(MAX_PAYLOAD))
    assert local.unwritten > RECEIVE_BUFFER
    before = owner.drained
    while local.unwritten:
        await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
        await asyncio.sleep(0)
    assert owner.drained == before + 1


@in_event_loop
async def test_the_end_of_the_peer_is_told_after_its_last_bytes() -> None:
    owner = Owner()
    local, peer = await connected(owner)
    peer.send(b"last words")
    peer.close()
    await until(lambda: local.pending)
    assert not local.ended
    assert local.take(MAX_PAYLOAD) == b"last words"
    await until(lambda: local.ended)


@in_event_loop
async def test_answered_tells_a_connection_that_spoke_from_one_that_ended_silently() -> None:
    spoke, _peer = await connected(Owner())
    silent, _other = await connected(Owner())
    spoke.deliver(b"SSH-2.0")
    spoke.finish()
    silent.finish()
    assert (await spoke.answered, await silent.answered) == (True, False)


@in_event_loop
async def test_aborting_drops_what_waits() -> None:
    local = LocalSocket(Owner())
    local.deliver(b"early")
    local.abort()
    assert not local.wanted


def kernel_timer(port: int) -> str:
    """What the kernel's timer of the connection at a local port is for (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (timer,) = [row[5] for row in rows if row[1].endswith(f":{port:04X}")]
    return {"00": "none", "01": "retransmission", "02": "keepalive"}[timer[:2]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@in_event_loop
async def test_a_peer_on_another_machine_that_vanishes_is_found_by_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        local = LocalSocket(Owner())
        await connections.connect(lambda: local, *server.getsockname())
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"x")
            await until(lambda: local.pending)
            assert kernel_timer(peer.getpeername()[1]) == "keepalive"
        local.abort()


@in_event_loop
async def test_what_the_guard_lets_pass_is_as_without_one() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    assert local.awaits_guard
    peer.send(b"good morning")
    await until(lambda: local.pending)
    assert (local.take(MAX_PAYLOAD), local.awaits_guard) == (b"good morning", False)


@in_event_loop
async def test_a_peer_that_is_refused_reads_the_answer_however_much_it_sends_and_nothing_goes_on() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(peer, bytes(5 * MAX_PAYLOAD)))
    assert await loop.sock_recv(peer, 100) == b"no"
    assert await loop.sock_recv(peer, 100) == b""
    await sending
    assert (local.pending, local.bytes_in, local.awaits_guard) == (b"", 0, True)
    peer.close()
    await until(lambda: local.ended)


@in_event_loop
async def test_a_peer_that_has_closed_its_side_is_answered_too() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"bad")
    peer.shutdown(socket.SHUT_WR)
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"no"
    await until(lambda: local.ended)


@in_event_loop
async def test_a_peer_that_stays_after_a_refusal_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.local_socket.LINGER_SECONDS", 0.01)
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"bad")
    await until(lambda: local.ended)


@in_event_loop
async def test_a_refusal_after_something_went_on_ends_the_connection_without_an_answer() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"good")
    await until(lambda: local.pending)
    assert local.take(MAX_PAYLOAD) == b"good"
    peer.send(b"bad")
    await until(lambda: local.ended)
    assert local.pending == b""
    local.finish()  # as its owner does then
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""
