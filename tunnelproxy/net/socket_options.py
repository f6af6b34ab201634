# SPDX-License-Identifier: Apache-2.0
"""Options of TCP sockets that carry tunnels: how much may wait in the kernel, and when a silent peer counts as gone."""

from __future__ import annotations

import logging
import socket
import struct
import time
from typing import Callable

__all__ = [
    "DEAD_SECONDS",
    "LARGEST_RECEIVE_BUFFER",
    "RECEIVE_BUFFER",
    "SEND_BUFFER",
    "ReceiveBuffer",
    "UnansweredData",
    "keep_alive",
    "limit_unsent",
]

log = logging.getLogger(__name__)

SEND_BUFFER = 32 * 1024
"""Bytes that may wait to be sent before senders are paused. A keystroke in a shell joins the end of this queue, so the
queue is short."""

RECEIVE_BUFFER = 128 * 1024
"""Bytes: the smallest receive buffer in the kernel. The kernel's own choice grows to 6 MB, and the echo of a keystroke
waits behind all of it: during a bulk transfer, the 99th percentile of echoes was 150 ms. With 128 KiB and a round trip
of 100 ms, 1.3 MB/s pass; AWS lets 0.8 MB/s pass."""

LARGEST_RECEIVE_BUFFER = 256 * 1024
"""Bytes: the largest receive buffer in the kernel, used while that much arrives within :data:`_RECEIVE_SECONDS`. On two
processors it speeds up bulk transfers by a sixth, and delays echoes during one from 7 to 10 ms. Twice as much is no
faster, and delays them to 14 ms. The system may allow a little less (Linux's ``net.core.rmem_max``)."""

_RECEIVE_SECONDS = 0.004
"""How long data may wait in the kernel at the speed at which it is read."""

_MEASURED_BYTES = 512 * 1024
"""After how many bytes the speed is measured again."""

DEAD_SECONDS = 35.0
"""Seconds of silence after a ping, or after sending anything, after which the service counts as gone. Each ping checks
this: with one every 20 s, a dead service is noticed within a minute of its last sign of life."""

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, and tcpi_last_ack_recv in milliseconds.
_TCP_INFO = struct.Struct("=2xBB52xI")
_MANY_ATTEMPTS = 5

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


class ReceiveBuffer:
    """Adapts a connection's receive buffer in the kernel to its speed.

    A process that reads as fast as it can wakes up less often if more data may wait for it. Where the next hop is slow,
    more waiting data is only more delay.

    Args:
        sock: the connection's socket; nothing is set unless it is a TCP socket.
        clock: returns seconds.
    """

    __slots__ = ("_bytes", "_clock", "_since", "_size", "_sock")

    def __init__(self, sock: socket.socket | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = _if_tcp(sock)
        self._clock = clock
        self._size = 0
        self._bytes = 0
        self._since = clock()
        self._set(RECEIVE_BUFFER)

    def took(self, size: int) -> None:
        """Count bytes that were read, and resize the buffer if the speed has changed."""
        self._bytes += size
        if self._bytes < _MEASURED_BYTES:
            return
        now = self._clock()
        speed = self._bytes / max(now - self._since, 1e-6)
        self._bytes, self._since = 0, now
        wanted = RECEIVE_BUFFER
        while wanted < min(speed * _RECEIVE_SECONDS, LARGEST_RECEIVE_BUFFER):
            wanted *= 2
        self._set(wanted)

    def _set(self, size: int) -> None:
        if self._sock is not None and size != self._size:
            self._size = size
            _set_option(self._sock, socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def limit_unsent(sock: socket.socket | None, size: int) -> None:
    """Report a socket as writable only while the kernel has fewer than ``size`` bytes that it has not sent yet.

    Source: tcp(7), TCP_NOTSENT_LOWAT.
    """
    sock = _if_tcp(sock)
    if sock is not None:
        _set_option(sock, socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)


def keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel probe an idle connection, and end it after a minute without an answer.

    It does not probe while sent data is unacknowledged: see :class:`UnansweredData`.
    """
    sock = _if_tcp(sock)
    if sock is None:
        return
    _set_option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names
            _set_option(sock, socket.IPPROTO_TCP, getattr(socket, name), value)


class UnansweredData:
    """Measures for how long a peer has acknowledged none of the data that the kernel keeps resending.

    By itself the kernel gives up after a quarter of an hour. TCP_USER_TIMEOUT would make it give up earlier, but also
    on a peer that answers and does not read, and on one that answers: where a firewall of this machine drops outgoing
    packets for some seconds, Linux (seen in 6.18) counts from the previous time that this happened.

    Args:
        sock: the connection's socket; unless it is a TCP socket, its peer always counts as answering.
        clock: returns seconds.
    """

    __slots__ = ("_answered_at", "_clock", "_sock")

    def __init__(self, sock: socket.socket | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = _if_tcp(sock) if hasattr(socket, "TCP_INFO") else None
        self._clock = clock
        self._answered_at = clock()

    def seconds(self) -> float:
        """For how long the peer has not answered, as far as the previous calls can tell; 0 if it answers.

        Call it at regular intervals. A connection that was idle until a moment ago received its last acknowledgement
        long ago, so no more counts than the time since the last call that returned 0.
        """
        now = self._clock()
        silence = 0.0 if self._sock is None else _seconds_since_last_answer(self._sock)
        if not silence:
            self._answered_at = now
        return min(silence, now - self._answered_at)


def _seconds_since_last_answer(sock: socket.socket) -> float:
    """Seconds since the peer's last acknowledgement, if the kernel has resent data several times since; otherwise 0."""
    retransmissions, probes, milliseconds = _TCP_INFO.unpack(
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    )
    # Where this machine cannot send at all, for lack of a route, the kernel probes. An answer resets both to zero.
    return milliseconds / 1000 if max(retransmissions, probes) >= _MANY_ATTEMPTS else 0.0


def _if_tcp(sock: socket.socket | None) -> socket.socket | None:
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _set_option(sock: socket.socket, level: int, option: int, value: int) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        log.debug("cannot set socket option %s: %s", option, error)
