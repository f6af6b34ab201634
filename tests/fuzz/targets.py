# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fuzzer calls with each input, and what must hold for any input.

The first byte selects one of three targets. *Garbage* feeds the rest to one end of a tunnel, as a far end that follows
no rules would: once at once, and once in parts. *Joined* interprets the rest as orders to a source and a destination
with a lossless channel between them. *Frames* feeds the rest to a WebSocket, in parts through this package's reader,
and to websockets alone: both must see the same, with the exceptions of :func:`_what_both_judge_alike`.
"""

from __future__ import annotations

from collections import defaultdict

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from tunnelproxy.protocol.framing import (
    MAX_MESSAGE,
    MAX_PAYLOAD,
    MAX_WEBSOCKET_MESSAGE,
    FrameReader,
    Message,
    ProtocolError,
    frame,
    parse,
)
from tunnelproxy.protocol.session import (
    MAX_SERVICES,
    Connection,
    ConnectionClosed,
    ConnectionRequested,
    DataReceived,
    Event,
    Mode,
    Session,
    Version,
)
from tunnelproxy.protocol.websocket import MessageReader

__all__ = ["FRAMES", "GARBAGE", "JOINED", "one_input"]

GARBAGE = 0
JOINED = 1
FRAMES = 2

OFFERS: tuple[tuple[str, ...], ...] = ((), ("SSH1",), ("SSH1", "HTTP1"))
MOST_CONNECTIONS = 128
LENGTH_BYTES = 2


def one_input(data: bytes) -> None:
    """Run the target that an input chooses."""
    if len(data) < 3:
        return
    target = data[0] % 3
    if target == GARBAGE:
        _garbage(data[1], data[2], data[3:])
    elif target == JOINED:
        _joined(data[1], data[2:])
    else:
        _frames(data[1], data[2], data[3:])


# Garbage.


class _End:
    """One end, used as a proxy uses it. It checks that the events are consistent."""

    def __init__(self, mode: Mode, version: Version, offered: tuple[str, ...]) -> None:
        self.session = Session(mode, version)
        self.live: set[Connection] = set()
        self.events: list[Event] = []
        self.failure = ""
        self.wire = b""
        self.receive(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=offered)))
        if mode is Mode.SOURCE:
            for service_id in offered:
                self.live.add(self.session.open(service_id))
            self.wire += b"".join(self.session.data_to_send())

    def receive(self, data: bytes) -> None:
        if self.failure:
            return
        try:
            for event in self.session.receive(data):
                self._check(event)
                self.events.append(event)
        except ProtocolError as error:
            self.failure = str(error)
        self.wire += b"".join(self.session.data_to_send())
        assert self.session._decoder.pending < LENGTH_BYTES + MAX_MESSAGE
        assert len(self.session._streams) <= MAX_SERVICES

    def _check(self, event: Event) -> None:
        if isinstance(event, ConnectionRequested):
            assert self.session.mode is Mode.DESTINATION
            assert event.connection not in self.live
            if len(self.live) < MOST_CONNECTIONS:
                self.live.add(event.connection)
            else:
                self.session.close(event.connection)
        elif isinstance(event, DataReceived):
            assert event.connection in self.live
            assert len(event.payload) <= MAX_PAYLOAD
        elif isinstance(event, ConnectionClosed):
            self.live.remove(event.connection)
        for connection in self.live:
            assert isinstance(event, ConnectionClosed) or self.session.is_live(connection)


def _garbage(kind: int, step: int, wire: bytes) -> None:
    settings = (list(Mode)[kind % 2], Version(kind // 2 % 3 + 1), OFFERS[kind // 6 % len(OFFERS)])
    whole, pieces = _End(*settings), _End(*settings)
    whole.receive(wire)
    for start in range(0, len(wire), step + 1):
        pieces.receive(wire[start : start + step + 1])
    assert (whole.events, whole.failure, whole.wire) == (pieces.events, pieces.failure, pieces.wire)
    for encoded in FrameReader().feed(whole.wire):
        parse(encoded)


# Joined.


class _Joined:
    """Both ends, and what travels between them."""

    def __init__(self, versions: tuple[Version, Version], services: tuple[str, ...]) -> None:
        self.services = services
        self.ends = {
            Mode.SOURCE: Session(Mode.SOURCE, versions[0], probing=True),
            Mode.DESTINATION: Session(Mode.DESTINATION, versions[1]),
        }
        self.channels = dict.fromkeys(Mode, b"")
        """By the end that they lead to."""
        self.known: dict[Mode, list[Connection]] = {mode: [] for mode in Mode}
        self.sent: dict[tuple[Mode, Connection], bytes] = defaultdict(bytes)
        self.got: dict[tuple[Mode, Connection], bytes] = defaultdict(bytes)
        self.closed_by: dict[Connection, set[Mode]] = defaultdict(set)
        offer = frame(Message(type=Message.SERVICE_IDS, availableServiceIds=services))
        for session in self.ends.values():
            list(session.receive(offer))

    def open(self, argument: int) -> None:
        service_id = self.services[argument % len(self.services)]
        source = self.ends[Mode.SOURCE]
        # Like a source proxy: no second connection before the far end is known to speak V3.
        if source.can_open(service_id):
            self.known[Mode.SOURCE].append(source.open(service_id))
        else:
            source.ask_version(service_id)

    def send(self, mode: Mode, argument: int) -> None:
        connection = self._pick(mode, argument)
        if connection is not None:
            payload = bytes((argument, len(self.sent[mode, connection]) % 256))
            if self.ends[mode].is_live(connection):
                self.sent[mode, connection] += payload
            self.ends[mode].send(connection, payload)

    def close(self, mode: Mode, argument: int) -> None:
        connection = self._pick(mode, argument)
        if connection is not None:
            if self.ends[mode].is_live(connection):
                self.closed_by[connection].add(mode)
            self.ends[mode].close(connection)

    def deliver(self, towards: Mode, size: int) -> None:
        piece, self.channels[towards] = self.channels[towards][:size], self.channels[towards][size:]
        for event in self.ends[towards].receive(piece):
            if isinstance(event, ConnectionRequested):
                self.known[towards].append(event.connection)
            elif isinstance(event, DataReceived):
                self.got[towards, event.connection] += event.payload

    def flush(self) -> None:
        for mode, session in self.ends.items():
            self.channels[mode.other] += b"".join(session.data_to_send())

    def check(self) -> None:
        for (mode, connection), data in self.got.items():
            assert self.sent[mode.other, connection].startswith(data)

    def drain(self) -> None:
        while any(self.channels.values()):
            for mode in Mode:
                self.deliver(mode, MAX_MESSAGE)
            self.flush()
        self.check()
        for connection, closers in self.closed_by.items():
            assert not any(session.is_live(connection) for session in self.ends.values())
            (closer, *others) = closers
            if not others and connection in self.known[closer.other]:
                assert self.got[closer.other, connection] == self.sent[closer, connection]

    def _pick(self, mode: Mode, argument: int) -> Connection | None:
        known = self.known[mode]
        return known[argument % len(known)] if known else None


def _joined(kind: int, orders: bytes) -> None:
    # V1 requires that both ends speak it; the source finds out about the other pairs.
    versions = [(Version.V1, Version.V1), (Version.V2, Version.V2), (Version.V2, Version.V3), (Version.V3, Version.V3)]
    source, destination = versions[kind % len(versions)]
    services = OFFERS[1] if source is Version.V1 else OFFERS[1 + kind // 4 % 2]
    joined = _Joined((source, destination), services)
    for order, argument in zip(orders[::2], orders[1::2]):
        mode = list(Mode)[order // 4 % 2]
        if order % 4 == 0:
            joined.open(argument)
        elif order % 4 == 1:
            joined.send(mode, argument)
        elif order % 4 == 2:
            joined.close(mode, argument)
        else:
            joined.deliver(mode, argument + 1)
        joined.flush()
        joined.check()
    joined.drain()


# Frames.


def _open(side: Side) -> Protocol:
    """A WebSocket after the handshake."""
    return Protocol(side, state=OPEN, max_size=MAX_WEBSOCKET_MESSAGE)


def _seen(websocket: Protocol) -> list[Frame]:
    return [event for event in websocket.events_received() if isinstance(event, Frame)]


def _frames(kind: int, step: int, data: bytes) -> None:
    side = Side.SERVER if kind % 2 else Side.CLIENT
    alone, behind = _open(side), _open(side)
    got: list[tuple[Opcode, bytes]] = []
    reader = MessageReader(
        behind,
        lambda payload: got.append((Opcode.BINARY, bytes(payload))),
        lambda: got.extend((frame.opcode, bytes(frame.data)) for frame in _seen(behind)),
    )

    def feed(data: bytes) -> None:
        for start in range(0, len(data), step + 1):
            reader.feed(memoryview(reader.rest + data[start : start + step + 1]))
            assert len(reader.rest) < 14 + MAX_WEBSOCKET_MESSAGE

    agreed, too_long = _what_both_judge_alike(data, masked=side is Side.SERVER)
    alone.receive_data(data[:agreed])
    feed(data[:agreed])
    expected = _assembled(_seen(alone))
    assert got == expected
    assert behind.state is alone.state
    assert _code(behind) == _code(alone)
    if too_long and behind.state is OPEN:
        feed(data[agreed:])
        assert _code(behind) == CloseCode.PROTOCOL_ERROR
        assert got == expected


def _what_both_judge_alike(data: bytes, *, masked: bool) -> tuple[int, bool]:
    """How far websockets alone is the reference, and whether a length in too many bytes follows.

    websockets accepts such a length, and treats a close within fragments as an error.
    """
    start, in_fragments = 0, False
    while len(data) - start >= 2:
        first, size, body = data[start], data[start + 1] & 0x7F, start + 2
        if first & 0x70 or first & 0x0F not in set(Opcode) or bool(data[start + 1] & 0x80) is not masked:
            break
        if size >= 126:
            least = 126 if size == 126 else 0x10000
            body += 2 if size == 126 else 8
            size = int.from_bytes(data[start + 2 : body], "big")
            if len(data) >= body and size < least:
                return start, True
        if first & 0x0F == Opcode.CLOSE and in_fragments:
            return start, False
        if not first & 0x08:
            in_fragments = not first & 0x80
        start = body + size + (4 if masked else 0)
    return len(data), False


def _assembled(frames: list[Frame]) -> list[tuple[Opcode, bytes]]:
    got: list[tuple[Opcode, bytes]] = []
    fragments: bytes | None = None
    for seen in frames:
        if seen.opcode is Opcode.BINARY or (seen.opcode is Opcode.CONT and fragments is not None):
            fragments = (fragments or b"") + bytes(seen.data)
            if seen.fin:
                got.append((Opcode.BINARY, fragments))
                fragments = None
        else:
            got.append((seen.opcode, bytes(seen.data)))
    return got


def _code(websocket: Protocol) -> int | None:
    return None if websocket.close_sent is None else websocket.close_sent.code
