# SPDX-License-Identifier: Apache-2.0
"""TCP connections to a host with several addresses, some of which may be unreachable.

An address that drops packets would use up all the time that the caller has. So the next address is tried in parallel a
quarter of a second later, and the first that answers is used. Neither uvloop nor aiofastnet supports this.

Source: RFC 8305, "Happy Eyeballs Version 2".
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Callable

import aiohappyeyeballs

from .connections import freed

__all__ = ["DELAY_SECONDS", "AddressRefused", "open_socket"]

DELAY_SECONDS = 0.25
"""Seconds after which the next address is tried, as RFC 8305 recommends in section 5."""

AddressInfo = tuple[int, int, int, str, Any]
"""An address as getaddrinfo(3) returns it."""


class AddressRefused(PermissionError):
    """None of a host's addresses is permitted; the text names them."""


async def open_socket(
    host: str,
    port: int,
    *,
    bind_address: str | None = None,
    permits: Callable[[str], bool] | None = None,
) -> socket.socket:
    """Connect to the first of a host's addresses that answers.

    Args:
        host: a name or an address.
        bind_address: the local address to connect from; None leaves that to the system.
        permits: whether the address, as text, may be connected to; None permits all. It is called for exactly the
            addresses that are tried.

    Returns:
        a socket in non-blocking mode.

    Raises:
        AddressRefused: no address of the host is permitted.
        OSError: the host has no address, or none of them answers.
    """
    found = await _look_up(host, port)
    if permits is not None:
        found = _permitted(found, permits, host)
    local = await _look_up(bind_address, 0) if bind_address else None
    try:
        return await freed(
            aiohappyeyeballs.start_connection(found, local_addr_infos=local, happy_eyeballs_delay=DELAY_SECONDS)
        )
    except RuntimeError as error:
        # uvloop raises it for what the system does not support.
        raise OSError(str(error)) from error


async def _look_up(host: str, port: int) -> Sequence[AddressInfo]:
    """The addresses of a host; a host that is an address needs no lookup in a thread."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass
    try:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        # A part of the name is empty, or too long.
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None


def _permitted(found: Sequence[AddressInfo], permits: Callable[[str], bool], host: str) -> Sequence[AddressInfo]:
    good = [info for info in found if permits(info[4][0])]
    if not good:
        addresses = ", ".join(dict.fromkeys(str(info[4][0]) for info in found))
        raise AddressRefused(f"{host} has the address {addresses}, which is not allowed")
    return good
