# SPDX-License-Identifier: GPL-3.0-or-later
"""How connections affect each other: peers that stop reading, bulk data next to a shell, and thousands at once."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from peers.bulk import bulk_client, bulk_server
from peers.echo import EchoServer, round_trips
from peers.process import wait_for
from peers.proxies import ProxyPair, peak_memory
from peers.service import TunnelingService

MEGABYTE = 1024 * 1024
MEMORY_LIMIT = 80 * MEGABYTE
STALL_SECONDS = 4

SHORT_CONNECTIONS = int(os.environ.get("SHORT_CONNECTIONS", "24000"))
AT_A_TIME = 50
KILOBYTE = bytes(range(256)) * 4
MEMORY_NOISE = 4 * MEGABYTE
"""Growth that allocators may cause. A leak of one kilobyte in each of 24,000 connections would be six times that."""

FARAWAY = {"send": "receive", "receive": "send"}


def processes(pair: ProxyPair) -> dict[str, int]:
    return {"source": pair.source.pid, "destination": pair.destination.pid, "service": pair.service.pid}


def connect(pair: ProxyPair, service_id: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", pair.ports[service_id]))
    sock.settimeout(60)
    return sock


class Worker:
    """Sends blocks to an echo server, and records when each came back."""

    def __init__(self, pair: ProxyPair) -> None:
        self.sock = connect(pair, "SSH1")
        self.times: list[float] = []
        self.error: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join()
        self.sock.close()

    def longest_wait(self, since: float, until: float) -> float:
        times = [since, *(moment for moment in self.times if since < moment < until), until]
        return max(after - before for before, after in zip(times, times[1:]))

    def _run(self) -> None:
        block = os.urandom(16 * 1024)
        try:
            while not self._stopping:
                self.sock.sendall(block)
                echo = b""
                while len(echo) < len(block):
                    data = self.sock.recv(len(block))
                    assert data, "the connection ended"
                    echo += data
                assert echo == block
                self.times.append(time.monotonic())
        except Exception as error:  # the test reports it
            self.error = error


@pytest.mark.alone
@pytest.mark.parametrize("direction", ["receive", "send"])
def test_a_peer_that_stops_reading_is_reset_without_affecting_ten_others(
    service: TunnelingService, tmp_path: Path, direction: str
) -> None:
    """The client stops reading from a server that sends, or the server reads nothing of what the client sends."""
    options = ["--stall-seconds", str(STALL_SECONDS)]
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        if direction == "receive":
            server, port = bulk_server("send", tmp_path)
            stack.enter_context(server)
        else:
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = deaf.getsockname()[1]
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": port}, options, options))
        workers = [Worker(pair) for _ in range(10)]
        for worker in workers:
            stack.callback(worker.stop)
        wait_for(lambda: all(worker.times for worker in workers), "all ten have begun")

        stalled = stack.enter_context(connect(pair, "HTTP1"))
        began = time.monotonic()
        if direction == "send":
            sender = threading.Thread(target=send_until_reset, args=(stalled,))
            sender.start()
            stack.callback(sender.join)
        proxy = pair.source if direction == "receive" else pair.destination
        proxy.wait_for_output("reset, because its peer does not read", STALL_SECONDS * 3)
        reset_after = time.monotonic() - began
        counts = [len(worker.times) for worker in workers]
        wait_for(lambda: all(len(w.times) > n + 20 for w, n in zip(workers, counts)), "all ten continue")
        waits = [worker.longest_wait(began, began + reset_after + 0.5) for worker in workers]
        done = [sum(began < moment < began + reset_after for moment in worker.times) for worker in workers]
        for worker in workers:
            worker.stop()

        assert [worker.error for worker in workers] == [None] * 10
        assert STALL_SECONDS * 0.9 < reset_after < STALL_SECONDS * 2
        assert max(waits) < STALL_SECONDS * 0.75, waits
        assert (pair.source.output() + pair.destination.output()).count("reset, because") == 1
        peaks = {name: peak_memory(pid) for name, pid in processes(pair).items()}
        print(
            f"reset after {reset_after:.1f} s; meanwhile the ten made {min(done)} to {max(done)} round trips of 16 KiB "
            f"each and waited {max(waits):.2f} s at most;",
            {name: f"{peak / MEGABYTE:.0f} MB" for name, peak in peaks.items()},
        )
        assert max(peaks.values()) < MEMORY_LIMIT, peaks


def send_until_reset(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(bytes(MEGABYTE))
    except OSError:
        pass


def test_a_slow_reader_receives_everything(service: TunnelingService, tmp_path: Path) -> None:
    """Far more data waits for it than fits into a buffer, and it takes longer than the timeout of a stalled peer."""
    data = os.urandom(12 * MEGABYTE)
    options = ["--stall-seconds", "1"]
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        port = listener.getsockname()[1]
        with ProxyPair(service, tmp_path, {"HTTP1": port}, options, options) as pair, connect(pair, "HTTP1") as sock:
            serving = pool.submit(serve)
            received = bytearray()
            began = time.monotonic()
            while piece := sock.recv(64 * 1024):
                received += piece
                # This is the peer's reading speed, not a wait for a condition.
                time.sleep(0.02)
            serving.result()
            assert received == data
            assert time.monotonic() - began > 2


@pytest.mark.alone
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_a_shell_stays_responsive_next_to_bulk_data(service: TunnelingService, tmp_path: Path, direction: str) -> None:
    seconds = 10
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        server, port = bulk_server(FARAWAY[direction], tmp_path)
        stack.enter_context(server)
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": port}))
        shell = stack.enter_context(connect(pair, "SSH1"))
        round_trips(shell, time.monotonic() + 0.5)
        client = stack.enter_context(bulk_client(pair.ports["HTTP1"], direction, seconds, tmp_path))
        taken = sorted(round_trips(shell, time.monotonic() + seconds))
        moved = int(client.wait_for_output(r"^(\d+)\n", 30)[1])
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(
        f"{len(taken)} echoes next to {moved / seconds / 1e6:.0f} MB/s: "
        f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, worst {taken[-1] * 1000:.1f} ms"
    )
    assert moved > seconds * 10 * MEGABYTE
    assert p99 < 0.050


async def short_connections(port: int, many: int) -> None:
    """Open many connections, a few at a time, and exchange a kilobyte on each."""
    left = iter(range(many))

    async def worker() -> None:
        for number in left:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = number.to_bytes(4, "big") + KILOBYTE[4:]
            writer.write(sent)
            try:
                assert await asyncio.wait_for(reader.readexactly(len(sent)), 30) == sent, number
            finally:
                writer.close()

    await asyncio.gather(*(worker() for _ in range(AT_A_TIME)))


async def echo_kilobyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(await reader.readexactly(len(KILOBYTE)))
        await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client reports what is missing
    finally:
        writer.close()


def held(pid: int) -> tuple[int, int]:
    """The resident bytes and the open files of a process."""
    process = psutil.Process(pid)
    return process.memory_info().rss, process.num_fds()


@pytest.mark.alone
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_thousands_of_short_connections_leave_nothing_behind(service: TunnelingService, tmp_path: Path) -> None:
    async def run(folder: Path) -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(echo_kilobyte, "127.0.0.1", 0, backlog=256)
        port = server.sockets[0].getsockname()[1]
        pair = await loop.run_in_executor(None, ProxyPair, service, folder, {"HTTP1": port})
        with pair:

            def all_closed() -> bool:
                proxies = (pair.source, pair.destination)
                return not any(connections(proxy.pid, pair.ports["HTTP1"], port) for proxy in proxies)

            await short_connections(pair.ports["HTTP1"], 2000)
            await loop.run_in_executor(None, wait_for, all_closed, "no connection is left")
            before = {name: held(pid) for name, pid in processes(pair).items()}
            began = time.monotonic()
            await short_connections(pair.ports["HTTP1"], SHORT_CONNECTIONS)
            seconds = time.monotonic() - began
            await loop.run_in_executor(None, wait_for, all_closed, "no connection is left")
            after = {name: held(pid) for name, pid in processes(pair).items()}
        server.close()
        grown = {name: after[name][0] - before[name][0] for name in before}
        print(
            f"{SHORT_CONNECTIONS} connections in {seconds:.0f} s ({SHORT_CONNECTIONS / seconds:.0f}/s);",
            {name: f"{before[name][0] / MEGABYTE:.1f} → {after[name][0] / MEGABYTE:.1f} MB" for name in before},
        )
        assert {name: files for name, (_, files) in after.items()} == {name: n for name, (_, n) in before.items()}
        assert max(grown.values()) < MEMORY_NOISE, grown

    asyncio.run(run(tmp_path))


def connections(pid: int, *ports: int) -> list[object]:
    """The connections of a process, without its listening sockets, that have one of these ports at either end."""
    found = psutil.Process(pid).net_connections("tcp")
    return [
        entry
        for entry in found
        if entry.status != psutil.CONN_LISTEN and {entry.laddr.port, entry.raddr.port if entry.raddr else 0} & {*ports}
    ]


def test_only_the_connection_over_the_limit_is_rejected(service: TunnelingService, tmp_path: Path) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": echo.port}))
        socks = [stack.enter_context(connect(pair, "SSH1")) for _ in range(128)]
        for sock in socks:
            assert echoes(sock)
        with connect(pair, "SSH1") as one_more:
            assert one_more.recv(1) == b""
        pair.source.wait_for_output("SSH1: rejected a connection: there are 128 already")
        assert all(echoes(sock) for sock in socks)
        with connect(pair, "HTTP1") as other:
            assert echoes(other)
        socks[0].close()
        wait_for(lambda: "closed after" in pair.source.output(), "the source has noticed that one was closed")
        with connect(pair, "SSH1") as another:
            assert echoes(another)


def echoes(sock: socket.socket) -> bool:
    sock.sendall(b"hello")
    return sock.recv(5) == b"hello"
