# SPDX-License-Identifier: GPL-3.0-or-later
"""One end of a tunnel, on real links over TLS whose other side the test plays."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.links import FarEnd, LinkServer, link_server
from tunnelproxy.errors import ConfigurationError, TunnelRefused
from tunnelproxy.protocol.framing import Message
from tunnelproxy.protocol.session import Connection, Mode
from tunnelproxy.proxy.addresses import Address, TcpAddress
from tunnelproxy.proxy.link import TunnelCredentials
from tunnelproxy.proxy.local_socket import LocalSocket
from tunnelproxy.proxy.multiplexer import Callbacks, Multiplexer
from tunnelproxy.proxy.tunnel_end import TunnelEnd
from tunnelproxy.service.state.certificates import Certificates

CREDENTIALS = TunnelCredentials(Mode.SOURCE, "the-access-token", "the-client-token")
ADDRESS = TcpAddress("127.0.0.1", 22)


class Rig:
    """A tunnel end, and how often it called what it was given."""

    def __init__(self, server: LinkServer, **settings: Any) -> None:
        self.offered: list[tuple[str, ...]] = []
        self.starts = 0
        self.ready = 0
        self.end = TunnelEnd(
            server.route, CREDENTIALS, self.plan, self.new_multiplexer, on_ready=self.on_ready, **settings
        )

    def plan(self, service_ids: tuple[str, ...]) -> dict[str, Address | None]:
        self.offered.append(service_ids)
        if "WRONG" in service_ids:
            raise ConfigurationError("no address for WRONG")
        return dict.fromkeys(service_ids, ADDRESS)

    def new_multiplexer(self) -> Multiplexer:
        return Multiplexer(Mode.SOURCE, Callbacks(self.end.services_offered, self.end.connection_ended))

    def on_ready(self) -> None:
        assert self.end.ready.is_set()
        self.ready += 1

    async def start(self) -> None:
        assert not self.end.ready.is_set()
        self.starts += 1

    async def connect(self, service_id: str = "SSH1") -> tuple[Connection, LocalSocket, socket.socket]:
        assert self.end.admit(service_id)
        assert self.end.multiplexer is not None
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(self.end.multiplexer)
        connection = self.end.multiplexer.open(service_id, local)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
        return connection, local, theirs


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(rig.end.run(rig.start))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 0.01)


def check(certificates: Certificates, run: Callable[[Rig, LinkServer], Awaitable[None]], **settings: Any) -> None:
    """Run a test with a tunnel end that is not running yet, and the server for its links."""

    @in_event_loop
    async def test() -> None:
        async with link_server(certificates) as server:
            await run(Rig(server, **settings), server)

    test()


async def ready(rig: Rig, server: LinkServer, *services: str) -> FarEnd:
    far_end = await server.next_link()
    await far_end.offer(*(services or ("SSH1",)))
    await asyncio.wait_for(rig.end.ready.wait(), 10)
    return far_end


def test_it_is_ready_once_its_services_have_their_addresses_and_it_has_started(certificates: Certificates) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        async with running(rig):
            far_end = await server.next_link()
            await until(lambda: rig.end.link)
            assert not rig.end.ready.is_set()
            await far_end.offer("SSH1", "HTTP1")
            await asyncio.wait_for(rig.end.ready.wait(), 10)
            assert {name: state.address for name, state in rig.end.services.items()} == {
                "SSH1": ADDRESS,
                "HTTP1": ADDRESS,
            }
            assert (rig.starts, rig.ready, rig.end.settled.is_set()) == (1, 1, True)
        assert not rig.end.ready.is_set()
        assert rig.end.settled.is_set()

    check(certificates, run)


def test_it_is_ready_again_on_the_next_link_and_keeps_its_services(certificates: Certificates) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        async with running(rig):
            far_end = await ready(rig, server)
            await far_end.close()
            await until(lambda: rig.end.cause)
            assert not rig.end.ready.is_set()
            await ready(rig, server, "OTHER")
            assert (rig.starts, rig.ready, rig.end.cause) == (1, 2, None)
            assert (list(rig.end.services), rig.offered) == (["SSH1"], [("SSH1",)])

    check(certificates, run)


def test_services_without_an_address_end_it(certificates: Certificates) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        async with running(rig) as task:
            await (await server.next_link()).offer("WRONG")
            with pytest.raises(ConfigurationError, match="no address for WRONG"):
                await asyncio.wait_for(task, 10)
            assert isinstance(rig.end.cause, ConfigurationError)
            assert rig.starts == 0

    check(certificates, run)


def test_a_refusal_ends_it_with_the_cause(certificates: Certificates) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        server.refuses = (403, "Invalid access token")
        async with running(rig) as task:
            with pytest.raises(TunnelRefused):
                await asyncio.wait_for(task, 10)
            assert isinstance(rig.end.cause, TunnelRefused)
            assert rig.end.settled.is_set()

    check(certificates, run)


def test_it_is_settled_when_an_attempt_has_failed_and_not_when_a_link_was_just_lost(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        server.refuses = (503, "")
        assert not rig.end.settled.is_set()
        async with running(rig):
            await asyncio.wait_for(rig.end.settled.wait(), 10)
            assert "the service answers 503" in str(rig.end.cause)
            server.refuses = None
            far_end = await ready(rig, server)
            monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 60)
            await far_end.close()
            await until(lambda: rig.end.cause)
            assert not rig.end.settled.is_set()

    check(certificates, run)


def test_it_admits_no_more_connections_than_allowed_and_counts_what_they_carried(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        async with running(rig):
            far_end = await ready(rig, server)
            connection, _, peer = await rig.connect()
            assert list(rig.end.open_connections()) == [connection]
            assert not rig.end.admit("SSH1")
            assert "SSH1: rejected a connection: there are 1 already" in caplog.text
            peer.send(b"question")
            await far_end.receive(Message.STREAM_START)
            assert await far_end.receive_data(8) == b"question"
            await far_end.send(Message.DATA, connection, b"the answer")
            await far_end.send(Message.CONNECTION_RESET, connection)
            state = rig.end.services["SSH1"]
            await until(lambda: state.connections == 0)
            assert (state.opened, state.bytes_in, state.bytes_out) == (1, 8, 10)
            assert "closed after 8 bytes in, 10 bytes out" in caplog.text
            assert rig.end.admit("SSH1")

    with caplog.at_level(logging.INFO):
        check(certificates, run, max_connections=1)


def test_reconnecting_returns_the_connections_that_have_carried_nothing(certificates: Certificates) -> None:
    async def run(rig: Rig, server: LinkServer) -> None:
        assert rig.end.reconnect("there is no link yet") == []
        assert rig.end.open_connections() == {}
        async with running(rig):
            far_end = await ready(rig, server)
            _, idle, _peer = await rig.connect()
            used, _, talkative = await rig.connect()
            talkative.send(b"hello")
            assert [(await far_end.receive()).type for _ in range(3)][-1] == Message.DATA
            before = rig.end.link
            assert rig.end.reconnect("for a test") == [("SSH1", idle)]
            assert not rig.end.ready.is_set()
            assert not rig.end.settled.is_set()
            assert used not in rig.end.open_connections()
            await ready(rig, server)
            assert rig.end.link is not before
            assert rig.end.services["SSH1"].connections == 1

    check(certificates, run)
