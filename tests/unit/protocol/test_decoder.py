# SPDX-License-Identifier: GPL-3.0-or-later
"""The decoder, which remembers, against protobuf, which does not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.messages import messages
from tunnelproxy.protocol.decoder import Decoder
from tunnelproxy.protocol.framing import MAX_PAYLOAD, FrameReader, Message, ProtocolError, frame, parse

DATA = Message(type=Message.DATA, streamId=7, serviceId="SSH1", connectionId=2)


def without_payload(message: Message) -> Message:
    bare = Message()
    bare.CopyFrom(message)
    bare.ClearField("payload")
    return bare


def encode(message: Message, *, payload_last: bool) -> bytes:
    return frame(without_payload(message), message.payload) if payload_last else frame(message)


def decoded(decoder: Decoder, data: bytes) -> list[tuple[Message, bytes]]:
    return [(message, bytes(payload)) for message, payload, _ in decoder.decode(data)]


@given(st.lists(st.lists(messages, max_size=2), max_size=6), st.booleans())
def test_what_a_decoder_remembers_does_not_change_what_it_returns(
    sent: list[list[Message]], payload_last: bool
) -> None:
    decoder = Decoder()
    for batch in [*sent, *sent, *sent]:
        wire = b"".join(encode(message, payload_last=payload_last) for message in batch)
        assert decoded(decoder, wire) == [(without_payload(message), message.payload) for message in batch]


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 2**20), max_size=8))
def test_any_split_of_the_data_gives_the_same_messages(sent: list[Message], cuts: list[int]) -> None:
    decoder = Decoder()
    wire = b"".join(frame(message) for message in sent)
    points = sorted(cut % (len(wire) + 1) for cut in cuts)
    pieces = [wire[start:end] for start, end in zip([0, *points], [*points, len(wire)])]
    found = [each for piece in pieces for each in decoded(decoder, piece)]
    assert found == [(without_payload(message), message.payload) for message in sent]
    assert decoder.pending == 0


@given(messages, st.binary(min_size=1, max_size=300), st.lists(messages, max_size=2))
def test_a_message_after_a_similar_one_is_decoded_as_if_it_were_the_first(
    first: Message, payload: bytes, others: list[Message]
) -> None:
    similar = Message()
    similar.CopyFrom(first)
    similar.payload = payload
    decoder = Decoder()
    for message in (first, first, similar, first, *others, similar):
        wire = encode(message, payload_last=True)
        assert decoded(decoder, wire) == decoded(Decoder(), wire)


def test_messages_that_differ_in_their_payload_only_are_one_object() -> None:
    decoder = Decoder()
    first, *others = [
        found
        for number in range(5)
        for found, _, _ in decoder.decode(frame(DATA, bytes([number]) * (10 if number < 3 else 200)))
    ]
    assert first == others[0] == DATA
    assert all(found is others[0] for found in others)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_encoded_message_is_returned_too(kind: type) -> None:
    decoder = Decoder()
    wire = frame(DATA, b"payload")
    for _ in range(3):
        ((_, _, encoded),) = decoder.decode(kind(wire))
        assert bytes(encoded) == wire[2:]


def test_a_repeated_payload_is_not_copied() -> None:
    decoder = Decoder()
    wire = bytearray(frame(DATA, bytes(MAX_PAYLOAD)))
    for _ in range(2):
        list(decoder.decode(wire))
    ((_, payload, _),) = decoder.decode(wire)
    wire[-1] = 1
    assert payload[-1] == 1


def test_a_message_that_begins_like_the_latest_but_follows_half_of_another_is_not_mistaken_for_it() -> None:
    decoder = Decoder()
    wire = frame(DATA, b"x" * 40)
    for _ in range(3):
        list(decoder.decode(wire))
    longer = frame(DATA, wire + b"y")
    assert decoded(decoder, longer[: -len(wire) - 1]) == []
    assert decoder.pending
    assert decoded(decoder, longer[-len(wire) - 1 : -1]) == []
    assert decoded(decoder, longer[-1:]) == [(DATA, wire + b"y")]


def test_heads_that_no_data_message_has_are_not_remembered() -> None:
    decoder = Decoder()
    for number in range(20):
        head = Message(type=Message.DATA, streamId=1 + number, availableServiceIds=["s" * 100] * 500)
        list(decoder.decode(frame(head, b"x")))
    assert not decoder._known
    longest = Message(type=Message.DATA, streamId=2**31 - 1, serviceId="s" * 128, connectionId=2**32 - 1)
    list(decoder.decode(frame(longest, b"x")))
    assert len(decoder._known) == 1


def test_no_more_than_256_heads_are_remembered() -> None:
    decoder = Decoder()
    for number in range(1, 1000):
        head = Message(type=Message.DATA, streamId=number, serviceId="SSH1", connectionId=1)
        assert decoded(decoder, frame(head, b"x")) == [(head, b"x")]
        assert len(decoder._known) <= 256


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_garbage_is_not_mistaken_for_a_known_message(head: bytes, garbage: bytes) -> None:
    decoder = Decoder()
    list(decoder.decode(frame(Message(type=Message.DATA, streamId=1), b"payload")))
    for encoded in (b"\x08\x01\x10\x01" + garbage, head + garbage):
        wire = len(encoded).to_bytes(2, "big") + encoded
        try:
            expected = parse(encoded)
        except ProtocolError:
            with pytest.raises(ProtocolError):
                list(decoder.decode(wire))
        else:
            assert decoded(decoder, wire) == [(without_payload(expected), expected.payload)]


def test_messages_before_an_invalid_one_are_returned() -> None:
    found = iter(Decoder().decode(frame(DATA, b"valid") + b"\x00\x03\xff\xff\xff"))
    assert bytes(next(found).payload) == b"valid"
    with pytest.raises(ProtocolError):
        next(found)


@given(st.binary(max_size=300))
def test_no_more_is_kept_than_the_incomplete_message(garbage: bytes) -> None:
    decoder = Decoder()
    with contextlib.suppress(ProtocolError):
        count = sum(len(encoded) + 2 for encoded in FrameReader().feed(garbage))
        list(decoder.decode(garbage))
        assert decoder.pending == len(garbage) - count
