# SPDX-License-Identifier: Apache-2.0
"""What a link wants of a TCP socket."""

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
    "keep_alive",
    "tune",
    "unanswered_seconds",
]

log = logging.getLogger(__name__)

SEND_BUFFER = 32 * 1024
"""Bytes that may wait in this process before senders are held back: little, so that a shell's keystroke, which goes to
the end of this queue, is not late."""

RECEIVE_BUFFER = 128 * 1024
"""Bytes that the kernel may hold for this process, at least. Left to itself it takes up to 6 MB, and a shell's echo
waits behind all of it: beside bulk data, 99 in 100 echoes took up to 150 ms then. It lets 1.3 MB/s through at a round
trip of 100 ms, and AWS 0.8 MB/s."""

LARGEST_RECEIVE_BUFFER = 256 * 1024
"""The same at most, where that much comes in :data:`RECEIVE_SECONDS`. On two processors it makes bulk data a sixth
faster, and echoes beside it 10 ms instead of 7. Twice as much makes it no faster, and those echoes 14 ms. The system
may allow a little less (Linux's ``net.core.rmem_max``)."""

RECEIVE_SECONDS = 0.004
"""How long what the kernel holds may have to wait at the speed at which it is taken."""

_LOOK_BYTES = 512 * 1024

DEAD_SECONDS = 35.0
"""How long after a ping, or after sending anything, silence means that the service is gone. It is looked at with each
ping, so that with one every 20 s a dead service is found 55 s after its last sign of life at the latest."""

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, and tcpi_last_ack_recv in milliseconds.
_TCP_INFO = struct.Struct("=2xBB52xI")
_MANY_ATTEMPTS = 5

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


class ReceiveBuffer:
    """Keeps the kernel's receive buffer of a connection as large as its speed deserves.

    A process that takes what comes as fast as it can is woken less often when more may wait for it. Where the next hop
    is slow, more that waits is only more that is late.

    Args:
        clock: gives seconds.
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
        """So many bytes have been taken."""
        self._bytes += size
        if self._bytes < _LOOK_BYTES:
            return
        now = self._clock()
        speed = self._bytes / max(now - self._since, 1e-6)
        self._bytes, self._since = 0, now
        wanted = RECEIVE_BUFFER
        while wanted < min(speed * RECEIVE_SECONDS, LARGEST_RECEIVE_BUFFER):
            wanted *= 2
        self._set(wanted)

    def _set(self, size: int) -> None:
        if self._sock is not None and size != self._size:
            self._size = size
            _set_option(self._sock, socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def tune(sock: socket.socket | None) -> None:
    """Keep the queue of what is to be sent short, and have the kernel give up on a peer that acknowledges nothing."""
    sock = _if_tcp(sock)
    if sock is None:
        return
    options = (
        (socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, SEND_BUFFER),
        (socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(DEAD_SECONDS * 1000)),
    )
    for level, option, value in options:
        _set_option(sock, level, option, value)


def keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel probe a connection on which nothing comes, and end it after a minute without an answer.

    It does not probe while something that was sent is unacknowledged: see :func:`unanswered_seconds`.
    """
    sock = _if_tcp(sock)
    if sock is None:
        return
    _set_option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names
            _set_option(sock, socket.IPPROTO_TCP, getattr(socket, name), value)


def unanswered_seconds(sock: socket.socket | None) -> float:
    """For how long the peer has acknowledged nothing of what it was sent again and again; 0 where it answers.

    The kernel itself gives up after a quarter of an hour. With TCP_USER_TIMEOUT it does so earlier, but also with a
    peer that answers and does not read.
    """
    sock = _if_tcp(sock)
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return 0.0
    retransmissions, probes, milliseconds = _TCP_INFO.unpack(
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    )
    # Where this machine itself cannot send, as without a route, the kernel probes. An answer sets both to zero.
    return milliseconds / 1000 if max(retransmissions, probes) >= _MANY_ATTEMPTS else 0.0


def _if_tcp(sock: socket.socket | None) -> socket.socket | None:
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _set_option(sock: socket.socket, level: int, option: int, value: int) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        log.debug("socket option %s is not to be had here: %s", option, error)
