# SPDX-License-Identifier: GPL-3.0-or-later
"""Queues of real sockets of the loopback. Only the speed is the test's."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from peers.event_loop import in_event_loop
from tunnelproxy.net.send_queue import SMALLEST_QUEUE, SendQueue

LARGEST = 32 * 1024
TCP_NOTSENT_LOWAT = 25

if not sys.platform.startswith("linux"):
    pytest.skip("other systems have another option, or none", allow_module_level=True)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Path:
    """A transport whose write buffer the test drains. Everything else is a real one's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.waiting = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


@asynccontextmanager
async def connected() -> AsyncIterator[asyncio.Transport]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        try:
            yield transport
        finally:
            transport.abort()


def limits_of(transport: asyncio.Transport) -> tuple[int, int]:
    """What may wait in this process, and in the kernel."""
    sock = transport.get_extra_info("socket")
    return transport.get_write_buffer_limits()[1], sock.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT)


def deliver(queue: SendQueue, path: Path, clock: Clock, bytes_per_second: int) -> None:
    """Fill the queue again and again, and have the path deliver it."""
    for _ in range(100):
        path.waiting = 64 * 1024
        queue.filled()
        clock.now += (path.waiting - 1024) / bytes_per_second
        path.waiting = 1024
        queue.drained()
    path.waiting = 64 * 1024
    queue.filled()


@pytest.mark.parametrize(
    ("bytes_per_second", "size"), [(100_000, SMALLEST_QUEUE), (1_000_000, 20_000), (100_000_000, LARGEST)]
)
@in_event_loop
async def test_the_queue_holds_what_the_path_delivers_in_a_fiftieth_of_a_second(
    bytes_per_second: int, size: int
) -> None:
    clock = Clock()
    async with connected() as transport:
        path = Path(transport)
        queue = SendQueue(cast(asyncio.Transport, path), LARGEST, clock)
        assert queue.size == LARGEST
        assert limits_of(transport) == (LARGEST, LARGEST)
        deliver(queue, path, clock, bytes_per_second)
        assert queue.size == pytest.approx(size, rel=0.001)
        assert limits_of(transport) == (queue.size, queue.size)
        deliver(queue, path, clock, 100_000_000)
        assert queue.size == LARGEST


@in_event_loop
async def test_time_in_which_little_was_sent_does_not_shorten_the_queue() -> None:
    clock = Clock()
    async with connected() as transport:
        path = Path(transport)
        queue = SendQueue(cast(asyncio.Transport, path), LARGEST, clock)
        for _ in range(10):
            clock.now += 3600
            deliver(queue, path, clock, 100_000_000)
        assert queue.size == LARGEST


@in_event_loop
async def test_a_pause_of_the_sender_does_not_shorten_the_queue() -> None:
    """BBR makes one of 0.2 s every ten seconds."""
    clock = Clock()
    async with connected() as transport:
        path = Path(transport)
        queue = SendQueue(cast(asyncio.Transport, path), LARGEST, clock)
        deliver(queue, path, clock, 10_000_000)
        for _ in range(4):
            path.waiting = 64 * 1024
            queue.filled()
            clock.now += 0.05
            queue.drained()
        queue.filled()
        assert queue.size == LARGEST


@in_event_loop
async def test_a_socket_of_another_kind_has_water_marks_only() -> None:
    clock = Clock()
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        path = Path(transport)
        queue = SendQueue(cast(asyncio.Transport, path), LARGEST, clock)
        deliver(queue, path, clock, 100_000)
        assert transport.get_write_buffer_limits()[1] == queue.size == SMALLEST_QUEUE
        transport.abort()
