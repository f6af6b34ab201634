# SPDX-License-Identifier: Apache-2.0
"""Connections of the event loop, or of aiofastnet if it is installed (the extra ``speed``).

Both are asyncio transports. Those of aiofastnet call OpenSSL without Python in between, and write several TLS records
with one system call. This saves an eighth of the CPU time for bulk data, and a quarter for eight connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable
from types import ModuleType
from typing import Any, Callable, TypeVar

try:
    import aiofastnet

    _fast: ModuleType | None = aiofastnet
except ImportError:
    _fast = None

__all__ = ["Reading", "accept", "connect", "connect_unix", "freed", "is_failed_handshake", "keeps_what_is_written"]

T = TypeVar("T")

Factory = Callable[[], asyncio.BaseProtocol]

if _fast is not None:
    # It logs certificates that OpenSSL rejects as errors of the program; the exception says the same.
    logging.getLogger("aiofastnet").setLevel(logging.CRITICAL)


def is_failed_handshake(message: object) -> bool:
    """Whether a message is asyncio's, uvloop's or aiofastnet's own report of a TLS handshake that failed.

    The caller of :func:`accept` or :func:`connect` gets the exception, which says the same. aiofastnet's report passes
    an error class in place of an error, on which the logging module fails with a traceback.
    """
    return str(message).startswith("SSL handshake failed")


logging.getLogger("asyncio").addFilter(lambda record: not is_failed_handshake(record.msg))

_TLS_RECORD = 16 * 1024 + 64

_BUFFERS = {
    # Bytes that one read takes from the kernel.
    "ssl_incoming_bio_size": 16 * _TLS_RECORD,
    # Bytes that are encrypted for one write. The transport's buffer size does not count them, so keep it to a message.
    "ssl_outgoing_bio_size": 4 * _TLS_RECORD,
}


async def connect(factory: Factory, *where: Any, **options: Any) -> None:
    """As :meth:`asyncio.loop.create_connection`."""
    loop = asyncio.get_running_loop()
    if _fast is None:
        await freed(loop.create_connection(factory, *where, **options))
    else:
        await freed(_fast.create_connection(loop, factory, *where, **_with_buffers(options)))


async def connect_unix(factory: Factory, path: str | None = None, **options: Any) -> None:
    """As :meth:`asyncio.loop.create_unix_connection`."""
    loop = asyncio.get_running_loop()
    if _fast is None:
        await freed(loop.create_unix_connection(factory, path, **options))
    else:
        await freed(_fast.create_unix_connection(loop, factory, path, **_with_buffers(options)))


async def accept(factory: Factory, sock: socket.socket, **options: Any) -> None:
    """As :meth:`asyncio.loop.connect_accepted_socket`."""
    loop = asyncio.get_running_loop()
    if _fast is None:
        await freed(loop.connect_accepted_socket(factory, sock, **options))
    else:
        await freed(_fast.connect_accepted_socket(loop, factory, sock, **_with_buffers(options)))


def keeps_what_is_written(transport: asyncio.BaseTransport) -> bool:
    """Whether a transport may keep the buffer that it is given to write, rather than a copy."""
    return _fast is None or not isinstance(transport, _fast.Transport)


class Reading:
    """Pauses and resumes reading from a transport: between two reads, never during one.

    If reading is paused during a read, aiofastnet keeps the rest of that read until more data arrives: at the end of a
    transfer, until the next ping. What the transport delivers until it pauses is bounded by its buffer.
    """

    __slots__ = ("_loop", "_pausing", "_transport", "paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.paused = False
        self._transport = transport
        self._pausing: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()

    def pause(self) -> None:
        """Leave data in the kernel, and so slow down the far end."""
        if not self.paused:
            self.paused = True
            self._pausing = self._loop.call_soon(self._pause)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self.paused = False
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _pause(self) -> None:
        self._pausing = None
        if not self._transport.is_closing():
            self._transport.pause_reading()


async def freed(connecting: Awaitable[T]) -> T:
    """Await a connection. An error is raised without the traceback that it has so far.

    The traceback holds a frame of the library that connects, and that frame the error, directly or by a future: a cycle
    that only a full garbage collection frees, which can be minutes away, with the 330 kB of a TLS connection in it.
    """
    try:
        return await connecting
    except BaseException as error:
        raise error.with_traceback(None) from error.__cause__


def _with_buffers(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, **_BUFFERS} if options.get("ssl") else options
