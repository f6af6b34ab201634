# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's throughput for messages in fragments of 4 KiB, as AWS's reference sends them, and for whole messages.

Data is encoded before the clock starts, and another process discards what arrives, so that neither end limits the
service. A fragment written separately is also a separate TLS record: compare it with whole messages in writes of the
same size. The websockets client is itself slow when it sends fragments:

    python -m benchmarks fragments --rounds 7
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from websockets.frames import Opcode
from websockets.speedups import apply_mask

from peers.service import TunnelingService
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Message, frame

from .results import Results, cpu_seconds

__all__ = ["main"]

MEGA = 1_000_000
FRAGMENT = 4096
MASK = b"mask"
FINAL = 0x80
CONNECTION = {"streamId": 1, "serviceId": "SSH1", "connectionId": 1}

Sender = Callable[[int], None]


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fragments", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (%(default)s)")
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="data sent in each round (%(default)s)")
    options = parser.parse_args(arguments)
    results = Results("A service and its sender, for messages of 63 KiB")
    with TunnelingService() as service:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} …", flush=True)
            for method in METHODS:
                _measure(results, service, method, options.size * MEGA)
    results.show("fragments")


def _measure(results: Results, service: TunnelingService, method: str, size: int) -> None:
    api = service.boto3_client()
    opened = api.open_tunnel(destinationConfig={"services": ["SSH1"]})
    message = frame(Message(type=Message.DATA, **CONNECTION), bytes(MAX_PAYLOAD))
    count = size // len(message)
    with (
        METHODS[method](service, opened["sourceAccessToken"], message) as send,
        closing(_handshake(service, "destination", opened["destinationAccessToken"])) as sink,
    ):
        before, started = cpu_seconds(service.pid), time.perf_counter()
        sender = os.fork()
        if not sender:
            send(count)
            os._exit(0)
        _take(sink, count * len(message))
        seconds = time.perf_counter() - started
        _, _, used = os.wait4(sender, 0)
        service_seconds = cpu_seconds(service.pid) - before
    api.close_tunnel(tunnelId=opened["tunnelId"], delete=True)
    giga = count * len(message) / 1e9
    results.add("throughput [MB/s]", method, giga * 1000 / seconds)
    results.add("CPU for a gigabyte: service [s]", method, service_seconds / giga)
    results.add("CPU for a gigabyte: sender [s]", method, (used.ru_utime + used.ru_stime) / giga)


def _take(sink: ssl.SSLSocket, size: int) -> None:
    buffer = bytearray(256 * 1024)
    while size > 0:
        size -= sink.recv_into(buffer)


class _Prepared:
    """Sends messages that were encoded beforehand.

    Args:
        writes: splits a message into the data of each write.
    """

    def __init__(self, writes: Callable[[bytes], list[bytes]]) -> None:
        self._writes = writes

    def __call__(self, service: TunnelingService, token: str, message: bytes) -> _Prepared:
        self._socket = _handshake(service, "source", token)
        self._socket.sendall(_encode(FINAL | Opcode.BINARY, frame(Message(type=Message.STREAM_START, **CONNECTION))))
        self._pieces = self._writes(message)
        return self

    def __enter__(self) -> Sender:
        return self._send

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _send(self, count: int) -> None:
        for _ in range(count):
            for piece in self._pieces:
                self._socket.sendall(piece)


class _Client:
    """Sends with the websockets client.

    Args:
        fragmented: whether to pass each message in pieces, which the client sends as fragments.
    """

    def __init__(self, *, fragmented: bool) -> None:
        self._fragmented = fragmented

    def __call__(self, service: TunnelingService, token: str, message: bytes) -> _Client:
        self._opening = service.connect("source", token, ping_interval=None)
        self._message = message
        return self

    def __enter__(self) -> Sender:
        self._connection: Any = self._opening.__enter__()
        self._connection.send(frame(Message(type=Message.STREAM_START, **CONNECTION)))
        return self._send

    def __exit__(self, *error: Any) -> None:
        # The forked process has sent with a copy of this connection's state.
        self._connection.socket.close()

    def _send(self, count: int) -> None:
        pieces = _cut(self._message)
        for _ in range(count):
            self._connection.send(iter(pieces) if self._fragmented else self._message)


def _cut(data: bytes) -> list[bytes]:
    return [data[start : start + FRAGMENT] for start in range(0, len(data), FRAGMENT)]


def _whole(message: bytes) -> list[bytes]:
    return [_encode(FINAL | Opcode.BINARY, message)]


def _fragments(message: bytes) -> list[bytes]:
    pieces = _cut(message)
    kinds = [Opcode.BINARY, *[Opcode.CONT] * (len(pieces) - 2), FINAL | Opcode.CONT]
    return [_encode(kind, piece) for kind, piece in zip(kinds, pieces)]


METHODS: dict[str, Any] = {
    "whole": _Prepared(_whole),
    "fragments, a write for each message": _Prepared(lambda message: [b"".join(_fragments(message))]),
    "whole, in writes of 4 KiB": _Prepared(lambda message: _cut(_whole(message)[0])),
    "fragments, a write for each": _Prepared(_fragments),
    "whole, by websockets": _Client(fragmented=False),
    "fragments, by websockets": _Client(fragmented=True),
}


def _encode(first: int, data: bytes) -> bytes:
    size = len(data)
    code, wide = (size, 0) if size < 126 else (126, 2)
    return bytes((first, 0x80 | code)) + size.to_bytes(2, "big")[2 - wide :] + MASK + apply_mask(data, MASK)


def _handshake(service: TunnelingService, mode: str, token: str) -> ssl.SSLSocket:
    """Open a WebSocket without a client library, as nothing here needs to be decoded."""
    host, _, port = service.data.rpartition(":")
    context = ssl.create_default_context(capath=service.ca)
    sock = context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host)
    sock.sendall(
        f"GET /tunnel?local-proxy-mode={mode} HTTP/1.1\r\nHost: {service.data}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n"
        f"access-token: {token}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    if not head.startswith(b"HTTP/1.1 101 "):
        raise RuntimeError(f"the service rejected the handshake: {head!r}")
    return sock
