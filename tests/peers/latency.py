# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency: a TCP relay, in a separate process, that delays every byte in each direction.

For machines whose kernel has no netem. It limits a connection like TCP's window on a long path: at most a window of
bytes is in flight, and each counts until its acknowledgement could have arrived. A new connection waits for a round
trip, as for TCP's handshake. There is no loss, no slow start and no limit of the bandwidth: a real path may be slower.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from peers.process import Process
from tunnelproxy.net.socket_options import RECEIVE_BUFFER

if TYPE_CHECKING:
    from peers.service import TunnelingService

__all__ = ["KERNEL_WINDOW", "LatencyRelay", "with_latency"]

KERNEL_WINDOW = 3 * 1024 * 1024
"""Without SO_RCVBUF, Linux grows the receive buffer to 6 MB (net.ipv4.tcp_rmem), half of which is the window."""

CHUNK = 64 * 1024
# The buffers of the relay's own sockets add to the window, and the kernel doubles them.
SOCKET_SHARE = 16


class LatencyRelay:
    """Forwards connections from its own loopback ports, ``ports``, to the targets. Use it as a context manager.

    Args:
        targets: loopback ports.
        milliseconds: the delay in each direction.
        log: the file for its output.
        window: bytes that may be in flight on one connection in one direction.
    """

    def __init__(self, targets: Sequence[int], milliseconds: float, log: Path, *, window: int = KERNEL_WINDOW) -> None:
        tests = str(Path(__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {tests!r}); from peers.latency import main; main()"
        command = [sys.executable, "-c", code, str(milliseconds), str(window), *map(str, targets)]
        self._process = Process(command, log)
        self.ports = [int(port) for port in self._process.wait_for_output(r"ready((?: \d+)+)\n")[1].split()]

    def __enter__(self) -> LatencyRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()


@contextmanager
def with_latency(service: TunnelingService, milliseconds: float, log: Path) -> Iterator[None]:
    """Change the service's environment so that clients reach the data plane through a relay with this latency.

    The window is that of a link, for both ends.
    """
    if not milliseconds:
        yield
        return
    host, _, port = service.data.rpartition(":")
    with LatencyRelay([int(port)], milliseconds, log, window=RECEIVE_BUFFER) as relay:
        service.environment["AWSIOT_TUNNEL_ENDPOINT"] = f"{host}:{relay.ports[0]}"
        yield


class _Direction:
    """The bytes in flight from one end to the other."""

    def __init__(self, sender: _End, receiver: _End, seconds: float, window: int) -> None:
        self.room = window
        self._sender = sender
        self._receiver = receiver
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        # The arrival time of each piece; an empty piece is the end.
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, piece: bytes) -> None:
        self.room -= len(piece)
        self._pieces.append((self._loop.time() + self._seconds, piece))
        if self._timer is None:
            self.deliver()

    def deliver(self) -> None:
        """Deliver the data that has arrived, as far as the receiver accepts it, and continue later with the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pieces and self._receiver.writable:
            due, piece = self._pieces[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.deliver)
                return
            self._pieces.popleft()
            self._receiver.write(piece)
            self._loop.call_later(self._seconds, self._acknowledge, len(piece))

    def _acknowledge(self, size: int) -> None:
        self.room += size
        self._sender.read_on()


class _End(asyncio.BufferedProtocol):
    """The relay's end of the connection with one of the two peers."""

    outward: _Direction
    inward: _Direction

    def __init__(self) -> None:
        self.writable = False
        self._ended = False
        self._finished = False
        self._buffer = memoryview(bytearray(CHUNK))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[: self.outward.room]

    def buffer_updated(self, nbytes: int) -> None:
        self.outward.send(bytes(self._buffer[:nbytes]))
        if self.outward.room <= 0 and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        # Drop further data for it, so that the sender's connection is closed too.
        self.resume_writing()
        self._end()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.inward.deliver()

    def read_on(self) -> None:
        if self._transport is not None and not self._ended:
            self._transport.resume_reading()

    def write(self, piece: bytes) -> None:
        if self._transport is None:
            return
        if piece:
            self._transport.write(piece)
            return
        self._finished = True
        if self._ended:
            self._transport.close()
        else:
            self._transport.write_eof()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.outward.send(b"")
        if self._finished and self._transport is not None:
            self._transport.close()


async def _carry(near: socket.socket, target: int, seconds: float, window: int) -> None:
    """Connect the two ends with the delay between them; the client may send after a round trip."""
    loop = asyncio.get_running_loop()
    ends = _End(), _End()
    ends[0].outward = ends[1].inward = _Direction(*ends, seconds, window)
    ends[1].outward = ends[0].inward = _Direction(*reversed(ends), seconds, window)
    await asyncio.sleep(2 * seconds)
    await loop.create_connection(lambda: ends[0], sock=near)
    await asyncio.sleep(seconds)
    far = _small(socket.socket(), window)
    far.setblocking(False)
    try:
        await loop.sock_connect(far, ("127.0.0.1", target))
    except OSError:
        ends[0].abort()
        return
    await loop.create_connection(lambda: ends[1], sock=far)


def _small(sock: socket.socket, window: int) -> socket.socket:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, window // SOCKET_SHARE)
    return sock


async def _relay(seconds: float, window: int, targets: Sequence[int]) -> None:
    loop = asyncio.get_running_loop()
    listeners = [_small(socket.create_server(("127.0.0.1", 0), backlog=1024), window) for _ in targets]
    print("ready", *(listener.getsockname()[1] for listener in listeners), flush=True)
    carried = set()

    async def accept(listener: socket.socket, target: int) -> None:
        listener.setblocking(False)
        while True:
            near, _ = await loop.sock_accept(listener)
            task = loop.create_task(_carry(near, target, seconds, window))
            carried.add(task)
            task.add_done_callback(carried.discard)

    await asyncio.gather(*map(accept, listeners, targets))


def main() -> None:
    """``MILLISECONDS WINDOW TARGET…``"""
    milliseconds, window, *targets = sys.argv[1:]
    asyncio.run(_relay(float(milliseconds) / 1000, int(window), list(map(int, targets))))
