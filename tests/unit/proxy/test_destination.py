# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination proxy between real local servers and a source that the test plays, on a real link."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from peers.echo import EchoServer
from peers.event_loop import in_event_loop, until
from peers.links import FarEnd, link_server
from tunnelproxy.errors import TunnelClosed
from tunnelproxy.protocol.framing import Message
from tunnelproxy.protocol.session import Connection, Mode
from tunnelproxy.proxy import destination
from tunnelproxy.proxy.addresses import Address, TcpAddress, UnixAddress
from tunnelproxy.proxy.destination import DestinationProxy
from tunnelproxy.proxy.link import TunnelCredentials
from tunnelproxy.service.state.certificates import Certificates

CREDENTIALS = TunnelCredentials(Mode.DESTINATION, "the-access-token", "the-client-token")
SSH = Connection("SSH1", 1, 1)

Test = Callable[[DestinationProxy, FarEnd], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each client with what it sends, and keep the connection until it ends."""
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(b"echo: " + data)
    writer.close()


def check(certificates: Certificates, address: Address | None, test: Test, **settings: Any) -> None:
    """Run a destination whose service SSH1 has an address."""

    @in_event_loop
    async def run() -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(link_server(certificates))
            settings.setdefault("connect_pause", 0.01)
            proxy = DestinationProxy(server.route, CREDENTIALS, lambda names: dict.fromkeys(names, address), **settings)
            running = asyncio.ensure_future(proxy.run())
            try:
                source = await server.next_link()
                await source.offer("SSH1")
                await asyncio.wait_for(proxy.end.ready.wait(), 10)
                await test(proxy, source)
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError, TunnelClosed):
                    await running

    run()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_it_connects_to_the_service_and_forwards_in_both_directions(certificates: Certificates) -> None:
    with EchoServer() as server:

        async def test(proxy: DestinationProxy, source: FarEnd) -> None:
            await source.send(Message.STREAM_START, SSH)
            await source.send(Message.DATA, SSH, b"early")
            assert await source.receive_data(5) == b"early"
            await source.send(Message.CONNECTION_RESET, SSH)
            state = proxy.end.services["SSH1"]
            await until(lambda: not state.connections)
            assert (state.bytes_in, state.bytes_out) == (5, 5)

        check(certificates, TcpAddress("127.0.0.1", server.port), test)


def test_it_connects_to_a_unix_socket(certificates: Certificates, tmp_path: Path) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        async with await asyncio.start_unix_server(echo, tmp_path / "socket"):
            await source.send(Message.STREAM_START, SSH)
            await source.send(Message.DATA, SSH, b"hello")
            assert await source.receive_data(11) == b"echo: hello"
            await source.send(Message.CONNECTION_RESET, SSH)
            await until(lambda: not proxy.end.open_connections())

    check(certificates, UnixAddress(str(tmp_path / "socket")), test)


def test_a_service_without_an_address_is_rejected(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        for service_id in ("SSH1", "UNKNOWN"):
            connection = Connection(service_id, 1, 1)
            await source.send(Message.STREAM_START, connection)
            assert await source.receive_about(Message.CONNECTION_RESET) == connection
            assert f"{connection}: rejected, because there is no address for this service" in caplog.text

    check(certificates, None, test)


def test_more_connections_than_allowed_are_rejected(certificates: Certificates, tmp_path: Path) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        async with await asyncio.start_unix_server(echo, tmp_path / "socket"):
            await source.send(Message.STREAM_START, SSH)
            await source.send(Message.CONNECTION_START, SSH._replace(connection_id=2))
            rejected = await source.receive_about(Message.CONNECTION_RESET)
            assert rejected.connection_id == 2
            assert list(proxy.end.open_connections()) == [SSH]

    check(certificates, UnixAddress(str(tmp_path / "socket")), test, max_connections=1)


def test_it_retries_as_often_as_allowed_and_then_resets_the_connection(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    address = TcpAddress("127.0.0.1", unused_port())

    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        assert await source.receive_about(Message.CONNECTION_RESET) == SSH
        attempts = [f"cannot connect to {address} (attempt {number} of 3): connection refused" for number in (1, 2, 3)]
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == attempts

    check(certificates, address, test, connect_attempts=3)


def test_a_server_that_starts_late_gets_what_the_source_has_sent(certificates: Certificates, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        await source.send(Message.DATA, SSH, b"early")
        await until(lambda: any(local.unwritten for local in proxy.end.open_connections().values()))
        async with await asyncio.start_unix_server(echo, path):
            assert await source.receive_data(11) == b"echo: early"
            await source.send(Message.CONNECTION_RESET, SSH)
            await until(lambda: not proxy.end.open_connections())

    check(certificates, UnixAddress(str(path)), test, connect_attempts=None)


def test_it_stops_retrying_when_the_source_has_closed_the_connection(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        await until(lambda: "(attempt 2 of unlimited)" in caplog.text)
        await source.send(Message.CONNECTION_RESET, SSH)
        await until(lambda: not proxy._connecting)
        assert proxy.end.services["SSH1"].connections == 0

    check(certificates, TcpAddress("127.0.0.1", unused_port()), test, connect_attempts=None)


def test_it_stops_retrying_when_the_tunnel_ends(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        await source.send(Message.DATA, SSH, b"for which it is still worth connecting")
        await until(lambda: "(attempt 1 of unlimited)" in caplog.text)
        (connecting,) = proxy._connecting
        await source.close(1000, "Tunnel closed")
        await until(connecting.done)
        assert connecting.cancelled()

    check(certificates, TcpAddress("127.0.0.1", unused_port()), test, connect_attempts=None)


def test_an_address_that_is_not_permitted_is_not_retried(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[TcpAddress, str]] = []
    address = TcpAddress("127.0.0.1", 22)

    def permits(of: TcpAddress, host: str) -> bool:
        asked.append((of, host))
        return False

    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        assert await source.receive_about(Message.CONNECTION_RESET) == SSH
        assert asked == [(address, "127.0.0.1")]
        assert "(attempt 1 of 5)" in caplog.text

    check(certificates, address, test, permits=permits)


def test_a_server_that_does_not_answer_is_asked_again_at_once(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(destination, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = fill_backlog(full)
        address = TcpAddress(*full.getsockname())

        async def test(proxy: DestinationProxy, source: FarEnd) -> None:
            await source.send(Message.STREAM_START, SSH)
            # An hour's pause after the first attempt would be too long for this test.
            assert await source.receive_about(Message.CONNECTION_RESET) == SSH

        check(certificates, address, test, connect_attempts=2, connect_pause=3600)
        for sock in waiting:
            sock.close()
    assert f"cannot connect to {address} (attempt 2 of 2): no answer within 0 s" in caplog.text


def fill_backlog(server: socket.socket) -> list[socket.socket]:
    """Make so many connections to a server that accepts none that the kernel drops the next."""
    clients = []
    while True:
        client = socket.socket()
        client.settimeout(0.05)
        clients.append(client)
        try:
            client.connect(server.getsockname())
        except OSError:  # Python 3.9 has another class for a timeout
            return clients


def test_it_connects_from_the_address_that_it_is_given(certificates: Certificates) -> None:
    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        listener.setblocking(False)
        await source.send(Message.STREAM_START, SSH)
        accepted, (host, _) = await asyncio.get_running_loop().sock_accept(listener)
        accepted.close()
        assert host == "127.0.0.2"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        check(certificates, TcpAddress("127.0.0.1", listener.getsockname()[1]), test, bind_address="127.0.0.2")


def test_a_bug_while_connecting_resets_that_connection(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    def permits(of: TcpAddress, host: str) -> bool:
        raise RuntimeError("a bug")

    async def test(proxy: DestinationProxy, source: FarEnd) -> None:
        await source.send(Message.STREAM_START, SSH)
        assert await source.receive_about(Message.CONNECTION_RESET) == SSH

    with caplog.at_level(logging.ERROR):
        check(certificates, TcpAddress("127.0.0.1", 22), test, permits=permits)
    assert f"connecting {SSH} has failed" in caplog.text
