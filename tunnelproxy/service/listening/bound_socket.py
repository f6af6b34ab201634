# SPDX-License-Identifier: Apache-2.0
"""Binding the service's ports."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket

from ..errors import ServiceError

__all__ = ["bind", "bind_remembered"]

_BACKLOG = 1024

log = logging.getLogger(__name__)


def bind(host: str, port: int, option: str) -> socket.socket:
    """Bind and listen.

    Args:
        host: the address or name to listen on.
        port: the port; 0 for any free one.
        option: the option that sets the port, for messages.

    Raises:
        ServiceError: the service cannot listen there.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ServiceError(f"cannot resolve --host {host}: {error.strerror}") from error
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ServiceError(_explain(error, host, port, option)) from error


def bind_remembered(host: str, port: int, remembered: int, option: str) -> socket.socket:
    """Bind the given port; for port 0, the port of the last run if it is free, or else any port.

    Args:
        host: the address or name to listen on.
        port: the port that the operator has chosen; 0 for none.
        remembered: the port of the last run; 0 for none.
        option: the option that sets the port, for messages.

    Raises:
        ServiceError: the service cannot listen there.
    """
    if port == 0 and remembered:
        # Proxies and clients expect the service on its previous port.
        with contextlib.suppress(ServiceError):
            return bind(host, remembered, option)
        log.warning("port %d of the last run is in use; choosing another one for %s", remembered, option)
    return bind(host, port, option)


def _explain(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; give {option} another one, or 0 for any"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {host}; give --host one that it has"
    return f"cannot listen on port {port} of {host} ({option}): {os.strerror(error.errno or 0)}"
