# SPDX-License-Identifier: GPL-3.0-or-later
"""An echo server, and a client that measures round trips."""

from __future__ import annotations

import socket
import socketserver
import threading
import time

__all__ = ["EchoServer", "round_trips"]


class EchoServer:
    """Echoes on every connection until it is closed."""

    def __init__(self) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := self._receive():
                    self.request.sendall(data)

            def _receive(self) -> bytes:
                try:
                    data: bytes = self.request.recv(65536)
                except OSError:
                    return b""
                return data

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> EchoServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def round_trips(sock: socket.socket, until: float, pause: float = 0.01) -> list[float]:
    """Send keystrokes, each after the previous echo and a pause; return the duration of each echo in seconds.

    Raises:
        ConnectionError: an echo is lost or wrong.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken = []
    number = 0
    while time.monotonic() < until:
        number += 1
        keystroke = number.to_bytes(8, "big")
        began = time.monotonic()
        sock.sendall(keystroke)
        echo = b""
        while len(echo) < len(keystroke):
            data = sock.recv(len(keystroke) - len(echo))
            if not data:
                raise ConnectionError(f"echo {number} was lost")
            echo += data
        taken.append(time.monotonic() - began)
        if echo != keystroke:
            raise ConnectionError(f"echo {number} is wrong")
        time.sleep(pause)
    return taken
