# SPDX-License-Identifier: Apache-2.0
"""A local socket, at either end of the tunnel, and how much of its data may wait."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from ..net import connections, receive_buffer
from ..net.socket_options import keep_alive, unanswered_seconds
from ..protocol.framing import MAX_PAYLOAD, Bytes

__all__ = ["RECEIVE_BUFFER", "Guard", "LocalOwner", "LocalSocket"]

RECEIVE_BUFFER = 256 * 1024
"""Bytes from the far end that may wait for a local socket before its peer counts as slow."""

LINGER_SECONDS = 2.0
"""How long to read on, and drop what comes, after an answer of the guard's: a close would take the answer along."""


class Guard(Protocol):
    """Decides what of a local peer's bytes goes on to the far end."""

    @property
    def answer(self) -> bytes | None:
        """What the peer is told instead, once something was refused. Nothing goes on from then on."""

    def receive(self, data: Bytes) -> Bytes:
        """Take what the peer sent, and return what goes on."""


class LocalOwner(Protocol):
    """Whom a local socket tells what happens: the multiplexer."""

    def local_ready(self, local: LocalSocket) -> None:
        """Bytes wait in :attr:`LocalSocket.pending`, or the socket has ended; no more is read until they are taken."""

    def local_full(self, local: LocalSocket) -> None:
        """More than :data:`RECEIVE_BUFFER` waits to be written."""

    def local_drained(self, local: LocalSocket) -> None:
        """What waited has been written, but for a little, or will never be."""


class LocalSocket(asyncio.BufferedProtocol):
    """One local TCP or Unix connection.

    It reads at most one message's worth, then waits for its turn; so the data of any number of these is bounded. What
    arrives for it before it is connected waits here.

    Args:
        owner: None while the tunnel is not linked; what is read then waits.
        awaits_answer: whether the far end is to speak first, as SSH servers do.
        guard: decides what goes on to the far end, if not all does.
    """

    def __init__(
        self, owner: LocalOwner | None = None, *, awaits_answer: bool = False, guard: Guard | None = None
    ) -> None:
        self.pending: Bytes = b""
        """Bytes that were read and await their turn."""
        self.ended = False
        """Whether nothing more will be read: the peer closed, or the socket broke."""
        self.awaits_answer = awaits_answer
        self.awaits_guard = guard is not None
        """Whether the guard has let nothing pass yet, so that the far end need not know of this connection."""
        self.held = False
        """Whether it may send nothing yet, because it may have to go to another link."""
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when the first bytes have come from the far end, False when it ended without any."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.owner = owner
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._finishing = False
        self._lost = False
        self._paused = False
        self._keeps = True
        self._guard = guard
        self._lingering: asyncio.TimerHandle | None = None

    # What the multiplexer does.

    def take(self, most: int) -> Bytes:
        """Take up to ``most`` of the pending bytes, which may change later, and read on when none are left."""
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
            # What comes is a part of the receive buffer.
            self._transport.write(bytes(data) if self._keeps else data)
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
        """Close at once; what waits is lost."""
        self._finishing = True
        self._settle(answered=False)
        self._drop_early()
        if self._transport is not None:
            self._transport.abort()

    @property
    def wanted(self) -> bool:
        """Whether it is still worth connecting this socket: for what is to come, or what has come already."""
        return not self._finishing or bool(self._early)

    @property
    def unwritten(self) -> int:
        """Bytes that wait for the local peer to read."""
        return self._early_bytes if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def written(self) -> int:
        """Bytes that the local peer's socket has taken."""
        return self.bytes_out - self.unwritten

    @property
    def unanswered_seconds(self) -> float:
        """For how long the peer's machine has acknowledged nothing of what it was sent; 0 where it answers."""
        if self._transport is None or self._transport.is_closing():
            return 0.0
        return unanswered_seconds(self._transport.get_extra_info("socket"))

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # aiofastnet begins to read right after this call: even where the socket is closed within it, and then from
        # whichever socket has its number next.
        asyncio.get_running_loop().call_soon(self._begin, transport)

    def _begin(self, transport: asyncio.BaseTransport) -> None:
        if self._lost:
            return
        self._transport = cast(asyncio.Transport, transport)
        self._keeps = connections.keeps_what_is_written(transport)
        keep_alive(transport.get_extra_info("socket"))
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
        came: Bytes = receive_buffer.received(nbytes)
        if self._guard is not None:
            came = self._guarded(self._guard, came)
            if not came and not self.ended:
                return
        self.pending = bytes(self.pending) + came if self.pending else came
        self._report_ready()
        if self.pending:
            # Its turn has not come yet. Where it has, the bytes went on without a copy.
            self.pending = bytes(self.pending)
            goes_on = self.held and len(self.pending) < MAX_PAYLOAD  # until its end, which shows that nobody waits
            if self._transport is not None and not self._paused and not goes_on:
                self._paused = True
                self._transport.pause_reading()

    def _guarded(self, guard: Guard, data: Bytes) -> Bytes:
        """What goes on of the data. A peer that is refused is answered only if nothing went on before, to which the far
        end may be giving an answer."""
        if guard.answer is not None:
            return b""
        passed = guard.receive(data)
        if passed:
            self.awaits_guard = False
        if guard.answer is not None and self.awaits_guard:
            asyncio.get_running_loop().call_soon(self._tell, guard.answer)  # when connection_made has had its effect
        elif guard.answer is not None:
            self.ended = True
        return passed

    def _tell(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
            self._transport.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def eof_received(self) -> bool:
        if self.awaits_guard and self._guard is not None and self._guard.answer is not None:
            asyncio.get_running_loop().call_soon(self.finish)
            return True
        self.ended = True
        self._drop_held()
        self._report_ready()
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
        self._drop_held()
        self.ended = True
        self._report_ready()
        if self.owner is not None:
            self.owner.local_drained(self)

    def _drop_held(self) -> None:
        """Forget what may not be sent: its peer awaits the far end's first words, and has gone without them."""
        if self.held:
            self.pending = b""

    def _drop_early(self) -> None:
        self._early.clear()
        self._early_bytes = 0

    def _settle(self, *, answered: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(answered)

    def _report_ready(self) -> None:
        if self.owner is not None:
            self.owner.local_ready(self)
