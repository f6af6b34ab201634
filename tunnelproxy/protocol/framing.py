# SPDX-License-Identifier: Apache-2.0
"""Framing: protobuf messages behind a two-byte length, in an endless byte sequence.

The binary WebSocket messages of a tunnel, put end to end, make one byte sequence; where one of them ends means nothing.
In that sequence, each protobuf ``Message`` follows its length, two bytes in network order.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "Tunneling message frames".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Union, cast

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from .message_pb2 import Message

__all__ = [
    "LENGTH_BYTES",
    "MAX_MESSAGE",
    "MAX_PAYLOAD",
    "MAX_WEBSOCKET_MESSAGE",
    "SERVICE_ID",
    "Bytes",
    "FrameReader",
    "Message",
    "ProtocolError",
    "frame",
    "head",
    "join_frames",
    "parse",
    "payload_head",
    "prefix",
]

MAX_PAYLOAD = 63 * 1024
"""Most bytes of application data in one ``Message``."""

MAX_MESSAGE = 0xFFFF
"""Most bytes of one encoded ``Message``: what its length prefix can say."""

MAX_WEBSOCKET_MESSAGE = 131076
"""Most bytes in one WebSocket message; the service refuses larger ones and sends none."""

SERVICE_ID = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
"""What a service ID looks like (botocore's ``iotsecuretunneling`` model, shape ``Service``)."""

Bytes = Union[bytes, bytearray, memoryview]
"""What came, where it need not be copied."""

LENGTH_BYTES = 2

_PAYLOAD_TAG = Message.PAYLOAD_FIELD_NUMBER << 3 | 2


class ProtocolError(Exception):
    """The peer sent something that the protocol does not allow; the WebSocket must be closed."""


def join_frames(messages: Iterable[Bytes]) -> bytes:
    """Put encoded messages together again, each behind its length."""
    return b"".join(piece for encoded in messages for piece in (prefix(len(encoded)), encoded))


class FrameReader:
    """Cuts the byte sequence of one WebSocket connection into encoded messages.

    It holds at most one incomplete message, so it never grows past 64 KiB whatever the peer sends.
    """

    def __init__(self) -> None:
        self.partial = b""
        """The beginning of an incomplete message."""

    def feed(self, data: Bytes) -> Iterator[memoryview]:
        """Yield each encoded message that ``data`` completes; keep the rest for the next call.

        Consume the iterator before feeding again. What it yields is a part of ``data``, which must not change then.
        """
        if self.partial:
            data = self.partial + data
            self.partial = b""
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= LENGTH_BYTES:
            body = start + LENGTH_BYTES
            after = body + (data[start] << 8 | data[start + 1])
            if after > end:
                break
            yield view[body:after]
            start = after
        self.partial = bytes(view[start:])


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
    if size > MAX_PAYLOAD:
        raise ValueError(f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD}")
    if size:
        encoded += payload_head(size)
    return prefix(len(encoded) + size) + encoded


def prefix(size: int) -> bytes:
    """What stands before an encoded message of so many bytes."""
    return size.to_bytes(LENGTH_BYTES, "big")


def payload_head(size: int) -> bytes:
    """What stands before a payload: its field number, that a length follows, and that (protobuf's encoding)."""
    if size < 0x80:
        return bytes((_PAYLOAD_TAG, size))
    if size < 0x4000:
        return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7))
    return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))


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
