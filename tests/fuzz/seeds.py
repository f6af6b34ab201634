# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs to begin with: what well-behaved peers send, and orders that come by every rule."""

from __future__ import annotations

from pathlib import Path

from tunnelproxy.protocol.framing import Message, frame

from .targets import FRAMES, GARBAGE, JOINED

__all__ = ["seeds", "write_seeds"]

KINDS = range(18)
"""Both modes, three versions, three offers."""

STEPS = (0, 6, 255)

FRAME_HEADS = ((0x82, 5), (0x89, 3), (0x02, 4), (0x8A, 0), (0x00, 0), (0x80, 2), (0x82, 200), (0x88, 0))
"""First bytes and sizes: messages, pings, fragments, and a good-bye."""


def seeds() -> list[bytes]:
    """All of them."""
    wire = b"".join(frame(message) for message in _conversation())
    garbage = [bytes((GARBAGE, kind, step)) + wire for kind in KINDS for step in STEPS]
    orders = bytes((0, 0, 1, 7, 3, 255, 5, 9, 7, 255, 0, 1, 1, 1, 2, 0, 3, 20, 6, 0, 7, 3, 0, 0, 3, 255, 7, 255))
    joined = [bytes((JOINED, kind)) + orders * 3 for kind in range(8)]
    client, server = (b"".join(_frame(*piece, mask=mask) for piece in FRAME_HEADS) for mask in (b"", b"mask"))
    frames = [bytes((FRAMES, side, step)) + (server if side else client) for side in (0, 1) for step in STEPS]
    # Found once: a frame of no kind that there is, cut off before its length is known.
    frames.append(bytes((FRAMES, 0, 0)) + b"\x03~")
    # A length in more bytes than it needs, and a close within fragments.
    frames += [bytes((FRAMES, 0, 2)) + wire for wire in (b"\x82\x01a\x82\x7e\x00\x01b", b"\x02\x01a\x88\x00")]
    return garbage + joined + frames


def write_seeds(folder: Path) -> None:
    """Write each into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number:02}").write_bytes(seed)


def _frame(first: int, size: int, mask: bytes) -> bytes:
    flag = 0x80 if mask else 0
    head = bytes((first, flag | size)) if size < 126 else bytes((first, flag | 126)) + size.to_bytes(2, "big")
    return head + mask + bytes(size)


def _conversation() -> list[Message]:
    named = [
        Message(
            type=kind,
            streamId=1,
            serviceId=service_id,
            connectionId=connection_id,
            payload=b"x" * (kind == Message.DATA),
        )
        for service_id in ("", "SSH1", "HTTP1")
        for kind in (Message.STREAM_START, Message.DATA, Message.CONNECTION_START, Message.CONNECTION_RESET)
        for connection_id in (0, 1, 2)
    ]
    return [
        Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1, payload=b"answer"),
        *named,
        Message(type=Message.STREAM_RESET, streamId=1, serviceId="SSH1"),
        Message(type=99, ignorable=True),
        Message(type=Message.SESSION_RESET),
        Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1", "HTTP1"]),
        Message(type=Message.UNKNOWN),
    ]
