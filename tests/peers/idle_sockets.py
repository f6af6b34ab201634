# SPDX-License-Identifier: GPL-3.0-or-later
"""Many sockets that connect and send nothing, and reconnect when the other side closes them.

``python -c … HOST PORT COUNT ADDRESSES``: they connect from this many loopback addresses, starting with 127.0.0.11.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from pathlib import Path

from peers.process import Process

__all__ = ["IdleSockets"]

PAUSE = 1.0
AT_ONCE = 500


class IdleSockets(Process):
    """Use it as a context manager; :meth:`held` returns how many are connected now."""

    def __init__(self, host: str, port: int, count: int, log: Path, *, addresses: int = 1) -> None:
        tests = str(Path(__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {tests!r}); from peers.idle_sockets import main; main()"
        super().__init__([sys.executable, "-c", code, host, str(port), str(count), str(addresses)], log)

    def held(self) -> int:
        """How many are connected now, from this side's view."""
        return int(self.output().split()[-1]) if self.output().split() else 0


async def _hold(host: str, port: int, source: str, held: set[int], number: int, connecting: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as sock:
            sock.setblocking(False)
            try:
                async with connecting:
                    sock.bind((source, 0))
                    await asyncio.wait_for(loop.sock_connect(sock, (host, port)), 10)
                held.add(number)
                while await loop.sock_recv(sock, 4096):
                    pass
            except (OSError, asyncio.TimeoutError):
                pass
            held.discard(number)
        await asyncio.sleep(PAUSE)


async def _crowd(host: str, port: int, count: int, addresses: int) -> None:
    held: set[int] = set()
    connecting = asyncio.Semaphore(AT_ONCE)
    tasks = [
        asyncio.ensure_future(_hold(host, port, f"127.0.0.{11 + number % addresses}", held, number, connecting))
        for number in range(count)
    ]
    parent = os.getppid()
    # Exit with the test, even if it is killed.
    while tasks and os.getppid() == parent:
        await asyncio.sleep(0.5)
        print(len(held), flush=True)


def main() -> None:
    """Hold them until killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port, count, addresses = sys.argv[1:]
    asyncio.run(_crowd(host, int(port), int(count), int(addresses)))
