# SPDX-License-Identifier: Apache-2.0
"""Binary WebSocket messages without needless copies: one in each direction, which masking needs anyway.

websockets implements the whole protocol, but copies each message four times. Nearly all messages of a tunnel are
binary, in one frame or, from AWS's reference, in fragments of 4 KiB. This module encodes these messages itself, and
extracts them from the received data in place; it joins fragments once. Everything else is passed to websockets, frame
by frame: handshakes, pings, closes, text, and everything that breaks the rules. So websockets is always between two
frames when a message is extracted without it.

Source: RFC 6455, sections 5.2 to 5.4.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from struct import Struct
from typing import Callable, cast

from websockets.frames import CloseCode, Opcode
from websockets.protocol import CONNECTING, OPEN, SERVER, Protocol

from .framing import MAX_WEBSOCKET_MESSAGE, Bytes

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

__all__ = ["MessageReader", "encode_binary"]

_END_OF_HEADERS = b"\r\n\r\n"
_MAX_HEADERS = 32 * 1024
"""The maximum size of the headers of an HTTP response, in bytes; larger ones exceed websockets' own limits."""

_FINAL = 0x80
_BINARY = Opcode.BINARY.value
_CONTINUATION = Opcode.CONT.value
_TEXT = Opcode.TEXT.value
_CONTROL = 0x08
_MASKED = 0x80
_KNOWN = frozenset(
    (
        *(opcode | final for opcode in (Opcode.CONT, Opcode.TEXT, Opcode.BINARY) for final in (0, _FINAL)),
        *(opcode | _FINAL for opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG)),
    )
)
"""The valid first bytes of frames, without extensions."""
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_MIDDLING, _MIDDLING_MASKED = Struct("!BBH0s"), Struct("!BBH4s")
"""The headers of frames whose length has two bytes, with the mask."""
_MAX_FRAGMENTS = 64
"""How many fragments are kept before they are joined. AWS's reference splits a full message into 17; a message with
one fragment per byte must not need one object per byte."""


def _make_masks() -> Iterator[bytes]:
    """Yield unpredictable masks (section 5.3), many per system call."""
    while True:
        pool = os.urandom(1024)
        yield from (pool[start : start + 4] for start in range(0, len(pool), 4))


_masks = _make_masks()


def encode_binary(pieces: Collection[Bytes], *, masked: bool) -> bytes:
    """Encode a binary message.

    Args:
        pieces: its payload, in parts.
        masked: whether to mask it, as a client must.
    """
    size = sum(map(len, pieces))
    flag = _MASKED if masked else 0
    if size < _TWO_BYTES:
        head = bytes((_FINAL | _BINARY, flag | size))
    elif size < 0x10000:
        head = bytes((_FINAL | _BINARY, flag | _TWO_BYTES)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | _BINARY, flag | _EIGHT_BYTES)) + size.to_bytes(8, "big")
    if not masked:
        return b"".join((head, *pieces))
    mask = next(_masks)
    encoded: list[Bytes] = [head, mask]
    for piece in pieces:
        encoded.append(apply_mask(piece, mask))
        turn = len(piece) % 4
        if turn:
            mask = mask[turn:] + mask[:turn]
    return b"".join(encoded)


class MessageReader:
    """Splits the received data of a WebSocket connection into messages.

    Args:
        websocket: receives everything that is not a binary message.
        message: called with the payload of each binary message, which may change after the call.
        others: called after websockets has received data: it may have events, or something to send.
    """

    __slots__ = (
        "_fragments",
        "_given_up",
        "_in_fragments",
        "_in_text",
        "_masked",
        "_message",
        "_middling",
        "_others",
        "_size",
        "_websocket",
        "rest",
    )

    def __init__(self, websocket: Protocol, message: Callable[[Bytes], None], others: Callable[[], None]) -> None:
        self.rest = b""
        """The received part of an incomplete frame: put it before the data that is received next."""
        self._websocket = websocket
        self._message = message
        self._others = others
        self._masked = websocket.side is SERVER
        self._middling = _MIDDLING_MASKED if self._masked else _MIDDLING
        self._in_fragments = False
        self._fragments: list[bytes] = []
        """The fragments of an incomplete binary message; their total size is limited to that of a message."""
        self._size = 0
        """The size of the fragments."""
        self._in_text = False
        # Once websockets has stopped in the middle of a frame, it receives everything that follows.
        self._given_up = False

    def release(self) -> None:
        """Drop the callbacks: they refer to this object, and only a full garbage collection would free such a cycle."""
        self._message = self._others = _ignore

    def feed(self, data: memoryview) -> None:
        """Process received data, after :attr:`rest`."""
        self.rest = b""
        start = 0
        while start < len(data):
            state = self._websocket.state
            # A server reads the client's request before it uses this reader.
            if self._given_up or (state is not OPEN and (self._masked or state is not CONNECTING)):
                self._given_up = True
                self._pass_on(data[start:])
                return
            after = self._frame(data, start) if state is OPEN else self._headers(data, start)
            if not after:
                self.rest = bytes(data[start:])
                return
            start = after

    def _headers(self, data: memoryview, start: int) -> int:
        """Pass on the headers of the response to the handshake; return where they end, or 0 if they are incomplete."""
        end = bytes(data[start : start + _MAX_HEADERS]).find(_END_OF_HEADERS)
        if end < 0 and len(data) - start < _MAX_HEADERS:
            return 0
        after = len(data) if end < 0 else start + end + len(_END_OF_HEADERS)
        self._pass_on(data[start:after])
        self._given_up = self._websocket.state is not OPEN
        return after

    def _frame(self, data: memoryview, start: int) -> int:
        """Process the frame at ``start``; return where it ends, or 0 if it is incomplete."""
        end = len(data)
        if end - start < 2:
            return 0
        first, second = data[start], data[start + 1]
        if first not in _KNOWN or bool(second & _MASKED) is not self._masked:
            return self._give_up(data, start)
        body = start + 2
        size = second & ~_MASKED
        if size >= _TWO_BYTES:
            least = _TWO_BYTES if size == _TWO_BYTES else 0x10000
            body += 2 if size == _TWO_BYTES else 8
            if body > end:
                return 0
            size = int.from_bytes(data[start + 2 : body], "big")
            if size < least:
                # "The minimal number of bytes MUST be used" (section 5.2); websockets does not check.
                return self._fail(data, start, CloseCode.PROTOCOL_ERROR, "a frame's length in more bytes than it needs")
        if size > MAX_WEBSOCKET_MESSAGE:
            return self._give_up(data, start)
        return self._rest_of_frame(first, data, start, body + 4 if self._masked else body, size)

    def _rest_of_frame(self, first: int, data: memoryview, start: int, body: int, size: int) -> int:
        """Process a frame whose payload begins at ``body``, if it is complete and allowed here."""
        kind = first & ~_FINAL
        after = body + size
        if kind & _CONTROL or self._in_text or (kind == _TEXT and not self._in_fragments):
            if after > len(data):
                return 0
            if not kind & _CONTROL:
                self._in_text = not first & _FINAL
            self._pass_on(data[start:after])
            return after
        if self._size + size > MAX_WEBSOCKET_MESSAGE:
            return self._fail(data, start, CloseCode.MESSAGE_TOO_BIG, "a message in fragments that is too large")
        if after > len(data):
            return 0
        if self._in_fragments is not (kind == _CONTINUATION):
            return self._fail(data, start, CloseCode.PROTOCOL_ERROR, "fragments of messages out of order")
        payload: Bytes = data[body:after]
        if self._masked:
            payload = apply_mask(payload, bytes(data[body - 4 : body]))
        if first == _FINAL | _BINARY:
            self._message(payload)
        else:
            self._fragment(bytes(payload), last=bool(first & _FINAL))
        return self._fragments_between(data, after) if self._in_fragments else after

    def _fragment(self, payload: bytes, *, last: bool) -> None:
        """Keep a fragment of a binary message. The last one completes it."""
        if payload:
            self._fragments.append(payload)
            self._size += len(payload)
        self._in_fragments = not last
        if last:
            message = b"".join(self._fragments)
            self._fragments.clear()
            self._size = 0
            self._message(message)
        elif len(self._fragments) >= _MAX_FRAGMENTS:
            self._fragments[:] = [b"".join(self._fragments)]

    def _fragments_between(self, data: memoryview, start: int) -> int:
        """Process the frames at ``start`` that neither begin nor end a message; return where they end.

        Only simple ones: complete, and with a length in two bytes. One by one, they would take twice as long.
        """
        unpack, head = self._middling.unpack_from, self._middling.size
        end, flag = len(data), (_MASKED if self._masked else 0) | _TWO_BYTES
        while start + head <= end:
            first, second, size, mask = unpack(data, start)
            body = start + head
            after = body + size
            if (
                first != _CONTINUATION
                or second != flag
                or size < _TWO_BYTES
                or after > end
                or self._size + size > MAX_WEBSOCKET_MESSAGE
            ):
                break
            self._fragments.append(apply_mask(data[body:after], mask) if mask else bytes(data[body:after]))
            self._size += size
            start = after
        return start

    def _fail(self, data: memoryview, start: int, code: CloseCode, reason: str) -> int:
        """Close the connection because of the frame at ``start``; websockets discards what follows."""
        self._websocket.fail(code, reason)
        return self._give_up(data, start)

    def _give_up(self, data: memoryview, start: int) -> int:
        self._given_up = True
        self._pass_on(data[start:])
        return len(data)

    def _pass_on(self, data: memoryview) -> None:
        # websockets declares bytes, but accepts everything that a bytearray can be extended by.
        self._websocket.receive_data(cast(bytes, data))
        self._others()


def _ignore(*_: Bytes) -> None:
    pass
