# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of a bulk transfer: each sends random bytes while it receives the other's, and hashes both."""

from __future__ import annotations

import hashlib
import random
import socket
import socketserver
import threading
from dataclasses import dataclass

__all__ = ["ExchangeServer", "Outcome", "exchange"]

CHUNK = 256 * 1024
DONE = b"."


@dataclass(frozen=True)
class Outcome:
    sent: str
    received: str


def exchange(sock: socket.socket, size: int, seed: int) -> Outcome:
    """Send ``size`` random bytes and receive as many at the same time; return the SHA-256 of both.

    At the end, each confirms to the other that it has received everything: only then may either close.
    """
    sent = hashlib.sha256()

    def send() -> None:
        source = random.Random(seed)
        left = size
        while left:
            data = source.randbytes(min(CHUNK, left))
            sent.update(data)
            try:
                sock.sendall(data)
            except OSError:
                return  # the receiving side reports that the connection was closed
            left -= len(data)

    sender = threading.Thread(target=send)
    sender.start()
    received = hashlib.sha256()
    left = size
    while left:
        data = sock.recv(min(CHUNK, left))
        if not data:
            raise ConnectionError(f"the connection was closed {left} bytes too early")
        received.update(data)
        left -= len(data)
    sender.join()
    sock.sendall(DONE)
    if sock.recv(1) != DONE:
        raise ConnectionError("the far end did not receive everything")
    return Outcome(sent.hexdigest(), received.hexdigest())


class ExchangeServer:
    """The other end of :func:`exchange` on every connection; records the outcomes by the hash of the received data."""

    def __init__(self, size: int) -> None:
        outcomes: dict[str, Outcome] = {}
        seeds = iter(range(1_000_000, 2_000_000))

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outcome = exchange(self.request, size, next(seeds))
                outcomes[outcome.received] = outcome
                # The far end closes once it has our last byte.
                self.request.recv(1)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

        self.outcomes = outcomes
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> ExchangeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
