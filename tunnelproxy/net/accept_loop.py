# SPDX-License-Identifier: Apache-2.0
"""Accepting connections, whatever accept(2) says of one of them.

Linux passes network errors that are pending on a new connection to accept(2), and says there, too, that this process or
this machine has no descriptors or memory left. Neither is a reason to stop listening: the next connection may be good.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any, Callable

__all__ = ["OUT_OF_RESOURCES", "accept_for_ever"]

log = logging.getLogger(__name__)

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) says while this process or this machine can take no connection more."""

PAUSE_WITHOUT_RESOURCES = 0.5
PAUSE_AFTER_ERRORS = 0.1
"""After the second error in a row: an error of one connection is gone with it, one that stays must not take a CPU."""

WARNING_SECONDS = 10.0


async def accept_for_ever(listener: socket.socket, admit: Callable[[socket.socket, Any], object]) -> None:
    """Accept connections until cancelled, or until the listener is closed.

    Close the listener once the task that runs this is done: before, the event loop still has its descriptor.

    Args:
        listener: a listening socket; it is made non-blocking.
        admit: is given each connection, non-blocking, and its peer's address. Where it raises, that one is closed.

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
            if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
                if loop.time() >= warned + WARNING_SECONDS:
                    warned = loop.time()
                    log.warning("cannot accept connections for now: %s", error.strerror)
                await asyncio.sleep(PAUSE_WITHOUT_RESOURCES)
                continue
            log.debug("a connection could not be accepted: %s", error, exc_info=not isinstance(error, OSError))
            await asyncio.sleep(PAUSE_AFTER_ERRORS if errors > 1 else 0)
        else:
            errors = 0
            _admit(admit, connection, address)
            # sock_accept() does not yield where a connection waits: other tasks have their turn, too.
            await asyncio.sleep(0)


def _admit(admit: Callable[[socket.socket, Any], object], connection: socket.socket, address: Any) -> None:
    try:
        connection.setblocking(False)
        admit(connection, address)
    except Exception:
        log.exception("a connection is closed, because it could not be served")
        connection.close()
