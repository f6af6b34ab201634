# SPDX-License-Identifier: GPL-3.0-or-later
"""A local socket with a real peer: what waits, what is written before a close, and when reading stops."""

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
    """Counts the reports."""

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
    """A guard that passes what begins with "good", and waits while the bytes may become that."""

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
def test_a_rejected_connection_reads_nothing_from_the_next_one_with_its_descriptor(kind: str) -> None:
    async def reject_and_continue() -> None:
        rejected, peer = LocalSocket(Owner()), None
        rejected.finish()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        await connections.accept(lambda: rejected, ours)
        await until(lambda: rejected.ended)
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

    on(pytest.importorskip(kind).new_event_loop, reject_and_continue())


@in_event_loop
async def test_data_that_came_before_the_connection_is_written_once_it_is_made() -> None:
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
async def test_a_peer_that_does_not_read_is_reported_and_so_is_its_recovery() -> None:
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
async def test_the_end_of_the_peer_is_reported_after_its_last_bytes() -> None:
    owner = Owner()
    local, peer = await connected(owner)
    peer.send(b"last words")
    peer.close()
    await until(lambda: local.pending)
    assert not local.ended
    assert local.take(MAX_PAYLOAD) == b"last words"
    await until(lambda: local.ended)


@in_event_loop
async def test_answered_distinguishes_a_connection_that_got_data_from_one_that_ended_without() -> None:
    spoke, _peer = await connected(Owner())
    silent, _other = await connected(Owner())
    spoke.deliver(b"SSH-2.0")
    spoke.finish()
    silent.finish()
    assert (await spoke.answered, await silent.answered) == (True, False)


@in_event_loop
async def test_one_that_reads_ahead_reads_until_a_messages_worth_waits_and_sees_its_peer_leave() -> None:
    local, peer = await connected(Owner())
    local.reads_ahead = True
    peer.send(b"first ")
    await until(lambda: bytes(local.pending) == b"first ")
    peer.send(b"second")
    await until(lambda: bytes(local.pending) == b"first second")
    peer.close()
    await until(lambda: local.ended)
    assert bytes(local.pending) == b"first second"


@in_event_loop
async def test_aborting_drops_what_waits() -> None:
    local = LocalSocket(Owner())
    local.deliver(b"early")
    local.abort()
    assert not local.wanted


def kernel_timer(port: int, peer_port: int) -> str:
    """What the kernel's timer of a connection between two ports of the loopback is for (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [f"0100007F:{number:04X}" for number in (port, peer_port)]
    (timer,) = [row[5] for row in rows if row[1:3] == ends]
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
            assert kernel_timer(peer.getpeername()[1], server.getsockname()[1]) == "keepalive"
        local.abort()


@in_event_loop
async def test_what_the_guard_passes_is_forwarded_unchanged() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    assert local.awaits_guard
    peer.send(b"good morning")
    await until(lambda: local.pending)
    assert (local.take(MAX_PAYLOAD), local.awaits_guard) == (b"good morning", False)


@in_event_loop
async def test_a_refused_peer_gets_the_answer_however_much_it_sends_and_nothing_is_forwarded() -> None:
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
async def test_a_refused_peer_that_has_closed_its_side_gets_the_answer_too() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"bad")
    peer.shutdown(socket.SHUT_WR)
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"no"
    await until(lambda: local.ended)


@in_event_loop
async def test_a_refused_peer_that_does_not_close_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.local_socket.LINGER_SECONDS", 0.01)
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"bad")
    await until(lambda: local.ended)


@in_event_loop
async def test_a_refusal_after_something_was_forwarded_ends_the_connection_without_an_answer() -> None:
    local, peer = await connected(Owner(), OnlyGood())
    peer.send(b"good")
    await until(lambda: local.pending)
    assert local.take(MAX_PAYLOAD) == b"good"
    peer.send(b"bad")
    await until(lambda: local.ended)
    assert local.pending == b""
    local.finish()  # as its owner does then
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""
