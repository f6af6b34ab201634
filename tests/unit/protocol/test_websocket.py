# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary messages beside websockets' own protocol: what arrives is the same, however it is cut."""

from __future__ import annotations

from collections.abc import Callable
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
    events = websocket.events_received()
    return [(event.opcode, bytes(event.data)) for event in events if isinstance(event, Frame)]


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


def say(websocket: Protocol, kind: str, data: bytes) -> None:
    if kind == "binary":
        websocket.send_binary(data)
    elif kind == "text":
        websocket.send_text(data.hex().encode())
    elif kind == "fragments":
        websocket.send_binary(data[:1], fin=False)
        websocket.send_ping(b"within")
        websocket.send_continuation(data[1:2], fin=False)
        websocket.send_continuation(data[2:], fin=True)
    elif kind == "ping":
        websocket.send_ping(data[:125])
    elif kind == "close" and websocket.state is OPEN:
        websocket.send_close(1000, "done")


class Zeros(bytes):
    """Shown by its length."""

    def __repr__(self) -> str:
        return f"bytes({len(self)})"


KINDS = st.sampled_from(["binary", "binary", "binary", "text", "fragments", "ping"])
PAYLOADS = st.one_of(st.binary(max_size=300), st.sampled_from(SIZES[:-1]).map(Zeros))
TALK = st.lists(st.tuples(KINDS, PAYLOADS), max_size=8)
CUTS = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 100_000)), min_size=1, max_size=8)


@given(TALK, CUTS, st.booleans(), st.booleans())
@example([("fragments", b"abc"), ("binary", b"x")], [1], True, True)
def test_all_arrives_as_by_websockets_alone_however_it_is_cut(
    talk: list[tuple[str, bytes]], cuts: list[int], masked: bool, closes: bool
) -> None:
    speaker, listener = open_pair() if masked else open_pair()[::-1]
    _, reference = open_pair() if masked else open_pair()[::-1]
    for kind, data in [*talk, ("close", b"")] if closes else talk:
        say(speaker, kind, data)
    wire = b"".join(speaker.data_to_send())
    reference.receive_data(wire)
    end = End(listener)
    sizes = iter(cuts * (len(wire) + 1))
    # Large messages in tiny pieces would take long.
    end.receive(wire, lambda left: min(left, max(next(sizes), len(wire) // 200)))
    assert end.got == frames(reference)
    assert listener.state is reference.state
    assert end.passed_by == sum(kind == "binary" for kind, _ in talk)


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
    "a continuation of nothing": (b"\x80\x01x", 1002),
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


def test_what_it_keeps_is_bounded() -> None:
    near, _ = open_pair()
    end = End(near)
    end.receive(b"\x82\x7f" + MAX_WEBSOCKET_MESSAGE.to_bytes(8, "big"))
    end.receive(bytes(MAX_WEBSOCKET_MESSAGE - 1), lambda left: min(left, 10_000))
    assert len(end.reader.rest) == 10 + MAX_WEBSOCKET_MESSAGE - 1
    end.receive(b"x")
    assert end.reader.rest == b""
    assert [len(data) for _, data in end.got] == [MAX_WEBSOCKET_MESSAGE]
