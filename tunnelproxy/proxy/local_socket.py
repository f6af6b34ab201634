# SPDX-License-Identifier: Apache-2.0
"""The local connections at either end of a tunnel, and how much of their data may wait."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from ..net import connections, receive_buffer
from ..net.socket_options import UnansweredData, keep_alive
from ..protocol.framing import MAX_PAYLOAD, Bytes

__all__ = ["RECEIVE_BUFFER", "Guard", "LocalOwner", "LocalSocket"]

RECEIVE_BUFFER = 256 * 1024
"""Bytes from the far end that may wait for a local peer before it counts as slow."""

LINGER_SECONDS = 2.0
"""How long to keep reading, and dropping what comes, after the guard has answered: closing would discard the answer."""


class Guard(Protocol):
    """Decides which of a local peer's bytes are forwarded to the far end. The hub has one for browsers."""

    @property
    def answer(self) -> bytes | None:
        """The answer to the peer, once something was refused; nothing is forwarded after that."""

    def receive(self, data: Bytes) -> Bytes:
        """Take what the peer sent, and return what is forwarded."""


class LocalOwner(Protocol):
    """Receives the reports of a local socket: a multiplexer, or what lets a connection wait for one."""

    def local_ready(self, local: LocalSocket) -> None:
        """Bytes wait in :attr:`LocalSocket.pending`, or the socket has ended; no more is read until they are taken."""

    def local_full(self, local: LocalSocket) -> None:
        """More than :data:`RECEIVE_BUFFER` waits to be written."""

    def local_drained(self, local: LocalSocket) -> None:
        """Most of what waited has been written, or it never will be."""


class LocalSocket(asyncio.BufferedProtocol):
    """One local TCP or Unix connection.

    It reads at most one message's worth, then waits for its turn, so the memory of any number of them is bounded. Data
    that arrives for it before it is connected waits here.

    Args:
        owner: receives its reports. Without one, as while the tunnel has no link, what was read waits.
        awaits_answer: whether the far end speaks first, as SSH servers do.
        guard: decides what is forwarded to the far end; without one, everything is.
    """

    def __init__(
        self, owner: LocalOwner | None = None, *, awaits_answer: bool = False, guard: Guard | None = None
    ) -> None:
        self.pending: Bytes = b""
        """Bytes that were read and wait for their turn."""
        self.ended = False
        """Whether nothing more will be read: the peer closed its side, or the socket broke."""
        self.awaits_answer = awaits_answer
        self.awaits_guard = guard is not None
        """Whether the guard has passed nothing yet, so that the far end need not know of this connection."""
        self.reads_ahead = False
        """Whether to read on while less than a message's worth waits, so that the peer's end is noticed."""
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when the first bytes have come from the far end, False when it ended without any."""
        self.bytes_in = 0
        """Bytes that were read and taken."""
        self.bytes_out = 0
        """Bytes that came from the far end."""
        self.owner = owner
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._finishing = False
        self._lost = False
        self._paused = False
        self._keeps_writes = True
        self._unanswered = UnansweredData(None)
        self._guard = guard
        self._lingering: asyncio.TimerHandle | None = None

    # What the owner does.

    def take(self, most: int) -> Bytes:
        """Take up to ``most`` of the pending bytes, and read on when none are left. Use them before the next read."""
        data, self.pending = self.pending[:most], self.pending[most:]
        if not self.pending and self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        self.bytes_in += len(data)
        return data

    def deliver(self, data: Bytes) -> None:
        """Write bytes that the far end sent."""
        if not self.bytes_out:
            self._settle(answered=True)
        self.bytes_out += len(data)
        if self._transport is not None:
            # The data is a part of the receive buffer, which the next read overwrites.
            self._transport.write(bytes(data) if self._keeps_writes else data)
        elif not self._lost:
            self._early.append(bytes(data))
            self._early_bytes += len(data)
            if self._early_bytes > RECEIVE_BUFFER and self.owner is not None:
                self.owner.local_full(self)

    def finish(self) -> None:
        """Write what waits, then close."""
        self._finishing = True
        self._settle(answered=False)
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what waits is dropped."""
        self._finishing = True
        self._settle(answered=False)
        self._drop_early()
        if self._transport is not None:
            self._transport.abort()

    def report_ready(self) -> None:
        """Report that bytes wait, or that it has ended."""
        if self.owner is not None:
            self.owner.local_ready(self)

    @property
    def wanted(self) -> bool:
        """Whether it is still worth connecting this socket: for data to come, or data that has come already."""
        return not self._finishing or bool(self._early)

    @property
    def unwritten(self) -> int:
        """Bytes that wait for the local peer to read."""
        return self._early_bytes if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def written(self) -> int:
        """Bytes that the kernel has taken for the local peer."""
        return self.bytes_out - self.unwritten

    @property
    def unanswered_seconds(self) -> float:
        """For how many seconds the peer's machine has left sent data unacknowledged; 0 if it acknowledges.

        Read it at regular intervals: see :class:`UnansweredData`.
        """
        if self._transport is None or self._transport.is_closing():
            return 0.0
        return self._unanswered.seconds()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # aiofastnet begins to read right after this call, even if the socket is closed within it. It then reads from
        # whichever socket gets the same descriptor next.
        asyncio.get_running_loop().call_soon(self._begin, transport)

    def _begin(self, transport: asyncio.BaseTransport) -> None:
        if self._lost:
            return
        self._transport = cast(asyncio.Transport, transport)
        self._keeps_writes = connections.keeps_what_is_written(transport)
        sock = transport.get_extra_info("socket")
        keep_alive(sock)
        self._unanswered = UnansweredData(sock)
        self._transport.set_write_buffer_limits(high=RECEIVE_BUFFER, low=RECEIVE_BUFFER // 4)
        early, self._early, self._early_bytes = self._early, [], 0
        if early:
            self._transport.write(b"".join(early))
        if self._transport.get_write_buffer_size() <= RECEIVE_BUFFER and self.owner is not None:
            self.owner.local_drained(self)
        if self._finishing:
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return receive_buffer.whole()[:MAX_PAYLOAD]

    def buffer_updated(self, nbytes: int) -> None:
        data: Bytes = receive_buffer.received(nbytes)
        if self._guard is not None:
            data = self._ask_guard(self._guard, data)
            if not data and not self.ended:
                return
        self.pending = bytes(self.pending) + data if self.pending else data
        self.report_ready()
        if self.pending:
            # Its turn has not come yet. If it has, the bytes were sent without a copy.
            self.pending = bytes(self.pending)
            reads_on = self.reads_ahead and len(self.pending) < MAX_PAYLOAD
            if self._transport is not None and not self._paused and not reads_on:
                self._paused = True
                self._transport.pause_reading()

    def _ask_guard(self, guard: Guard, data: Bytes) -> Bytes:
        """Return what is forwarded of the data.

        A refused peer gets the guard's answer only if nothing was forwarded before: else the far end may be answering.
        """
        if guard.answer is not None:
            return b""
        passed = guard.receive(data)
        if passed:
            self.awaits_guard = False
        if guard.answer is not None and self.awaits_guard:
            asyncio.get_running_loop().call_soon(self._send_answer, guard.answer)  # after what connection_made deferred
        elif guard.answer is not None:
            self.ended = True
        return passed

    def _send_answer(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
            self._transport.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def eof_received(self) -> bool:
        if self.awaits_guard and self._guard is not None and self._guard.answer is not None:
            asyncio.get_running_loop().call_soon(self.finish)
            return True
        self.ended = True
        self.report_ready()
        return True

    def pause_writing(self) -> None:
        if self.owner is not None:
            self.owner.local_full(self)

    def resume_writing(self) -> None:
        if self.owner is not None:
            self.owner.local_drained(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost = True
        if self._lingering is not None:
            self._lingering.cancel()
        self._settle(answered=False)
        self._drop_early()
        self.ended = True
        self.report_ready()
        if self.owner is not None:
            self.owner.local_drained(self)

    def _drop_early(self) -> None:
        self._early.clear()
        self._early_bytes = 0

    def _settle(self, *, answered: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(answered)
