# SPDX-License-Identifier: GPL-3.0-or-later
"""How much the service does for a message that comes in fragments, beside a whole one: a guard against getting slower.

Counted, not timed, so that it says the same on every machine. AWS's reference sends each message in fragments of 4 KiB.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from websockets.frames import Opcode

from peers.counted_work import arrive, calls
from peers.event_loop import in_event_loop
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Message, frame
from tunnelproxy.service.data_plane.client_connection import ClientConnection
from tunnelproxy.service.data_plane.server import DataPlane
from tunnelproxy.service.model import Mode, NewTunnel, digest
from tunnelproxy.service.state.store import Store

MESSAGES = 20
FRAGMENT = 4096
CALLS_PER_FRAGMENT = 5
"""A third above what was counted when it was set; when each fragment went through websockets, there were 43."""


class Wire:
    """Stands for a transport: counts what is written, and never fills up."""

    def __init__(self, sock: socket.socket) -> None:
        self.written = 0
        self._sock = sock

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else None

    def set_write_buffer_limits(self, **limits: int) -> None:
        """Nothing to do."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""


def encode(first: int, data: bytes) -> bytes:
    size = len(data)
    code, wide = (size, 0) if size < 126 else (126, 2) if size < 0x10000 else (127, 8)
    return bytes((first, 0x80 | code)) + size.to_bytes(8, "big")[8 - wide :] + bytes(4) + data


def whole(message: bytes) -> bytes:
    return encode(0x80 | Opcode.BINARY, message)


def fragmented(message: bytes) -> bytes:
    pieces = [message[start : start + FRAGMENT] for start in range(0, len(message), FRAGMENT)]
    first, *between, last = pieces
    return b"".join(
        (
            encode(Opcode.BINARY, first),
            *(encode(Opcode.CONT, piece) for piece in between),
            encode(0x80 | Opcode.CONT, last),
        )
    )


def join(data_plane: DataPlane, mode: Mode, sock: socket.socket) -> tuple[ClientConnection, Wire]:
    connection, wire = data_plane.new_connection(), Wire(sock)
    connection.connection_made(cast(asyncio.Transport, wire))
    request = (
        f"GET /tunnel?local-proxy-mode={mode.value} HTTP/1.1\r\n"
        "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\naccess-token: {mode.value}\r\n\r\n"
    )
    arrive(connection, request.encode())
    return connection, wire


@in_event_loop
async def test_a_message_in_fragments_takes_few_calls_more_than_a_whole_one(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "service.db")) as store, socket.socket() as sock:
        store.open_tunnel(NewTunnel(services=("SSH1",), lifetime=60), {mode: digest(mode.value) for mode in Mode}, 0.0)
        data_plane = DataPlane(store, clock=lambda: 0.0)
        source, _ = join(data_plane, Mode.SOURCE, sock)
        _, wire = join(data_plane, Mode.DESTINATION, sock)
        arrive(source, whole(frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))))
        message = frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1), bytes(MAX_PAYLOAD))
        counted = {}
        for kind, encoded in (("whole", whole(message)), ("fragmented", fragmented(message))):
            before = wire.written
            counted[kind] = calls(lambda encoded=encoded: arrive(source, encoded * MESSAGES)) / MESSAGES
            # What goes on is the same: one frame each.
            assert wire.written - before == MESSAGES * (4 + len(message))
        fragments = -(-len(message) // FRAGMENT)
        more = (counted["fragmented"] - counted["whole"]) / fragments
        print(f"{counted['whole']:.0f} calls for a whole message, {more:.1f} more for each fragment")
        assert more <= CALLS_PER_FRAGMENT
