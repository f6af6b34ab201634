# SPDX-License-Identifier: GPL-3.0-or-later
"""Bulk data as fast as possible, in a separate process, so that it takes no CPU time from the measuring process.

``serve send|receive`` prints its port; ``connect PORT send|receive SECONDS`` prints the number of bytes.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from pathlib import Path

from peers.process import Process

__all__ = ["bulk_client", "bulk_server"]

CHUNK = bytes(256 * 1024)


def bulk_server(direction: str, folder: Path) -> tuple[Process, int]:
    """Start a server that only sends, or receives, on every connection; return it and its port."""
    process = _start(folder / "bulk-server.log", "serve", direction)
    return process, int(process.wait_for_output(r"^(\d+)\n")[1])


def bulk_client(port: int, direction: str, seconds: float, folder: Path) -> Process:
    """Start a client that sends, or receives, for some seconds, and prints the number of bytes."""
    return _start(folder / "bulk-client.log", "connect", str(port), direction, str(seconds))


def _start(log: Path, *arguments: str) -> Process:
    log.unlink(missing_ok=True)
    command = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from peers.bulk import main; main()"
    return Process([sys.executable, "-c", command, *arguments], log)


def _serve(direction: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_move, args=(connection, direction, float("inf")), daemon=True).start()


def _move(sock: socket.socket, direction: str, end: float) -> int:
    moved = 0
    with sock, contextlib.suppress(OSError):
        while time.monotonic() < end:
            moved += sock.send(CHUNK) if direction == "send" else _receive(sock)
    return moved


def _receive(sock: socket.socket) -> int:
    data = sock.recv(len(CHUNK))
    if not data:
        raise ConnectionError
    return len(data)


def main() -> None:
    """Run the server or the client, according to the command line."""
    role, *arguments = sys.argv[1:]
    if role == "serve":
        _serve(arguments[0])
    else:
        port, direction, seconds = arguments
        sock = socket.create_connection(("127.0.0.1", int(port)))
        print(_move(sock, direction, time.monotonic() + float(seconds)), flush=True)
