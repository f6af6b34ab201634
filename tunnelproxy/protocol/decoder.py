# SPDX-License-Identifier: Apache-2.0
"""Decoding: from the payloads of WebSocket messages to protobuf messages.

A decoder belongs to one WebSocket connection. It cuts the byte sequence into frames (see :mod:`.framing`) and decodes
them. The data messages of one connection differ in their payload only, so the decoder decodes the bytes before the
payload once, and does not copy the payload: a full message takes 1 µs, compared with 8 µs for protobuf alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .framing import LENGTH_BYTES, MAX_PAYLOAD, Bytes, FrameReader, Message, ProtocolError, parse, payload_head

__all__ = ["Decoded", "Decoder"]

_MAX_KNOWN = 256
"""Connections whose messages a decoder recognises."""

_LONGEST_HEAD = 160
"""The size of a data message without its payload, with the longest service ID and the highest numbers. A decoder does
not remember longer heads: a peer could otherwise make it grow with fields that data messages do not have."""


class Decoded(NamedTuple):
    """A decoded message.

    Attributes:
        message: the message without its payload. Do not change it: for messages that differ only in their payload, the
            decoder returns the same object, so that what is known about one also applies to the next.
        payload: the payload. It may be a part of the decoded data, which must not change while the payload is in use.
        encoded: the whole encoded message, without its length; a part of the decoded data.
    """

    message: Message
    payload: Bytes
    encoded: Bytes


class Decoder:
    """Decodes the messages of one WebSocket connection."""

    __slots__ = ("_frames", "_known", "_latest", "_latest_head", "_latest_size", "_sizes")

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._known: dict[bytes, Message] = {}
        """Messages without payload, by their encoding."""
        self._sizes: set[int] = set()
        """The lengths of the keys of ``_known``, usually the same for all connections."""
        self._latest: Message | None = None
        """The message, without payload, if the latest data was exactly one known message."""
        self._latest_head = b""
        """What that data began with, up to the payload."""
        self._latest_size = 0
        """How many bytes that data had."""

    @property
    def pending(self) -> int:
        """The size of the buffered incomplete message: less than 64 KiB, whatever the peer sends."""
        return len(self._frames.partial)

    def decode(self, data: Bytes) -> Iterable[Decoded]:
        """Decode the messages that ``data`` completes; keep the rest for the next call.

        Iterate over all of the result before the next call.

        Args:
            data: the payload of a WebSocket message, or any part of one.

        Raises:
            ProtocolError: while iterating, as :func:`~.framing.parse`, after the messages before the invalid one.
        """
        if self._latest is not None and len(data) == self._latest_size and not self._frames.partial:
            # Bulk data: one message in each WebSocket message, like the one before except for the payload. One
            # comparison replaces splitting and decoding, which saves 2 µs of the roughly 400 µs that a message takes.
            start = len(self._latest_head)
            if data[:start] == self._latest_head:
                view = memoryview(data)
                return (Decoded(self._latest, view[start:], view[LENGTH_BYTES:]),)
        return self._decode_frames(data)

    def _decode_frames(self, data: Bytes) -> Iterator[Decoded]:
        whole = not self._frames.partial
        for encoded in self._frames.feed(data):
            decoded = self._decode(encoded)
            yield decoded
            if whole and isinstance(decoded.payload, memoryview) and len(data) == LENGTH_BYTES + len(encoded):
                self._latest = decoded.message
                self._latest_size = len(data)
                self._latest_head = bytes(data[: len(data) - len(decoded.payload)])

    def _decode(self, encoded: memoryview) -> Decoded:
        for size in self._sizes:
            known = self._known.get(bytes(encoded[:size]))
            if known is not None:
                rest = _final_payload(encoded, size)
                if rest is not None:
                    return Decoded(known, rest, encoded)
        message = parse(encoded)
        payload: bytes = message.payload
        if payload:
            message.ClearField("payload")
            self._learn(encoded, len(encoded) - len(payload) - len(payload_head(len(payload))))
        return Decoded(message, payload, encoded)

    def _learn(self, encoded: Bytes, size: int) -> None:
        """Remember the first ``size`` bytes, if the payload follows them and ends the message.

        This package and AWS's reference encode messages in that order; the protocol does not require it.
        """
        if not 0 < size <= _LONGEST_HEAD or _final_payload(encoded, size) is None:
            return
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
            self._sizes.clear()
        head = bytes(encoded[:size])
        with contextlib.suppress(ProtocolError):
            self._known[head] = parse(head)
            self._sizes.add(size)


def _final_payload(encoded: Bytes, start: int) -> Bytes | None:
    """The payload, if ``encoded`` contains nothing after ``start`` except the payload, in the shortest encoding."""
    rest = len(encoded) - start
    for head_size in (4, 3, 2):
        size = rest - head_size
        if 0 < size <= MAX_PAYLOAD:
            head = payload_head(size)
            if len(head) == head_size and encoded[start : start + head_size] == head:
                return encoded[start + head_size :]
    return None
