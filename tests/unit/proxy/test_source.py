# SPDX-License-Identifier: GPL-3.0-or-later
"""A source proxy between real local clients and a far end that the test plays, on a real link."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.links import FarEnd, LinkServer, link_server
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.net.ipv6_loopback import reserve
from tunnelproxy.protocol.framing import Bytes, Message
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.proxy import source as source_module
from tunnelproxy.proxy.addresses import Address, TcpAddress
from tunnelproxy.proxy.link import TunnelCredentials
from tunnelproxy.proxy.source import SourceProxy
from tunnelproxy.service.state.certificates import Certificates

CREDENTIALS = TunnelCredentials(Mode.SOURCE, "the-access-token", "the-client-token")
ANY_PORT = TcpAddress("127.0.0.1", 0)


class Client:
    """A local client of a service's port."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)

    @classmethod
    def of(cls, proxy: SourceProxy, service_id: str = "HTTP1") -> Client:
        address = proxy.end.services[service_id].address
        assert isinstance(address, TcpAddress)
        return cls(socket.create_connection(("127.0.0.1", address.port)))

    def say(self, data: bytes) -> None:
        self._sock.sendall(data)

    async def hear(self) -> bytes:
        """Return what comes next; nothing where the connection has ended."""
        with suppress(ConnectionResetError):
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._sock, 65536), 10)
        return b""

    def close(self) -> None:
        self._sock.close()


class OnlyGood:
    """A guard that passes what begins with "good"."""

    def __init__(self) -> None:
        self.answer: bytes | None = None

    def receive(self, data: Bytes) -> Bytes:
        if bytes(data[:4]) != b"good":
            self.answer = b"no"
        return data if self.answer is None else b""


class Rig:
    """A source proxy, the server of its links, and the clients that the test has made."""

    def __init__(self, server: LinkServer, address: Address | None, **settings: Any) -> None:
        self.server = server
        self.proxy = SourceProxy(server.route, CREDENTIALS, lambda names: dict.fromkeys(names, address), **settings)
        self.clients: list[Client] = []

    async def link(self, *services: str) -> FarEnd:
        """Let the far end accept the next link."""
        far_end = await self.server.next_link()
        await far_end.offer(*(services or ("HTTP1",)))
        await asyncio.wait_for(self.proxy.end.ready.wait(), 10)
        return far_end

    def connect(self, service_id: str = "HTTP1") -> Client:
        client = Client.of(self.proxy, service_id)
        self.clients.append(client)
        return client

    async def count(self, connections: int, service_id: str = "HTTP1") -> None:
        """Wait until a service has so many connections."""
        await until(lambda: self.proxy.end.services[service_id].connections == connections)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 0.01)


def check(
    certificates: Certificates,
    test: Callable[[Rig], Awaitable[None]],
    address: Address | None = ANY_PORT,
    **settings: Any,
) -> None:
    """Run a source whose services all have the same address to listen on."""

    @in_event_loop
    async def run() -> None:
        async with AsyncExitStack() as stack:
            rig = Rig(await stack.enter_async_context(link_server(certificates)), address, **settings)
            running = asyncio.ensure_future(rig.proxy.run())
            try:
                await test(rig)
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError, ConfigurationError):
                    await running
                for client in rig.clients:
                    client.close()

    run()


# Forwarding.


def test_it_listens_for_each_service_and_forwards_in_both_directions(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link("HTTP1", "SSH1")
        for service_id in ("HTTP1", "SSH1"):
            client = rig.connect(service_id)
            connection = await far_end.receive_about(Message.STREAM_START)
            assert connection.service_id == service_id
            client.say(b"question")
            assert await far_end.receive_data(8) == b"question"
            await far_end.send(Message.DATA, connection, b"answer")
            assert await client.hear() == b"answer"
            await far_end.send(Message.CONNECTION_RESET, connection)
            assert await client.hear() == b""
            await rig.count(0, service_id)

    check(certificates, test)


def test_a_connected_socket_is_forwarded_as_if_it_had_been_accepted(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        ours, theirs = socket.socketpair()
        rig.clients.append(client := Client(theirs))
        local = await rig.proxy.attach("HTTP1", ours, awaits_answer=False)
        client.say(b"hello")
        connection = await far_end.receive_about(Message.STREAM_START)
        assert await far_end.receive_data(5) == b"hello"
        await far_end.send(Message.DATA, connection, b"answer")
        assert await local.answered
        with pytest.raises(ConfigurationError, match="does not offer VNC; it carries HTTP1"):
            await rig.proxy.attach("VNC", ours)

    check(certificates, test, address=None)


def test_more_connections_than_allowed_are_closed(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        await rig.link()
        rig.connect()
        await rig.count(1)
        assert await rig.connect().hear() == b""
        assert rig.proxy.why_full("HTTP1") == "carries 1 connections, and no more are allowed"

    check(certificates, test, max_connections=1)


def test_connections_of_one_service_can_be_closed_without_touching_another(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link("HTTP1", "SSH1")
        first, second = rig.connect("HTTP1"), rig.connect("HTTP1")
        other = rig.connect("SSH1")
        await rig.count(2, "HTTP1")  # of which the second waits for the device to show what it speaks
        await rig.count(1, "SSH1")
        rig.proxy.reset_connections("HTTP1")
        assert [await first.hear(), await second.hear()] == [b"", b""]
        await rig.count(0, "HTTP1")
        other.say(b"still here")
        while (message := await far_end.receive()).type != Message.DATA:
            pass
        assert (message.serviceId, message.payload) == ("SSH1", b"still here")

    check(certificates, test)


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Lower this process's limit, so that the descriptors left are reserved."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free * 3 // 2, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("leaves_descriptors", [True, False])
def test_local_connections_are_rejected_when_descriptors_are_few(
    certificates: Certificates, leaves_descriptors: bool
) -> None:
    async def test(rig: Rig) -> None:
        await rig.link()
        with few_descriptors():
            client = rig.connect()
            if leaves_descriptors:
                assert await client.hear() == b""
            else:
                await rig.count(1)
        assert rig.proxy.end.services["HTTP1"].opened == (0 if leaves_descriptors else 1)

    check(certificates, test, leaves_descriptors=leaves_descriptors)


# Waiting for the link.


def test_a_connection_that_comes_while_the_link_is_down_is_opened_on_the_next_one(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        rig.server.refuses = (503, "")
        await far_end.close()
        await until(lambda: not rig.proxy.end.ready.is_set())
        client, gone = rig.connect(), rig.connect()
        client.say(b"question")
        gone.close()
        await until(lambda: sum(local.ended for local in rig.proxy._waiting) == 1)
        rig.server.refuses = None
        far_end = await rig.link()
        connection = await far_end.receive_about(Message.STREAM_START)
        assert await far_end.receive_data(8) == b"question"
        await far_end.send(Message.DATA, connection, b"answer")
        assert await client.hear() == b"answer"
        await rig.count(1)

    check(certificates, test)


def test_a_connection_waits_for_the_link_only_for_so_long(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_module, "LINK_WAIT_SECONDS", 0.05)

    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        rig.server.refuses = (503, "")
        await far_end.close()
        await until(lambda: not rig.proxy.end.ready.is_set())
        assert await rig.connect().hear() == b""
        assert "HTTP1: closed a connection: the tunnel is down: " in caplog.text
        await rig.count(0)

    check(certificates, test)


def test_connections_that_wait_are_closed_when_the_tunnel_ends(certificates: Certificates) -> None:
    clients: list[Client] = []

    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        rig.server.refuses = (503, "")
        await far_end.close()
        await until(lambda: not rig.proxy.end.ready.is_set())
        rig.connect()
        await rig.count(1)
        clients.append(rig.clients.pop())

    check(certificates, test)
    in_event_loop(clients[0].hear)()
    clients[0].close()


# Listening.


def test_a_port_that_is_in_use_is_named_with_the_remedy(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = TcpAddress("127.0.0.1", other.getsockname()[1])

        async def test(rig: Rig) -> None:
            await (await rig.server.next_link()).offer("HTTP1")
            await until(lambda: rig.proxy.end.cause)
            assert str(rig.proxy.end.cause) == (
                f"HTTP1: cannot listen on {address}: the port is in use; choose another with -s, or stop the program "
                "that uses it"
            )

        check(certificates, test, address=address)


def test_an_address_of_another_machine_is_no_address_to_listen_on(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        await (await rig.server.next_link()).offer("HTTP1")
        await until(lambda: rig.proxy.end.cause)
        assert "HTTP1: cannot listen on 192.0.2.1:0: Cannot assign requested address" in str(rig.proxy.end.cause)

    check(certificates, test, address=TcpAddress("192.0.2.1", 0))


def test_a_service_can_move_to_another_port_and_keeps_its_connections(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        client = rig.connect()
        connection = await far_end.receive_about(Message.STREAM_START)
        before = rig.proxy.end.services["HTTP1"].address
        assert isinstance(before, TcpAddress)
        await rig.proxy.listen("HTTP1", TcpAddress(None, 0))
        assert rig.proxy.end.services["HTTP1"].address != before
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", before.port))
        await rig.proxy.listen("HTTP1", None)
        assert rig.proxy.end.services["HTTP1"].address is None
        await far_end.send(Message.DATA, connection, b"still here")
        assert await client.hear() == b"still here"

    check(certificates, test, bind_address="127.0.0.1")


def test_where_it_cannot_listen_it_keeps_the_port_that_it_has(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        with (
            socket.create_server(("127.0.0.1", 0)) as other,
            pytest.raises(ConfigurationError, match="the port is in use"),
        ):
            await rig.proxy.listen("HTTP1", TcpAddress("127.0.0.1", other.getsockname()[1]))
        rig.connect()
        assert (await far_end.receive_about(Message.STREAM_START)).service_id == "HTTP1"

    check(certificates, test)


def test_for_browsers_nobody_else_can_have_the_port_of_the_ipv6_loopback(certificates: Certificates) -> None:
    probe = reserve(0)
    if probe is None:
        pytest.skip("this machine has no IPv6")
    probe.close()

    async def test(rig: Rig) -> None:
        await rig.link()
        address = rig.proxy.end.services["HTTP1"].address
        assert isinstance(address, TcpAddress)
        with socket.socket(socket.AF_INET6) as other, pytest.raises(OSError, match="in use"):
            other.bind(("::1", address.port))
        await rig.proxy.listen("HTTP1", None)
        with socket.socket(socket.AF_INET6) as other:
            other.bind(("::1", address.port))

    check(certificates, test, is_for_browsers=lambda service_id: service_id == "HTTP1")


# The guard.


def test_the_far_end_knows_nothing_of_a_connection_before_its_guard_has_passed_something(
    certificates: Certificates,
) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        refused, passed, gone = rig.connect(), rig.connect(), rig.connect()
        await rig.count(3)
        refused.say(b"bad")
        assert await refused.hear() == b"no"
        gone.close()
        await rig.count(2)
        refused.close()
        await rig.count(1)
        passed.say(b"good morning")
        assert (await far_end.receive_about(Message.STREAM_START)).connection_id == 1
        assert await far_end.receive_data(12) == b"good morning"

    check(certificates, test, new_guard=lambda service_id: OnlyGood())


def test_a_connection_without_a_request_is_closed_after_a_while(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_module, "LINK_WAIT_SECONDS", 0.6)

    async def test(rig: Rig) -> None:
        await rig.link()
        assert await rig.connect().hear() == b""
        assert "HTTP1: closed a connection: no request came within 1 s" in caplog.text

    with caplog.at_level(logging.INFO):
        check(certificates, test, new_guard=lambda service_id: OnlyGood())


# Versions.


def test_a_second_connection_waits_until_the_device_has_shown_that_it_accepts_it(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        rig.connect()
        first = await far_end.receive_about(Message.STREAM_START)
        rig.connect()
        question = await far_end.receive_about(Message.CONNECTION_START)
        assert await far_end.receive_about(Message.CONNECTION_RESET) == question
        assert rig.proxy.why_full("HTTP1") is None
        # As a destination of V3 does with such a question.
        await far_end.send(Message.CONNECTION_RESET, question)
        second = await far_end.receive_about(Message.CONNECTION_START)
        assert second.stream_id == first.stream_id
        assert rig.proxy.speaks_newer

    check(certificates, test)


def test_a_second_connection_is_opened_when_the_first_has_ended_without_an_answer(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        first = rig.connect()
        before = await far_end.receive_about(Message.STREAM_START)
        rig.connect()
        await rig.count(2)
        first.close()
        while (message := await far_end.receive()).type != Message.STREAM_START:
            pass
        assert message.streamId == before.stream_id + 1
        await rig.count(1)

    check(certificates, test)


def test_a_second_connection_to_a_device_of_v2_is_closed(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        client = rig.connect()
        connection = await far_end.receive_about(Message.STREAM_START)
        await far_end.send(Message.DATA, connection, b"answer", Version.V2)
        assert await client.hear() == b"answer"
        assert await rig.connect().hear() == b""
        words = "HTTP1: rejected a connection: the destination speaks V2, which has one connection per service"
        assert words in caplog.text
        assert rig.proxy.why_full("HTTP1") == (
            "has a connection already, and the device speaks V2, which allows one per service"
        )
        await rig.count(1)

    check(certificates, test)


def test_a_second_connection_is_closed_when_the_device_stays_silent(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_module, "LINK_WAIT_SECONDS", 0.05)

    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        rig.connect()
        await far_end.receive_about(Message.STREAM_START)
        assert await rig.connect().hear() == b""
        assert "there is one already, and the device has not shown yet that it accepts more" in caplog.text

    check(certificates, test)


def test_a_device_that_answers_v1_only_gets_the_hello_once_on_a_link_of_its_own(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.ASK_SECONDS", 0.05)
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.SILENCE_SECONDS", 0.1)

    async def test(rig: Rig) -> None:
        far_end = await rig.link("SSH")
        client = rig.connect("SSH")
        client.say(b"hello")
        kinds = [(await far_end.receive()).type for _ in range(3)]
        assert kinds == [Message.STREAM_START, Message.CONNECTION_START, Message.CONNECTION_RESET]
        far_end = await rig.link("SSH")
        start = await far_end.receive_about(Message.STREAM_START)
        assert (start.service_id, start.stream_id, start.connection_id) == ("", 2, 0)
        await far_end.send(Message.DATA, start, b"banner", Version.V1)
        assert await client.hear() == b"banner"
        assert await far_end.receive_data(5) == b"hello"
        assert (rig.proxy.answers_v1_only, rig.proxy.refusal) == (True, None)

    check(certificates, test)


def test_a_device_whose_version_does_not_fit_is_named(certificates: Certificates) -> None:
    async def test(rig: Rig) -> None:
        far_end = await rig.link()
        client = rig.connect()
        connection = await far_end.receive_about(Message.STREAM_START)
        await far_end.send(Message.DATA, connection, b"answer", Version.V1)
        assert await client.hear() == b""
        assert rig.proxy.refusal is not None
        assert "the destination speaks V1, but this source was told that it speaks V3" in rig.proxy.refusal

    check(certificates, test, destination_version=Version.V3)
