# SPDX-License-Identifier: Apache-2.0
"""WebSocket connections in asyncio, for the proxies (clients) and the service (server).

A :class:`WebSocket` joins an asyncio transport to websockets' sans-I/O protocol, and to :mod:`..protocol.websocket` for
the bulk data. Received messages reach the owner in the same turn of the event loop: no task or queue is in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Callable, cast

from websockets.protocol import CLIENT, OPEN, Event, Protocol

from ..protocol.framing import Bytes
from ..protocol.websocket import MessageReader, encode_binary
from . import receive_buffer
from .connections import Reading
from .receive_window import ReceiveWindow
from .send_queue import SendQueue

__all__ = ["SEND_LIMIT", "Callbacks", "WebSocket"]

SEND_LIMIT = 2 * 1024 * 1024
"""Bytes that may wait to be sent. The owner stops sending data long before, but answers to pings and to starts of
streams are sent unasked, to a peer that may not read them."""

_STALL_SECONDS = 1.0
"""After how long without reading a far peer is kept from sending more."""


@dataclass(frozen=True)
class Callbacks:
    """The functions that a WebSocket calls.

    Attributes:
        message: a binary message has arrived; its payload may change after the call.
        event: another event of websockets: the handshake's request or response, or a frame that is not binary, or that
            arrived after this end began to close the connection.
        last_sent: after the bytes written so far, no more will be sent: close the connection.
        too_much_unsent: the peer does not read: more than :data:`SEND_LIMIT` bytes wait. The connection is aborted
            next.
    """

    message: Callable[[Bytes], None]
    event: Callable[[Event], None]
    last_sent: Callable[[], None]
    too_much_unsent: Callable[[], None]


def _ignore(*_: Any) -> None:
    """Take the place of a callback that has been dropped."""


_NO_CALLBACKS = Callbacks(_ignore, _ignore, _ignore, _ignore)


class WebSocket:
    """One WebSocket connection. Its owner, an asyncio protocol, passes on the calls of the event loop.

    Args:
        protocol: websockets' protocol, of either side.
        callbacks: the owner's functions.
    """

    __slots__ = (
        "_callbacks",
        "_loop",
        "_masked",
        "_messages",
        "_reading",
        "_receive_window",
        "_send_queue",
        "_stall_timer",
        "_timer",
        "_transport",
        "protocol",
    )

    def __init__(self, protocol: Protocol, callbacks: Callbacks) -> None:
        self.protocol = protocol
        self._callbacks = callbacks
        self._messages = MessageReader(protocol, callbacks.message, self._process)
        self._masked = protocol.side is CLIENT
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reading: Reading | None = None
        self._receive_window = ReceiveWindow(None)
        self._send_queue: SendQueue | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the owner does.

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete, and neither end has begun to close the connection."""
        return self.protocol.state is OPEN

    @property
    def is_closing(self) -> bool:
        """Whether there is no transport that could send anything."""
        return self._transport is None or self._transport.is_closing()

    @property
    def is_paused(self) -> bool:
        """Whether reading is paused."""
        return self._reading is not None and self._reading.paused

    def send(self, pieces: Collection[Bytes]) -> None:
        """Send a binary message, unless the connection is not open.

        Args:
            pieces: its payload, :data:`~..protocol.framing.MAX_WEBSOCKET_MESSAGE` bytes or less in all.
        """
        transport = self._transport
        if self.protocol.state is OPEN and transport is not None and not transport.is_closing():
            transport.write(encode_binary(pieces, masked=self._masked))
            if transport.get_write_buffer_size() > SEND_LIMIT:
                self._abort_unsent(transport)

    def flush(self) -> None:
        """Send what websockets' protocol has to send: call this after any of its ``send_...`` methods."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        for data in self.protocol.data_to_send():
            if data:
                transport.write(data)
            else:
                self._callbacks.last_sent()
        if transport.get_write_buffer_size() > SEND_LIMIT:
            self._abort_unsent(transport)

    @property
    def send_room(self) -> int:
        """How many bytes may wait in this process before asyncio calls ``pause_writing``. It follows the path."""
        return 0 if self._send_queue is None else self._send_queue.size

    def pause_reading(self) -> None:
        """Leave data in the kernel, and so slow down the peer."""
        if self._reading is not None and not self._reading.paused:
            self._reading.pause()
            if self._receive_window.is_far:
                self._stall_timer = self._loop.call_later(_STALL_SECONDS, self._receive_window.stalled)

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`."""
        if self._reading is not None and self._reading.paused:
            self._reading.resume()
            self._receive_window.resumed()
            self._cancel_stall_timer()

    def set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        """Call a function later. There is one timer: this replaces what it was set to before."""
        self.cancel_timer()
        self._timer = self._loop.call_later(seconds, action)

    def cancel_timer(self) -> None:
        """Forget what :meth:`set_timer` was called with."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close_transport(self) -> None:
        """Close the connection once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self._release()

    # What the event loop reports, by way of the owner.

    def connection_made(self, transport: asyncio.BaseTransport, send_buffer: int) -> None:
        """Begin.

        Args:
            send_buffer: how many bytes may wait in this process before asyncio calls ``pause_writing``, and how many
                in the kernel. Fewer where the path is slow.
        """
        self._transport = cast(asyncio.Transport, transport)
        self._send_queue = SendQueue(self._transport, send_buffer)
        self._reading = Reading(self._transport)
        self._receive_window = ReceiveWindow(transport.get_extra_info("socket"))

    def get_buffer(self) -> memoryview:
        """Where the event loop puts what it reads next."""
        return receive_buffer.behind(self._messages.rest)

    def buffer_updated(self, size: int) -> None:
        """Process what the event loop has read: ``size`` bytes."""
        self._receive_window.took(size)
        self._messages.feed(receive_buffer.received(len(self._messages.rest) + size))

    def request_received(self, request: bytes, rest: bytes) -> None:
        """Process a client's handshake request, which the server has read by itself.

        Args:
            rest: the bytes that followed it.
        """
        self.protocol.receive_data(request)
        self._process()
        self._messages.feed(memoryview(rest))

    def pause_writing(self) -> None:
        """More bytes wait to be sent than :attr:`send_room`. Call this last: :meth:`SendQueue.filled` says why."""
        if self._send_queue is not None:
            self._send_queue.filled()

    def resume_writing(self) -> None:
        """Most of what waited has been sent."""
        if self._send_queue is not None:
            self._send_queue.drained()

    def eof_received(self) -> None:
        """The peer sends no more."""
        self.protocol.receive_eof()
        self._process()

    def connection_lost(self) -> None:
        """The connection is gone."""
        self.cancel_timer()
        self._cancel_stall_timer()
        self._receive_window.close()
        self._release()
        self.protocol.receive_eof()

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _process(self) -> None:
        for event in self.protocol.events_received():
            self._callbacks.event(event)
        self.flush()

    def _abort_unsent(self, transport: asyncio.Transport) -> None:
        self._callbacks.too_much_unsent()
        transport.abort()

    def _release(self) -> None:
        """Forget the owner, which refers to this object: only a full garbage collection would free such a cycle."""
        self._callbacks = _NO_CALLBACKS
        self._messages.release()
