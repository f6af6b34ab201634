# SPDX-License-Identifier: Apache-2.0
"""The buffer into which the event loop reads.

For an :class:`asyncio.Protocol`, asyncio and uvloop allocate a bytes object of 256 KiB for each read, and shrink it to
what arrived, one TLS record of 16 KiB at a time. With :class:`asyncio.BufferedProtocol`, one buffer serves all
connections of a process: the event loop does nothing else between ``get_buffer`` and ``buffer_updated``.

That holds for one event loop. Two in one process would overwrite each other's data, so :func:`received` raises an error
if another thread has taken the buffer in between.
"""

from __future__ import annotations

from threading import get_ident

__all__ = ["behind", "received", "whole"]

_view = memoryview(bytearray(256 * 1024))
_reader = 0
"""The thread that took the buffer last."""


def whole() -> memoryview:
    """The buffer: room for several TLS records and WebSocket messages in one turn of the event loop.

    It is not a bytearray: asyncio slices it to put one TLS record behind another, and slicing a bytearray copies.
    """
    global _reader  # noqa: PLW0603
    _reader = get_ident()
    return _view


def behind(kept: bytes) -> memoryview:
    """The buffer after ``kept``, which is put at its start: the rest of an earlier read."""
    view = whole()
    if not kept:
        return view
    view[: len(kept)] = kept
    return view[len(kept) :]


def received(size: int) -> memoryview:
    """The first ``size`` bytes, which the latest read has filled; valid until the event loop continues.

    Raises:
        RuntimeError: another thread has taken the buffer since this one took it.
    """
    if _reader != get_ident():
        raise RuntimeError("two event loops of one process have read into the receive buffer at the same time")
    return _view[:size]
