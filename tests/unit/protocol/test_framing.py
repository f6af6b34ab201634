# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames against protobuf's own encoding, and against bytes worked out by hand."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.messages import messages
from tunnelproxy.protocol.framing import (
    MAX_PAYLOAD,
    FrameReader,
    Message,
    ProtocolError,
    frame,
    join_frames,
    parse,
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *points], [*points, len(data)])]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2**20), max_size=12))
def test_any_split_of_valid_frames_gives_the_same_messages(sent: list[Message], cuts: list[int]) -> None:
    reader = FrameReader()
    wire = b"".join(frame(message) for message in sent)
    received = [parse(encoded) for piece in split(wire, cuts) for encoded in reader.feed(piece)]
    assert received == sent


@given(st.lists(messages, max_size=6))
def test_encoded_messages_are_put_together_again(sent: list[Message]) -> None:
    wire = b"".join(frame(message) for message in sent)
    assert join_frames(FrameReader().feed(wire)) == wire


@given(st.binary(max_size=300))
def test_garbage_is_a_message_or_a_protocol_error(garbage: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        for encoded in FrameReader().feed(garbage):
            assert isinstance(parse(encoded), Message)


def test_the_wire_is_that_of_the_guide() -> None:
    """Bytes worked out by hand from message.proto: field 1 varint 1, 2 varint 1, 4 bytes, 5 string, 7 varint 2."""
    message = Message(type=Message.DATA, streamId=1, payload=b"hi", serviceId="SSH1", connectionId=2)
    assert frame(message) == b"\x00\x10" + b"\x08\x01\x10\x01\x22\x02hi\x2a\x04SSH1\x38\x02"


def test_a_full_payload_fits_in_a_frame_with_the_longest_names() -> None:
    message = Message(
        type=Message.DATA, streamId=2**31 - 1, payload=bytes(MAX_PAYLOAD), serviceId="s" * 128, connectionId=2**32 - 1
    )
    assert [parse(encoded) for encoded in FrameReader().feed(frame(message))] == [message]


def test_too_large_a_payload_is_not_framed() -> None:
    with pytest.raises(ValueError, match="64513 bytes is over the limit of 64512"):
        frame(Message(type=Message.DATA), bytes(MAX_PAYLOAD + 1))


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, MAX_PAYLOAD])
def test_a_payload_beside_the_message_is_one_in_it(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    head = Message(type=Message.DATA, streamId=3, serviceId="SSH1", connectionId=300)
    (encoded,) = FrameReader().feed(frame(head, payload))
    assert parse(encoded) == Message(type=Message.DATA, streamId=3, payload=payload, serviceId="SSH1", connectionId=300)


@pytest.mark.parametrize(
    ("encoded", "complaint"),
    [
        (b"\xff\xff\xff", "not a protobuf"),
        (b"\x40\x01", "field that the protocol does not have"),
        (Message(payload=bytes(MAX_PAYLOAD + 1)).SerializeToString(), "more than 64512"),
        (Message(serviceId="with space").SerializeToString(), "service ID with invalid"),
        (Message(serviceId="s" * 129).SerializeToString(), "service ID with invalid"),
    ],
)
def test_what_no_peer_may_send_is_a_protocol_error(encoded: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        parse(encoded)


def test_an_unfinished_frame_holds_back_only_its_own_bytes() -> None:
    reader = FrameReader()
    whole = frame(Message(type=Message.DATA, payload=b"x" * 100))
    assert len(list(reader.feed(whole + whole[:50]))) == 1
    assert list(reader.feed(b"")) == []
    assert len(list(reader.feed(whole[50:]))) == 1
