# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary messages beside websockets' own protocol: what arrives is the same, however it is cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import CLOSED, OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from websockets.utils import apply_mask

from tunnelproxy.protocol.framing import MAX_WEBSOCKET_MESSAGE, Bytes
from tunnelproxy.protocol.websocket import MessageReader, encode_binary

SIZES = [0, 1, 3, 125, 126, 127, 65535, 65536, MAX_WEBSOCKET_MESSAGE]


class End:
    """One end that reads with a :class:`MessageReader`, as the event loop lets it."""

    def __init__(self, websocket: Protocol) -> None:
        self.websocket = websocket
        self.got: list[tuple[Opcode, bytes]] = []
        self.passed_by = 0
        """Messages that websockets did not see."""
        self.reader = MessageReader(websocket, self._message, self._others)

    def _message(self, data: Bytes) -> None:
        self.passed_by += 1
        self.got.append((Opcode.BINARY, bytes(data)))

    def _others(self) -> None:
        self.got += frames(self.websocket)

    def receive(self, data: bytes, cut: Callable[[int], int] = lambda left: left) -> None:
        buffer = bytearray(256 * 1024)
        while data:
            some, data = data[: (size := cut(len(data)))], data[size:]
            start = len(self.reader.rest)
            buffer[:start] = self.reader.rest
            buffer[start : start + len(some)] = some
            self.reader.feed(memoryview(buffer)[: start + len(some)])
            # What is valid until the event loop goes on is not afterwards.
            buffer[: start + len(some)] = bytes(start + len(some))


def frames(websocket: Protocol) -> list[tuple[Opcode, bytes]]:
    return [(opcode, data) for opcode, data, _ in frames_of(websocket)]


def frames_of(websocket: Protocol) -> list[tuple[Opcode, bytes, bool]]:
    """What websockets has read, and whether each was the last frame of its message."""
    events = websocket.events_received()
    return [(event.opcode, bytes(event.data), event.fin) for event in events if isinstance(event, Frame)]


def client() -> ClientProtocol:
    return ClientProtocol(parse_uri("wss://localhost/tunnel"), max_size=MAX_WEBSOCKET_MESSAGE)


def handshake(near: ClientProtocol, far: ServerProtocol) -> bytes:
    """Let the server have the request, and return its response."""
    near.send_request(near.connect())
    far.receive_data(b"".join(near.data_to_send()))
    (request,) = far.events_received()
    far.send_response(far.accept(cast(Request, request)))
    return b"".join(far.data_to_send())


def open_pair() -> tuple[ClientProtocol, ServerProtocol]:
    near, far = client(), ServerProtocol(max_size=MAX_WEBSOCKET_MESSAGE)
    near.receive_data(handshake(near, far))
    near.events_received()
    assert near.state is OPEN
    assert far.state is OPEN
    return near, far


def encode(first: int, data: bytes, mask: bytes) -> bytes:
    """A frame, of any kind; masked, if there is a mask."""
    size, flag = len(data), 0x80 if mask else 0
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 0x10000:
        head = bytes((first, flag | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, flag | 127)) + size.to_bytes(8, "big")
    return head + mask + (apply_mask(data, mask) if mask else data)


def assembled(events: list[tuple[Opcode, bytes, bool]]) -> list[tuple[Opcode, bytes]]:
    """What websockets has read, with the fragments of binary messages put together."""
    got: list[tuple[Opcode, bytes]] = []
    fragments: bytes | None = None
    for opcode, data, final in events:
        if opcode is Opcode.BINARY or (opcode is Opcode.CONT and fragments is not None):
            fragments = (fragments or b"") + data
            if final:
                got.append((Opcode.BINARY, fragments))
                fragments = None
        else:
            got.append((opcode, data))
    return got


class Zeros(bytes):
    """Shown by its length."""

    def __repr__(self) -> str:
        return f"bytes({len(self)})"


@dataclass
class Said:
    """A message in as many frames as it has pieces, some of them empty, with or without pings between."""

    opcode: Opcode
    pieces: list[bytes]
    pings: bool = False

    def wire(self, masks: Iterator[bytes]) -> bytes:
        opcode, wire = self.opcode, b""
        for number, piece in enumerate(self.pieces, 1):
            last = number == len(self.pieces)
            wire += encode(opcode | (0x80 if last else 0), piece, next(masks))
            if self.pings and not last:
                wire += encode(0x80 | Opcode.PING, b"within", next(masks))
            opcode = Opcode.CONT
        return wire


PAYLOADS = st.one_of(st.binary(max_size=300), st.sampled_from(SIZES[:-1]).map(Zeros))
FRAGMENTS = st.lists(st.one_of(st.binary(max_size=300), st.just(b""), st.just(Zeros(4096))), min_size=2, max_size=8)
BINARY = st.sampled_from([Opcode.BINARY])
TALK = st.lists(
    st.one_of(
        st.builds(Said, BINARY, PAYLOADS.map(lambda data: [data])),
        st.builds(Said, BINARY, FRAGMENTS, st.booleans()),
        st.builds(Said, BINARY, st.binary(min_size=2, max_size=200).map(lambda data: [bytes((i,)) for i in data])),
        st.builds(
            Said,
            st.just(Opcode.TEXT),
            st.lists(st.text(max_size=20).map(str.encode), min_size=1, max_size=3),
            st.booleans(),
        ),
        st.builds(Said, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125).map(lambda data: [data])),
    ),
    max_size=8,
)
CUTS = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 100_000)), min_size=1, max_size=8)
MASKS = st.lists(st.one_of(st.just(bytes(4)), st.binary(min_size=4, max_size=4)), min_size=1, max_size=4)
"""A mask of zeros is a legal one."""


@given(TALK, CUTS, MASKS, st.booleans(), st.booleans())
@example([Said(Opcode.BINARY, [b"a", b"", b"bc"], True), Said(Opcode.BINARY, [b"x"])], [1], [bytes(4)], True, True)
def test_all_arrives_as_by_websockets_alone_however_it_is_framed_and_cut(
    talk: list[Said], cuts: list[int], masks: list[bytes], masked: bool, closes: bool
) -> None:
    _, listener = open_pair() if masked else open_pair()[::-1]
    _, alone = open_pair() if masked else open_pair()[::-1]
    turns = cycle(masks if masked else [b""])
    wire = b"".join(said.wire(turns) for said in talk)
    if closes:
        wire += encode(0x80 | Opcode.CLOSE, b"\x03\xe8done", next(turns))
    alone.receive_data(wire)
    end = End(listener)
    sizes = iter(cuts * (len(wire) + 1))
    # Large messages in tiny pieces would take long.
    end.receive(wire, lambda left: min(left, max(next(sizes), len(wire) // 200)))
    assert end.got == assembled(frames_of(alone))
    assert listener.state is alone.state
    # A client's answers have masks of their own.
    assert list(map(len, listener.data_to_send())) == list(map(len, alone.data_to_send()))
    assert end.passed_by == sum(said.opcode is Opcode.BINARY for said in talk)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_written_is_a_message_to_websockets(size: int, masked: bool) -> None:
    near, far = open_pair()
    payload = bytes(range(251)) * (size // 251 + 1)
    pieces = [payload[: min(size, 7)], memoryview(payload)[7 : max(size, 7)]]
    listener: Protocol = far if masked else near
    listener.receive_data(encode_binary(pieces, masked=masked))
    assert frames(listener) == [(Opcode.BINARY, payload[:size])]


def test_every_message_has_a_mask_of_its_own() -> None:
    messages = [encode_binary((b"the same",), masked=True) for _ in range(1000)]
    assert len({message[2:6] for message in messages}) > 990


@given(st.integers(1, 400))
def test_messages_right_behind_the_handshake_are_read(size: int) -> None:
    near, far = client(), ServerProtocol()
    response = handshake(near, far)
    far.send_binary(b"at once")
    end = End(near)
    end.receive(response + b"".join(far.data_to_send()), lambda left: min(left, size))
    assert near.state is OPEN
    assert end.got == [(Opcode.BINARY, b"at once")]
    assert end.passed_by == 1


def test_a_refusal_is_websockets_business_to_its_end() -> None:
    near = client()
    near.send_request(near.connect())
    end = End(near)
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nreason"
    end.receive(refusal, lambda left: min(left, 7))
    near.receive_eof()
    assert near.handshake_exc is not None
    assert near.state is CLOSED


def test_a_head_without_end_is_not_waited_for() -> None:
    near = client()
    near.send_request(near.connect())
    end = End(near)
    end.receive(b"HTTP/1.1 101 Switching Protocols\r\n" + b"x: y\r\n" * 20_000, lambda left: min(left, 50_000))
    assert near.handshake_exc is not None
    assert not end.reader.rest


WRONG = {
    "too large": (b"\x82\x7f" + (MAX_WEBSOCKET_MESSAGE + 1).to_bytes(8, "big"), 1009),
    "masked, from a server": (b"\x82\x81abcdx", 1002),
    "with a reserved bit": (b"\xc2\x01x", 1002),
    "of an unknown kind": (b"\x83\x01x", 1002),
    "a new message within fragments": (b"\x02\x01x\x82\x01x", 1002),
    "a text within fragments": (b"\x02\x01x\x81\x01x", 1002),
    "a continuation of nothing": (b"\x80\x01x", 1002),
    "fragments that are too large together": (b"\x02\x01x\x80\x7f" + MAX_WEBSOCKET_MESSAGE.to_bytes(8, "big"), 1009),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_frame_against_the_rules_ends_the_connection_as_websockets_ends_it(what: str) -> None:
    wire, code = WRONG[what]
    near, _ = open_pair()
    end = End(near)
    end.receive(b"\x82\x05first" + wire + b"\x82\x04late", lambda left: min(left, 3))
    assert near.close_sent is not None
    assert near.close_sent.code == code
    assert end.got[0] == (Opcode.BINARY, b"first")
    assert (Opcode.BINARY, b"late") not in end.got


@pytest.mark.parametrize("first", [0x82, 0x02, 0x81, 0x89])
@pytest.mark.parametrize(
    ("code", "size"), [(126, 0), (126, 125), (127, 0), (127, 125), (127, 126), (127, 0xFFFF)], ids=str
)
def test_a_length_in_more_bytes_than_it_needs_is_refused(first: int, code: int, size: int) -> None:
    """RFC 6455, section 5.2. websockets alone lets it pass."""
    near, _ = open_pair()
    end = End(near)
    end.receive(bytes((first, code)) + size.to_bytes(2 if code == 126 else 8, "big") + bytes(size) + b"\x82\x04late")
    assert near.close_sent is not None
    assert near.close_sent.code == 1002
    assert end.got == []


def test_a_close_within_fragments_is_a_close() -> None:
    near, _ = open_pair()
    end = End(near)
    end.receive(b"\x02\x01x\x88\x06\x03\xe8done")
    assert near.close_rcvd is not None
    assert (near.close_rcvd.code, near.close_rcvd.reason) == (1000, "done")
    assert near.close_sent == near.close_rcvd


def test_fragments_of_a_byte_each_take_the_memory_of_one_message() -> None:
    near, _ = open_pair()
    end = End(near)
    start, wire = b"\x02\x01x", b"\x00\x02ab" * (MAX_WEBSOCKET_MESSAGE // 2 - 1)
    tracemalloc.start()
    try:
        end.receive(start + wire)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * MAX_WEBSOCKET_MESSAGE
    end.receive(b"\x80\x01y")
    assert end.got == [(Opcode.BINARY, b"x" + b"ab" * (MAX_WEBSOCKET_MESSAGE // 2 - 1) + b"y")]


def test_what_it_keeps_is_bounded() -> None:
    near, _ = open_pair()
    end = End(near)
    end.receive(b"\x82\x7f" + MAX_WEBSOCKET_MESSAGE.to_bytes(8, "big"))
    end.receive(bytes(MAX_WEBSOCKET_MESSAGE - 1), lambda left: min(left, 10_000))
    assert len(end.reader.rest) == 10 + MAX_WEBSOCKET_MESSAGE - 1
    end.receive(b"x")
    assert end.reader.rest == b""
    assert [len(data) for _, data in end.got] == [MAX_WEBSOCKET_MESSAGE]
