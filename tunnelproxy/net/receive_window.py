# SPDX-License-Identifier: Apache-2.0
"""How much a peer may send ahead: what its path needs, and little more, because a keystroke waits behind all of it.

The kernel's own window grows until the line's queue is full, or to ``net.ipv4.tcp_rmem``, usually 6 MB. A fixed one is
too small for long lines: 128 KiB are 1.3 MB/s at a round trip of 100 ms. So a far peer gets a little more than what
arrives in the path's shortest round trip, whatever congestion control it uses (compare Jiang et al., "Tackling
Bufferbloat in 3G/4G Networks", 2012). What it sends beyond that would only wait in the line's queue.

A window does not limit what lies unread: the kernel offers it again behind the unread data, until the receive buffer is
full. For a near peer, the receive buffer itself is limited instead. That is impossible for a far one: a process may ask
for no more than ``net.core.rmem_max``, and the kernel no longer adapts a buffer for which it was asked.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import time
from typing import Callable

from .socket_options import set_option, tcp_socket

__all__ = ["FIRST_BUFFER", "LARGEST_BUFFER", "SMALLEST_BUFFER", "SMALLEST_WINDOW", "ReceiveWindow", "Shares"]

FIRST_BUFFER = 64 * 1024
"""Bytes: the first receive buffer for a near peer."""

SMALLEST_BUFFER = 16 * 1024
"""Bytes: the smallest one. It is never smaller than a packet, or the peer would wait for its timer; on the loopback,
packets have 64 KiB."""

LARGEST_BUFFER = 256 * 1024
"""Bytes: the largest one, used while that much arrives within :data:`_READ_SECONDS`. On two processors it speeds up
bulk transfers by a sixth, compared with half as much. Twice as much is no faster, and delays echoes to 14 ms. The
system may allow a little less (Linux's ``net.core.rmem_max``)."""

SMALLEST_WINDOW = 128 * 1024
"""Bytes: the smallest window for a far peer, and its first one."""

LARGEST_WINDOW = 16 * 1024 * 1024
"""Bytes: the largest one. That is 200 Mbit/s with a round trip of 600 ms."""

ALL_WINDOWS = 128 * 1024 * 1024
"""Bytes: the windows of all far peers of a process, without the smallest ones."""

_NEAR_SECONDS = 0.002
"""A peer with a shorter round trip is near: 256 KiB suffice for 128 MB/s."""

_READ_SECONDS = 0.004
"""How long data may wait in the receive buffer for a near peer, at the speed at which it is read."""

_MEASURED_BYTES = 256 * 1024
"""After how many bytes from a near peer the speed is measured again."""

_ROUND_TRIPS, _GROWING_ROUND_TRIPS = 1.25, 2.0
"""The window is what arrives in so many of the shortest round trips: the second number while the speed is growing."""

_LOSS_ROUND_TRIPS, _LOSS_SECONDS = 0.75, 0.1
"""While packets are lost, it is larger by what arrives in so many round trips, or in so much time if that is less: each
packet holds up the window until it has been sent again. With 1.25 round trips alone, two thirds of the speed were left
with 80 ms and a loss of 1 %. With a whole round trip more, a line of 600 ms loses packets because its queue is full."""

_JITTER_SECONDS = 0.02
"""And in so much time. With 1.25 round trips alone, a line whose usual round trip is a third longer than its shortest
would slow down to the smallest window."""

_MEASURED_SECONDS = 0.1
"""For how long the speed is measured, at least. In less, packets that arrive late together look like speed."""

_FASTER = 1.2
"""The speed is growing if it is that many times the best one so far."""

_FORGET = 0.95
"""Each measurement makes the best speed count that much less."""

_TRICKLE = 16 * 1024
"""Bytes: the window of a far peer from which nothing has been read for a while. Each round trip adds as much to what
lies unread; a smaller window may keep the peer waiting for its timer after that."""

_IDLE_SECONDS = 60.0
"""After how long without data a far peer's large window is made small when another one grows."""

_TCP_WINDOW_CLAMP = getattr(socket, "TCP_WINDOW_CLAMP", 10)

# Of Linux's struct tcp_info: tcpi_bytes_received, tcpi_min_rtt in microseconds, and tcpi_rcv_ooopack.
_TCP_INFO = struct.Struct("=128xQ12xI72xI")
_UNKNOWN = 0xFFFFFFFF

_INT = struct.Struct("i")


class Shares:
    """Divides the memory for the windows of far peers among those that need a large one.

    Args:
        total: bytes.
    """

    def __init__(self, total: int = ALL_WINDOWS) -> None:
        self._total = total
        self._large: dict[ReceiveWindow, float] = {}
        """When each large window was measured last, in this order."""

    def claim(self, window: ReceiveWindow, wanted: int, now: float) -> int:
        """Return the size that a window gets. Those of idle connections give theirs back.

        Args:
            now: the time, in seconds.
        """
        self.release(window)
        for other, measured in list(self._large.items()):
            if now - measured < _IDLE_SECONDS:
                break
            del self._large[other]
            other.shrink()
        if wanted > SMALLEST_WINDOW:
            self._large[window] = now
        return min(wanted, max(SMALLEST_WINDOW, self._total // max(1, len(self._large))))

    def release(self, window: ReceiveWindow) -> None:
        """A window is no longer in use."""
        self._large.pop(window, None)


_shares = Shares()


class ReceiveWindow:
    """Limits what the peer of a connection sends ahead.

    Args:
        sock: the connection's socket; nothing is limited unless it is a TCP socket of Linux.
        clock: returns seconds.
        shares: what the windows of this process divide.
    """

    __slots__ = (
        "_arrived",
        "_best",
        "_bytes",
        "_clock",
        "_disordered",
        "_latest",
        "_near",
        "_round_trip",
        "_shares",
        "_since",
        "_sock",
        "size",
    )

    def __init__(
        self,
        sock: socket.socket | None,
        clock: Callable[[], float] = time.monotonic,
        shares: Shares = _shares,
    ) -> None:
        self._sock = tcp_socket(sock) if sys.platform.startswith("linux") else None
        self._clock = clock
        self._shares = shares
        self._bytes = 0
        self._best = 0.0
        self._since = self._latest = clock()
        self._arrived = self._disordered = 0
        self._round_trip = 0.0
        self.size = 0
        """The window of a far peer, or the receive buffer for a near one, in bytes; 0 if nothing is limited."""
        if self._sock is not None:
            self._arrived, self._round_trip, self._disordered = measure(self._sock)
        self._near = self._round_trip < _NEAR_SECONDS
        self._limit(FIRST_BUFFER if self._near else SMALLEST_WINDOW)

    @property
    def is_far(self) -> bool:
        """Whether the peer is far away."""
        return not self._near

    def took(self, size: int) -> None:
        """Count bytes that were read, and adapt the limit to the speed."""
        self._bytes += size
        if self._near:
            if self._bytes >= _MEASURED_BYTES:
                self._adapt_buffer()
            return
        now = self._clock()
        if now - self._latest > 2 * self._round_trip:
            # It was idle. What the peer did not send says nothing about the path.
            self._adapt_window(now, was_idle=True)
        elif self._bytes >= self.size // 2 and now - self._since >= max(self._round_trip, _MEASURED_SECONDS):
            self._adapt_window(now)
        self._latest = now

    def resumed(self) -> None:
        """Reading has been paused, and goes on: what lies unread is part of the window."""
        if not self._near:
            self._limit(self.size)

    def stalled(self) -> None:
        """Reading has been paused for a while: from now on, the peer may send hardly more."""
        if self._sock is not None and not self._near:
            set_option(self._sock, socket.IPPROTO_TCP, _TCP_WINDOW_CLAMP, _TRICKLE)

    def shrink(self) -> None:
        """Return to the smallest window."""
        self._best = 0.0
        self._limit(SMALLEST_WINDOW)

    def close(self) -> None:
        """The connection has ended."""
        self._sock = None
        self._shares.release(self)

    def _adapt_buffer(self) -> None:
        if self._sock is None:
            return
        now = self._clock()
        speed = self._bytes / max(now - self._since, 1e-6)
        self._bytes, self._since = 0, now
        needed = max(_packet_size(self._sock), min(speed * _READ_SECONDS, LARGEST_BUFFER))
        wanted = SMALLEST_BUFFER
        while wanted < needed:
            wanted *= 2
        if wanted != self.size:
            self._limit(wanted)

    def _adapt_window(self, now: float, *, was_idle: bool = False) -> None:
        if self._sock is None:
            return
        arrived, round_trip, disordered = measure(self._sock)
        # The kernel counts, because this process may read late.
        speed = (arrived - self._arrived) / (now - self._since)
        loses = disordered != self._disordered
        self._arrived, self._disordered, self._bytes, self._since = arrived, disordered, 0, now
        if was_idle:
            return
        # The kernel forgets its minimum: after five minutes of bulk data it would contain the queue.
        self._round_trip = min(self._round_trip, round_trip)
        round_trips = _GROWING_ROUND_TRIPS if speed > _FASTER * self._best else _ROUND_TRIPS
        seconds = round_trips * self._round_trip + _JITTER_SECONDS
        if loses:
            seconds += min(_LOSS_ROUND_TRIPS * self._round_trip, _LOSS_SECONDS)
        self._best = max(speed, _FORGET * self._best)
        wanted = int(self._best * seconds)
        # Each time: when the kernel enlarges the receive buffer, it lifts the limit.
        self._limit(self._shares.claim(self, min(max(wanted, SMALLEST_WINDOW), LARGEST_WINDOW), now))

    def _limit(self, size: int) -> None:
        if self._sock is None:
            return
        self.size = size
        if self._near:
            set_option(self._sock, socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        else:
            set_option(self._sock, socket.IPPROTO_TCP, _TCP_WINDOW_CLAMP, max(size - _unread(self._sock), size // 4))


def measure(sock: socket.socket) -> tuple[int, float, int]:
    """The bytes that have arrived, the shortest round trip in seconds, and the packets that arrived out of order.

    The round trip is 0 if the kernel does not know it, or does not tell all this (before Linux 5.4).
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return 0, 0.0, 0
    arrived, microseconds, disordered = _TCP_INFO.unpack(info)
    return arrived, microseconds / 1e6 if microseconds != _UNKNOWN else 0.0, disordered


def _packet_size(sock: socket.socket) -> int:
    """The size of the packets that the peer may send, in bytes: tcpi_advmss."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 88)[84:], sys.byteorder)


def _unread(sock: socket.socket) -> int:
    """Bytes that the kernel has received and this process has not read. Source: tcp(7), SIOCINQ."""
    return _INT.unpack(fcntl.ioctl(sock, termios.FIONREAD, bytes(_INT.size)))[0]  # type: ignore[no-any-return]
