# SPDX-License-Identifier: Apache-2.0
"""Where the event loop puts what it reads.

With :class:`asyncio.Protocol`, asyncio and uvloop make a bytes object of 256 KiB for each read, and cut it to what
came, a TLS record of 16 KiB at a time. With :class:`asyncio.BufferedProtocol` one buffer serves all connections of a
process: between ``get_buffer`` and ``buffer_updated`` the event loop does nothing else.
"""

from __future__ import annotations

__all__ = ["behind", "received", "whole"]

_view = memoryview(bytearray(256 * 1024))


def whole() -> memoryview:
    """The buffer, for every connection: several TLS records and WebSocket messages in one turn.

    Not a bytearray, for asyncio slices it to put one TLS record behind another, which makes a copy of a bytearray.
    """
    return _view


def behind(kept: bytes) -> memoryview:
    """The buffer behind ``kept``, which is put there again: what an earlier read left unfinished."""
    if not kept:
        return _view
    _view[: len(kept)] = kept
    return _view[len(kept) :]


def received(size: int) -> memoryview:
    """What the latest read has put there; valid until the event loop goes on."""
    return _view[:size]
