# SPDX-License-Identifier: Apache-2.0
"""Tell systemd, or another service manager with its protocol, that a process is ready (``Type=notify``).

Source: sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["SOCKET_VARIABLE", "notify"]

log = logging.getLogger(__name__)

SOCKET_VARIABLE = "NOTIFY_SOCKET"


def notify(*assignments: str) -> None:
    """Tell the service manager, if there is one: ``READY=1``, ``STOPPING=1``, ``STATUS=…``."""
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sock:
            sock.connect(address)
            sock.sendall("\n".join(assignments).encode())
    except OSError as error:
        log.warning("cannot notify the service manager at %s: %s", SOCKET_VARIABLE, error.strerror or error)
