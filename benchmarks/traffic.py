# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic to measure methods with: one server process and one client process, the same for every method.

The first byte of a connection tells the server what to do: ``E`` echoes; ``U`` receives a given number of bytes and
answers with one; ``R`` receives without end and answers with a byte for each 16 KiB; ``D`` sends a given number. So the
client knows when the last byte arrived, not when it was sent.

The client is ``python -m benchmarks.traffic WHAT PORT …`` and prints one line of JSON. ``ADDRESS:PORT`` may take the
place of a port on the loopback address.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time

__all__ = ["CHUNK"]

CHUNK = 256 * 1024
REPORT = 16 * 1024
_LENGTH = struct.Struct("!Q")


def serve(host: str) -> None:
    """Print a free port, and serve on it until killed."""
    listener = socket.create_server((host, 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        what = sock.recv(1)
        if what == b"E":
            while data := sock.recv(65536):
                sock.sendall(data)
        elif what == b"U":
            _read(sock, _LENGTH.unpack(_exactly(sock, _LENGTH.size))[0])
            sock.sendall(b".")
            sock.recv(1)
        elif what == b"R":
            _read_and_report(sock)
        elif what == b"D":
            _write(sock, _LENGTH.unpack(_exactly(sock, _LENGTH.size))[0])
            sock.recv(1)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = sock.recv(size - len(data))
        if not some:
            raise ConnectionError("the connection was closed early")
        data += some
    return data


def _read(sock: socket.socket, size: int) -> None:
    buffer = bytearray(CHUNK)
    while size:
        count = sock.recv_into(buffer, min(size, CHUNK))
        if not count:
            raise ConnectionError(f"the connection was closed with {size} bytes missing")
        size -= count


def _read_and_report(sock: socket.socket) -> None:
    """Read without end, and send a byte for each :data:`REPORT` bytes."""
    _exactly(sock, _LENGTH.size)
    buffer = bytearray(CHUNK)
    received = 0
    while count := sock.recv_into(buffer):
        received += count
        sock.sendall(bytes(received // REPORT))
        received %= REPORT


def _write(sock: socket.socket, size: int) -> None:
    chunk = bytes(CHUNK)
    while size:
        count = sock.send(chunk[:size] if size < CHUNK else chunk)
        size -= count


def bulk(port: str, direction: str, size: int, connections: int) -> dict[str, float]:
    """Move ``size`` bytes over several connections at once; connecting them is not part of the time."""
    sockets = [_connect(port) for _ in range(connections)]
    for sock in sockets:
        sock.sendall(b"U" if direction == "up" else b"D")
    share = size // connections
    failures: list[Exception] = []

    def move(sock: socket.socket) -> None:
        try:
            sock.sendall(_LENGTH.pack(share))
            if direction == "up":
                _write(sock, share)
                _exactly(sock, 1)
            else:
                _read(sock, share)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=move, args=(sock,)) for sock in sockets]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    for sock in sockets:
        sock.close()
    if failures:
        raise failures[0]
    return {"bytes_per_second": share * connections / taken, "seconds": taken}


def saturate(port: str, direction: str, seconds: float) -> dict[str, float]:
    """Move bytes for a number of seconds. How many have arrived is known only approximately."""
    sock = _connect(port)
    sock.sendall((b"U" if direction == "up" else b"D") + _LENGTH.pack(2**62))
    end = time.perf_counter() + seconds
    moved = 0
    buffer = bytearray(CHUNK)
    while time.perf_counter() < end:
        moved += sock.send(buffer) if direction == "up" else sock.recv_into(buffer)
    sock.close()
    return {"bytes_per_second": moved / seconds}


def steady(port: str, direction: str, settle: float, seconds: float, connections: int) -> dict[str, float]:
    """Move bytes, and count those that arrive in the last ``seconds``, after ``settle`` seconds."""
    counted = [0] * connections
    begin = time.perf_counter() + settle
    end = begin + seconds

    def move(number: int) -> None:
        with _connect(port) as sock:
            sock.sendall((b"R" if direction == "up" else b"D") + _LENGTH.pack(2**62))
            chunk = bytes(CHUNK)
            if direction == "up":
                sock.setblocking(False)
                while (now := time.perf_counter()) < end:
                    readable, writable, _ = select.select([sock], [sock], [], end - now)
                    if readable:
                        # The server reports what it has received.
                        reports = len(sock.recv(65536))
                        counted[number] += reports * REPORT if now >= begin else 0
                    if writable:
                        with contextlib.suppress(BlockingIOError):
                            sock.send(chunk)
            else:
                sock.settimeout(settle + seconds)
                buffer = bytearray(CHUNK)
                while (now := time.perf_counter()) < end:
                    count = sock.recv_into(buffer)
                    counted[number] += count if now >= begin else 0

    threads = [threading.Thread(target=move, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"bytes_per_second": sum(counted) / seconds}


def echo(port: str, seconds: float, pause: float) -> dict[str, list[float]]:
    """Round trips of one byte, one after the other with a pause in between, in seconds."""
    sock = _connect(port)
    sock.sendall(b"E")
    trips = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        sock.sendall(b".")
        _exactly(sock, 1)
        trips.append(time.perf_counter() - began)
        time.sleep(pause)
    sock.close()
    return {"seconds": trips}


def echo_many(ports: list[int], seconds: float, pause: float) -> dict[str, list[float]]:
    """Like ``echo``, over many connections at once, each to its own port and at its own offset within the pause."""

    async def one(port: int, trips: list[float], end: float, delay: float) -> None:
        await asyncio.sleep(delay)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(b"E.")
        await reader.readexactly(1)
        while (began := time.perf_counter()) < end:
            writer.write(b".")
            await reader.readexactly(1)
            trips.append(time.perf_counter() - began)
            await asyncio.sleep(pause)
        writer.close()

    async def all_of_them() -> list[float]:
        trips: list[float] = []
        end = time.perf_counter() + seconds
        delays = (pause * number / len(ports) for number in range(len(ports)))
        await asyncio.gather(*(one(port, trips, end, delay) for port, delay in zip(ports, delays)))
        return trips

    return {"seconds": asyncio.run(all_of_them())}


def connects(port: int, number: int, at_once: int) -> dict[str, float]:
    """Connections that each carry one byte back and forth, ``at_once`` at a time."""

    async def all_of_them() -> float:
        turns = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with turns:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"E.")
                await reader.readexactly(1)
                writer.close()

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(number)))
        return time.perf_counter() - began

    taken = asyncio.run(all_of_them())
    return {"connections_per_second": number / taken}


def first_byte(port: str, number: int) -> dict[str, list[float]]:
    """The seconds from the beginning of a new connection to its first byte, one connection after the other."""
    seconds = []
    for _ in range(number):
        began = time.perf_counter()
        with _connect(port) as sock:
            sock.sendall(b"E.")
            _exactly(sock, 1)
            seconds.append(time.perf_counter() - began)
    return {"seconds": seconds}


def _connect(port: str) -> socket.socket:
    host, _, number = port.rpartition(":")
    sock = socket.create_connection((host or "127.0.0.1", int(number)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("serve")
    command.add_argument("host", nargs="?", default="127.0.0.1")
    command = commands.add_parser("bulk")
    command.add_argument("port")
    command.add_argument("direction", choices=("up", "down"))
    command.add_argument("size", type=int)
    command.add_argument("connections", type=int)
    command = commands.add_parser("saturate")
    command.add_argument("port")
    command.add_argument("direction", choices=("up", "down"))
    command.add_argument("seconds", type=float)
    command = commands.add_parser("steady")
    command.add_argument("port")
    command.add_argument("direction", choices=("up", "down"))
    command.add_argument("settle", type=float)
    command.add_argument("seconds", type=float)
    command.add_argument("connections", type=int)
    command = commands.add_parser("echo")
    command.add_argument("port")
    command.add_argument("seconds", type=float)
    command.add_argument("pause", type=float)
    command = commands.add_parser("first_byte")
    command.add_argument("port")
    command.add_argument("number", type=int)
    command = commands.add_parser("echo_many")
    command.add_argument("seconds", type=float)
    command.add_argument("pause", type=float)
    command.add_argument("ports", type=int, nargs="+")
    command = commands.add_parser("connects")
    command.add_argument("port", type=int)
    command.add_argument("number", type=int)
    command.add_argument("at_once", type=int)
    arguments = vars(parser.parse_args())
    what = arguments.pop("what")
    if what == "serve":
        serve(**arguments)
    json.dump(globals()[what](**arguments), sys.stdout)


if __name__ == "__main__":
    main()
