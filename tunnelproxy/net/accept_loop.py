# SPDX-License-Identifier: Apache-2.0
"""Accept connections, whatever errors accept(2) returns.

On Linux, accept(2) also returns network errors that are pending on the new connection, and fails while this process or
this machine has no descriptors or memory left. Neither is a reason to stop listening: the next connection may be good.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any, Callable

__all__ = ["accept_connections"]

log = logging.getLogger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The errors of accept(2) while this process or this machine cannot take another connection."""

_PAUSE_WITHOUT_RESOURCES = 0.5
_PAUSE_AFTER_ERRORS = 0.1
"""After the second error in a row: an error of one connection goes away with it, one that stays must not use up a
processor."""

_WARNING_SECONDS = 10.0


async def accept_connections(listener: socket.socket, admit: Callable[[socket.socket, Any], object]) -> None:
    """Accept connections until cancelled, or until the listener is closed.

    Close the listener only when the task that runs this is done: until then the event loop uses its descriptor.

    Args:
        listener: a listening socket; it is made non-blocking.
        admit: called with each connection, which is non-blocking, and its peer's address. If it raises, the connection
            is closed.

    Source: accept(2), "Error handling".
    """
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    errors = 0
    warned = float("-inf")
    while listener.fileno() >= 0:
        try:
            connection, address = await loop.sock_accept(listener)
        except Exception as error:  # ssl, uvloop and the operating system have many; none ends a listener
            errors += 1
            if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
                if loop.time() >= warned + _WARNING_SECONDS:
                    warned = loop.time()
                    log.warning("cannot accept connections for now: %s", error.strerror)
                await asyncio.sleep(_PAUSE_WITHOUT_RESOURCES)
                continue
            log.debug("a connection could not be accepted: %s", error, exc_info=not isinstance(error, OSError))
            await asyncio.sleep(_PAUSE_AFTER_ERRORS if errors > 1 else 0)
        else:
            errors = 0
            _admit(admit, connection, address)
            # sock_accept() does not yield while connections are waiting; let other tasks run, too.
            await asyncio.sleep(0)


def _admit(admit: Callable[[socket.socket, Any], object], connection: socket.socket, address: Any) -> None:
    try:
        connection.setblocking(False)
        admit(connection, address)
    except Exception:
        log.exception("a connection is closed, because it could not be served")
        connection.close()
