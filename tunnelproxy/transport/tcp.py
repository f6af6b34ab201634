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

DEAD_SECONDS = 40.0
"""How long after a ping, or after sending anything, silence means that the service is gone."""

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


def tune(sock: socket.socket | None) -> None:
    """Keep the kernel's queue short, and have it give up on a peer that acknowledges nothing."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for option, value in ((_TCP_NOTSENT_LOWAT, SEND_BUFFER), (_TCP_USER_TIMEOUT, int(DEAD_SECONDS * 1000))):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError as error:
            log.debug("socket option %s is not to be had here: %s", option, error)


def reason(error: OSError) -> str:
    """Why a host could not be reached, for the operator."""
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or str(error)
