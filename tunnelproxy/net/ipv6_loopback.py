# SPDX-License-Identifier: Apache-2.0
"""Keeping others from the port of ``::1`` that is ours on ``127.0.0.1``.

Browsers resolve names below ``.localhost`` to both, and try ``::1`` first. Another user of this machine who listened
there would be shown in the place of a device, and be sent its cookies and what the operator types.
"""

from __future__ import annotations

import errno
import socket

__all__ = ["reserve"]

# A sandbox may keep IPv6 from this process alone: that is no reason to be without the tunnel.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES)


def reserve(port: int) -> socket.socket | None:
    """A socket that has a port of ``::1`` without listening there; None where this process can have none.

    Without SO_REUSEADDR, as otherwise another socket that has it could be bound there too.

    Raises:
        OSError: somebody else has the port.
    """
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.bind(("::1", port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        if error.errno in _NO_IPV6:
            return None
        raise
    return sock
