# SPDX-License-Identifier: Apache-2.0
"""Framing: protobuf messages behind a two-byte length, in an endless byte sequence.

The binary WebSocket messages of a tunnel, put end to end, make one byte sequence; where one of them ends means nothing.
In that sequence, each protobuf ``Message`` follows its length, two bytes in network order.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "Tunneling message frames".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Union, cast

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from ..names import SERVICE_ID
from .message_pb2 import Message

__all__ = [
    "MAX_MESSAGE",
    "MAX_PAYLOAD",
    "MAX_WEBSOCKET_MESSAGE",
    "Bytes",
    "FrameReader",
    "Message",
    "Parser",
    "ProtocolError",
    "Repetition",
    "frame",
    "head",
    "parse",
    "prefix",
]

MAX_PAYLOAD = 63 * 1024
"""Most bytes of application data in one ``Message``."""

MAX_MESSAGE = 0xFFFF
"""Most bytes of one encoded ``Message``: what its length prefix can say."""

MAX_WEBSOCKET_MESSAGE = 131076
"""Most bytes in one WebSocket message; the service refuses larger ones and sends none."""

Bytes = Union[bytes, bytearray, memoryview]
"""What came, where it need not be copied."""

_LENGTH_BYTES = 2

_MOST_KNOWN = 256
"""Connections whose messages a parser knows again."""

_LONGEST_HEAD = 160
"""Bytes that data has beside its payload, with the longest service ID and the highest numbers. A peer that sends more,
in fields that data does not have, must not make the parser grow by that."""

_PAYLOAD_TAG = Message.PAYLOAD_FIELD_NUMBER << 3 | 2


class ProtocolError(Exception):
    """The peer sent something that the protocol does not allow; the WebSocket must be closed."""


class FrameReader:
    """Cuts the byte sequence of one WebSocket connection into encoded messages.

    It holds at most one incomplete message, so it never grows past 64 KiB whatever the peer sends.
    """

    def __init__(self) -> None:
        self._partial = b""

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a message to come is here."""
        return not self._partial

    def feed(self, data: Bytes) -> Iterator[memoryview]:
        """Yield each encoded message that ``data`` completes; keep the rest for the next call.

        Consume the iterator before feeding again. What it yields is a part of ``data``, which must not change then.
        """
        if self._partial:
            data = self._partial + data
            self._partial = b""
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            after = body + (data[start] << 8 | data[start + 1])
            if after > end:
                break
            yield view[body:after]
            start = after
        self._partial = bytes(view[start:])


def frame(message: Message, payload: bytes = b"") -> bytes:
    """Encode a message with its length in front.

    Args:
        payload: what the message carries. It is not to be in ``message`` itself: protobuf would copy it twice, and the
            order of a message's fields is free.

    Raises:
        ValueError: as :func:`head`.
    """
    return head(message.SerializeToString(), len(payload)) + payload


def head(encoded: bytes, size: int = 0) -> bytes:
    """What stands before the payload of a message.

    Args:
        encoded: the message but for its payload.
        size: of the payload.

    Raises:
        ValueError: the payload is larger than :data:`MAX_PAYLOAD`.
    """
    if not size:
        return prefix(len(encoded)) + encoded
    if size > MAX_PAYLOAD:
        raise ValueError(f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD}")
    payload_head = _payload_head(size)
    return prefix(len(encoded) + len(payload_head) + size) + encoded + payload_head


def prefix(size: int) -> bytes:
    """What stands before an encoded message of so many bytes."""
    return size.to_bytes(_LENGTH_BYTES, "big")


class Parser:
    """Decodes the messages of one peer.

    Most of them are data, and those of one connection are the same bytes but for their payload. What is the same is
    decoded once; and the payload, which protobuf copies at each touch, is not copied at all: 1 µs for a full message,
    where protobuf alone takes 8.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Message] = {}
        self._sizes: set[int] = set()
        """Of what is known: as a rule all connections' heads are of one size."""

    def parse(self, encoded: Bytes) -> tuple[Message, Bytes]:
        """Decode one message, without its length.

        Returns:
            the message, which is only to be read, and its payload, which may be missing from the message. It is a
            memoryview, of the end of ``encoded``, if the rest of the message was known.

        Raises:
            ProtocolError: as :func:`parse`.
        """
        for size in self._sizes:
            known = self._known.get(bytes(encoded[:size]))
            if known is not None:
                payload = _rest_is_payload(encoded, size)
                if payload is not None:
                    return known, payload
        message = parse(encoded)
        payload = message.payload
        if payload:
            self._learn(encoded, len(encoded) - len(payload) - len(_payload_head(len(payload))))
        return message, payload

    def _learn(self, encoded: Bytes, size: int) -> None:
        """Know the head again, if the payload is what comes last: so this end writes it, and others may not."""
        if not 0 < size <= _LONGEST_HEAD or _rest_is_payload(encoded, size) is None:
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
            self._sizes.clear()
        head = bytes(encoded[:size])
        with contextlib.suppress(ProtocolError):
            self._known[head] = parse(head)
            self._sizes.add(size)


class Repetition:
    """Knows a WebSocket message again that differs from an earlier one in the bytes of its payload only.

    Bulk data comes that way: one frame in each message, of the same connection, of the same size. It takes one
    comparison then, in place of cutting out the frame, decoding it, and finding its connection.
    """

    __slots__ = ("_head", "_size")

    def __init__(self) -> None:
        self._head = b""
        self._size = 0

    def learn(self, data: Bytes, encoded: Bytes, payload: Bytes) -> bool:
        """Know ``data`` again, if it is just one frame whose payload comes last.

        Args:
            encoded: the last frame in ``data``, and its ``payload``, as :meth:`Parser.parse` returned it.
        """
        if not isinstance(payload, memoryview) or len(data) != _LENGTH_BYTES + len(encoded):
            return False
        self._size = len(data)
        self._head = bytes(data[: self._size - len(payload)])
        return True

    def payload(self, data: Bytes) -> Bytes | None:
        """The payload, if the message is known."""
        size = len(self._head)
        if len(data) == self._size and data[:size] == self._head:
            return data[size:]
        return None


def _payload_head(size: int) -> bytes:
    """What stands before a payload: its field number, that a length follows, and that (protobuf's encoding)."""
    if size < 0x80:
        return bytes((_PAYLOAD_TAG, size))
    if size < 0x4000:
        return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7))
    return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))


def _rest_is_payload(encoded: Bytes, start: int) -> Bytes | None:
    """The payload, if that and its head are all that ``encoded`` has from ``start`` on, written as we write them."""
    rest = len(encoded) - start
    for head_size in (4, 3, 2):
        size = rest - head_size
        if 0 < size <= MAX_PAYLOAD:
            head = _payload_head(size)
            if len(head) == head_size and encoded[start : start + head_size] == head:
                return encoded[start + head_size :]
    return None


def parse(encoded: Bytes) -> Message:
    """Decode one message, without its length.

    Raises:
        ProtocolError: it is not a ``Message``, has a field that the protocol does not know, or breaks a limit.
    """
    try:
        message = Message.FromString(cast(bytes, encoded))
    except DecodeError as error:
        raise ProtocolError("a frame that is not a protobuf Message") from error
    if len(UnknownFieldSet(message)):
        raise ProtocolError("a message with a field that the protocol does not have")
    # Each look at the payload copies it; most messages are too short for too long a payload.
    if len(encoded) > MAX_PAYLOAD and len(message.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of more than {MAX_PAYLOAD} bytes")
    if message.serviceId and not SERVICE_ID.match(message.serviceId):
        raise ProtocolError("a service ID with characters that no service ID has")
    return message
