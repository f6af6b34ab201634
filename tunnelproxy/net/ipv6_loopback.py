# SPDX-License-Identifier: Apache-2.0
"""Reserve the port of ``::1`` that we listen on at ``127.0.0.1``.

Browsers resolve names below ``.localhost`` to both, and try ``::1`` first. Another user of this machine who listens
there could pose as a device, and receive its cookies and what the operator types.
"""

from __future__ import annotations

import errno
import socket

__all__ = ["reserve"]

# A sandbox may deny IPv6 to this process only; the tunnel works without it.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES)


def reserve(port: int) -> socket.socket | None:
    """Bind a socket to a port of ``::1`` without listening; None if this process has no IPv6.

    SO_REUSEADDR is not set, because another socket with it could then bind to the same port.

    Raises:
        OSError: another process has the port.
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
