# SPDX-License-Identifier: Apache-2.0
"""What the link wants of a TCP socket, and what went wrong with one in words."""

from __future__ import annotations

import logging
import socket

__all__ = ["DEAD_SECONDS", "SEND_BUFFER", "reason", "tune"]

log = logging.getLogger(__name__)

SEND_BUFFER = 32 * 1024
"""Bytes that may wait in this process before senders are held back: little, so that a shell's keystroke, which goes to
the end of this queue, is not late."""

RECEIVE_BUFFER = 128 * 1024
"""Bytes that the kernel may hold for this process. Left to itself it takes up to 6 MB, and a shell's echo waits behind
all of it: beside bulk data, 99 in 100 echoes took up to 150 ms then, and take 9 ms now. Twice as much makes bulk data a
tenth faster and those echoes 28 ms. It still lets 1.3 MB/s through at a round trip of 100 ms, and AWS 0.8 MB/s."""

DEAD_SECONDS = 35.0
"""How long after a ping, or after sending anything, silence means that the service is gone. It is looked at with each
ping, so that with one every 20 s a dead service is found 55 s after its last sign of life at the latest."""

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


def tune(sock: socket.socket | None) -> None:
    """Keep the kernel's queues short, and have it give up on a peer that acknowledges nothing."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = (
        (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER),
        (socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, SEND_BUFFER),
        (socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(DEAD_SECONDS * 1000)),
    )
    for level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            log.debug("socket option %s is not to be had here: %s", option, error)


def reason(error: OSError) -> str:
    """Why a host could not be reached, for the operator."""
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or str(error)
