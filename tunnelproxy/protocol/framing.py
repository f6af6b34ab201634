# SPDX-License-Identifier: Apache-2.0
"""Framing: protobuf messages, each after a two-byte length, in one byte sequence.

The payloads of a tunnel's binary WebSocket messages form one byte sequence; the boundaries of WebSocket messages
have no meaning. In the sequence, the length of each protobuf ``Message`` precedes it: two bytes in network order.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "Tunneling message frames".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Union, cast

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from ..names import SERVICE_ID
from .message_pb2 import Message

__all__ = [
    "LENGTH_BYTES",
    "MAX_MESSAGE",
    "MAX_PAYLOAD",
    "MAX_WEBSOCKET_MESSAGE",
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
"""The maximum size of a ``Message``'s payload, in bytes."""

MAX_MESSAGE = 0xFFFF
"""The maximum size of an encoded ``Message``, in bytes: its length has two bytes."""

MAX_WEBSOCKET_MESSAGE = 131076
"""The maximum size of a WebSocket message, in bytes. The service rejects larger ones."""

Bytes = Union[bytes, bytearray, memoryview]
"""Received data, which may be a part of a larger buffer."""

LENGTH_BYTES = 2
"""The size of the length that precedes each message."""

_PAYLOAD_TAG = Message.PAYLOAD_FIELD_NUMBER << 3 | 2


class ProtocolError(Exception):
    """The peer has broken the protocol; the WebSocket must be closed."""


def join_frames(messages: Iterable[Bytes]) -> bytes:
    """Join encoded messages, each preceded by its length."""
    return b"".join(piece for encoded in messages for piece in (prefix(len(encoded)), encoded))


class FrameReader:
    """Splits the byte sequence of one WebSocket connection into encoded messages.

    It buffers at most one incomplete message (less than 64 KiB), whatever the peer sends.
    """

    def __init__(self) -> None:
        self.partial = b""
        """The beginning of an incomplete message."""

    def feed(self, data: Bytes) -> Iterator[memoryview]:
        """Yield the encoded messages that ``data`` completes, without their lengths; keep the rest for the next call.

        Consume the iterator before the next call. The messages are parts of ``data``, which must not change while they
        are in use.
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
    """Encode a message, after its length.

    Args:
        message: the message, without a payload if ``payload`` is given.
        payload: the payload. protobuf would copy it twice.

    Raises:
        ValueError: as :func:`head`.
    """
    return head(message.SerializeToString(), len(payload)) + payload


def head(encoded: bytes, size: int = 0) -> bytes:
    """Encode all of a frame that precedes the payload.

    The payload becomes the last field; protobuf allows fields in any order.

    Args:
        encoded: the encoded message, without its payload.
        size: the size of the payload.

    Raises:
        ValueError: the payload is larger than :data:`MAX_PAYLOAD`.
    """
    if size > MAX_PAYLOAD:
        raise ValueError(f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD}")
    if size:
        encoded += payload_head(size)
    return prefix(len(encoded) + size) + encoded


def prefix(size: int) -> bytes:
    """Encode the length of an encoded message, which precedes it."""
    return size.to_bytes(LENGTH_BYTES, "big")


def payload_head(size: int) -> bytes:
    """Encode what precedes a payload in protobuf's encoding: its field number and type, and its length."""
    if size < 0x80:
        return bytes((_PAYLOAD_TAG, size))
    if size < 0x4000:
        return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7))
    return bytes((_PAYLOAD_TAG, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))


def parse(encoded: Bytes) -> Message:
    """Decode one message, without its length.

    Raises:
        ProtocolError: it is not a ``Message``, has an unknown field, or exceeds a limit.
    """
    try:
        message = Message.FromString(cast(bytes, encoded))
    except DecodeError as error:
        raise ProtocolError("a frame that is not a protobuf Message") from error
    if len(UnknownFieldSet(message)):
        raise ProtocolError("a message with a field that the protocol does not have")
    # Each access to the payload copies it, and most messages are too short to have one that is too large.
    if len(encoded) > MAX_PAYLOAD and len(message.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of more than {MAX_PAYLOAD} bytes")
    if message.serviceId and not SERVICE_ID.match(message.serviceId):
        raise ProtocolError("a service ID with invalid characters")
    return message
