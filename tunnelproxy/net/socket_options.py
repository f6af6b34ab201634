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
    "SEND_BUFFER",
    "UnansweredData",
    "keep_alive",
    "limit_unsent",
    "set_option",
    "tcp_socket",
]

log = logging.getLogger(__name__)

SEND_BUFFER = 32 * 1024
"""Bytes that may wait to be sent before senders are paused, in the kernel and again in this process. A keystroke in a
shell joins the end of this queue, so the queue is short."""

DEAD_SECONDS = 35.0
"""Seconds of silence after a ping, or after sending anything, after which the service counts as gone. Each ping checks
this: with one every 20 s, a dead service is noticed within a minute of its last sign of life."""

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, and tcpi_last_ack_recv in milliseconds.
_TCP_INFO = struct.Struct("=2xBB52xI")
_MANY_ATTEMPTS = 5

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


def limit_unsent(sock: socket.socket | None, size: int) -> None:
    """Report a socket as writable only while the kernel has fewer than ``size`` bytes that it has not sent yet.

    Source: tcp(7), TCP_NOTSENT_LOWAT.
    """
    sock = tcp_socket(sock)
    if sock is not None:
        set_option(sock, socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)


def keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel probe an idle connection, and end it after a minute without an answer.

    It does not probe while sent data is unacknowledged: see :class:`UnansweredData`.
    """
    sock = tcp_socket(sock)
    if sock is None:
        return
    set_option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names
            set_option(sock, socket.IPPROTO_TCP, getattr(socket, name), value)


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
        self._sock = tcp_socket(sock) if hasattr(socket, "TCP_INFO") else None
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


def tcp_socket(sock: socket.socket | None) -> socket.socket | None:
    """The socket, if it is one of TCP."""
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def set_option(sock: socket.socket, level: int, option: int, value: int) -> None:
    """Set an option of a socket, if the system has it: the connection works without it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        log.debug("cannot set socket option %s: %s", option, error)
